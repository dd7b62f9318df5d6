"""Paint a picture again from what it says of itself, and tell whether it came out the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.metadata.files import PictureFile, read_picture
from danqing.metadata.pixels import pixels_sha256, rgba_md5
from danqing.metadata.read import tell
from danqing.metadata.told import Told
from danqing.paths import path_of
from danqing.pipeline.engines import recorded
from danqing.pipeline.extras import enlarged_again
from danqing.pipeline.images import open_picture
from danqing.pipeline.models import Say, find_vae, load, print_note
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.request_parts import ImagePrompt, PictureSource, Reference
from danqing.requests import Enlarged, ImageToImage, Painting, ResolvedRequest, TextToImage
from danqing.runtime.devices import pick_device
from danqing.vocabulary import find_module

_PICTURES = ("image", "mask", "subimage")
_CHECKPOINTS = ("refiner_checkpoint", "hr_checkpoint_name")


@dataclass(frozen=True, eq=False)
class Replay:
    """A picture painted again."""

    told: Told
    picture: Picture
    identical: bool | None
    """Whether the pixels are the same, bit for bit; None where the file no longer holds those that were painted."""
    differences: tuple[str, ...]
    """What is not as it was: another checkpoint, version, platform; how far the pixels are apart."""


def replay(
    path: str | Path,
    model: Model | None = None,
    *,
    name: str | None = None,
    images: Mapping[str, str | Path] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    say: Say = print_note,
) -> Replay:
    """Paint the picture at `path` again.

    The checkpoint is found by the recorded hash, else by its name; `name` or `model` goes before that. Pictures that
    took part (`image`, `mask`, `subimage`) are looked for by their names beside the picture; `images` gives them by
    field. Device and precision are the recorded ones where this machine has them.
    `say` is told, a line each, what the metadata does not tell.
    Raises DanqingError: no picture, no metadata, a checkpoint or picture that is not here.
    """
    path = Path(path)
    file = read_picture(path)
    told = tell(file)
    if told.resolved is None:
        for note in told.notes:
            say(note)
    request = _with_pictures(path, told, images or {})
    request = request.model_copy(update=_further(told, request))
    if model is None:
        model = _load(path, told, name, device, dtype, say)
    elif told.vae is not None:
        request = request.model_copy(update={"vae": _vae(told.vae, say)})

    def new(line: str) -> None:
        """Notes of fields without effect are the record's own: all its fields are set."""
        if line not in told.notes and " has no effect" not in line:
            say(line)

    pictures = paint(request.model_copy(update={"model": None, "vae": request.vae}), model, say=new)
    picture = min(pictures, key=lambda each: _distance(each.image, file.image))
    if told.resolved is not None and told.resolved.enlarged:
        picture = _enlarged(picture, told.resolved.enlarged, say)
    differences = tuple(_differences(told.resolved, picture.record)) if told.resolved else ()
    identical, why = _compare(file, told, picture)
    return Replay(told, picture, identical, () if identical else (*why, *differences))


def _enlarged(picture: Picture, steps: Sequence[Enlarged], say: Say) -> Picture:
    """The painted picture with what was done to it since, by the networks that are here."""
    image, done = enlarged_again(picture.image, steps, say)
    return replace(picture, image=image, resolved=picture.resolved.model_copy(update={"enlarged": done}))


def _with_pictures(path: Path, told: Told, given: Mapping[str, str | Path]) -> Painting:
    """The request with paths in place of the pictures that took part."""
    request, changes = told.request, dict[str, Any]()
    for field in _PICTURES:
        source = getattr(request, field, None)
        if field in given and not hasattr(request, field):
            raise DanqingError(f"{field}: has no effect; '{path}' was painted without one")
        if field in given:
            changes[field] = str(given[field])
        elif isinstance(source, Reference):
            changes[field] = _beside(path, source, field)
    for field, picture, words in (
        ("regions", "mask", "a region's mask"),
        ("lora_regions", "mask", "a LoRA's mask"),
        ("controls", "image", "a control's image"),
    ):
        parts = getattr(request, field, ())
        sources = {
            place: source for place, part in enumerate(parts) if isinstance(source := getattr(part, picture), Reference)
        }
        if sources:
            changes[field] = tuple(
                part.model_copy(update={picture: _beside(path, sources[place], words)}) if place in sources else part
                for place, part in enumerate(parts)
            )
    if request.image_prompts:
        changes["image_prompts"] = tuple(_shown_again(path, asked) for asked in request.image_prompts)
    return request.model_copy(update=changes)


def _shown_again(path: Path, asked: ImagePrompt) -> ImagePrompt:
    """An image prompt with paths in place of its pictures, and of a file of faces that lies beside the painting."""

    def beside(source: PictureSource) -> PictureSource:
        return _beside(path, source, "an image prompt's picture") if isinstance(source, Reference) else source

    changes: dict[str, Any] = {"images": tuple(map(beside, asked.images))}
    if asked.mask is not None:
        changes["mask"] = beside(asked.mask)
    if asked.faces is not None and not path_of(asked.faces).is_file():
        changes["faces"] = str(path.parent / Path(asked.faces.replace("\\", "/")).name)
    return asked.model_copy(update=changes)


def _beside(path: Path, source: Reference, field: str) -> str:
    known = re.fullmatch(r"[0-9a-f]{32}", source.md5 or "")
    by_option = f" by --{field}" if field in _PICTURES else ", under its name, beside the picture"
    if not source.name and not known:
        raise DanqingError(f"{path}: the {field} it was painted from is not recorded; give it{by_option}")
    # a name from a file may not lead elsewhere
    name = source.name or f"{source.md5}.png"  # as AUTOMATIC1111 keeps it
    candidate = path.parent / Path(name.replace("\\", "/")).name
    if not candidate.is_file():
        raise DanqingError(f"{path}: the {field} it was painted from, '{name}', is not beside it; give it{by_option}")
    picture = open_picture(str(candidate), field)
    wanted, found = (source.sha256, pixels_sha256) if source.sha256 or not known else (source.md5, rgba_md5)
    if wanted and found(picture) != wanted:
        raise DanqingError(
            f"{path}: '{candidate}' is another picture than the {field} it was painted from; give that{by_option}"
        )
    return str(candidate)


def _further(told: Told, request: Painting) -> dict[str, Any]:
    """Further checkpoints, upscalers, controls, image prompts and the like, by name and hash where their recorded paths
    lead nowhere."""

    def found(value: str, key: str) -> str:
        known = told.others.get(key)
        return f"{known.name} [{known.sha256}]" if known and known.sha256 and not Path(value).exists() else value

    changes: dict[str, Any] = {}
    for field in _CHECKPOINTS:
        if value := getattr(told.request, field, None):
            changes[field] = found(value, field)

    if isinstance(request, TextToImage) and request.hr_upscaler is not None:
        changes["hr_upscaler"] = found(request.hr_upscaler, "hr_upscaler")
    if isinstance(request, ImageToImage) and (tiles := request.sd_upscale) is not None:
        changes["sd_upscale"] = tiles.model_copy(update={"upscaler": found(tiles.upscaler, "sd_upscale")})

    def module(text: str, key: str) -> str:
        row, file = find_module(text)
        if row is None:
            return found(text, key)
        return f"{row.name}:{found(file, key)}" if file else text

    changes["controls"] = tuple(
        unit.model_copy(
            update={
                "model": found(unit.model, f"controls.{index}"),
                "module": module(unit.module, f"controls.{index}.module.0"),
            }
        )
        for index, unit in enumerate(request.controls)
    )
    if (learned := request.aesthetic) is not None:
        projection = learned.projection and found(learned.projection, "aesthetic.projection")
        files = {"embedding": found(learned.embedding, "aesthetic"), "projection": projection}
        changes["aesthetic"] = learned.model_copy(update=files)
    changes["image_prompts"] = tuple(
        asked.model_copy(
            update={
                field: found(getattr(asked, field) or "", f"image_prompts.{index}.{field}") or None
                for field in ("model", "encoder", "identity_net")
            }
        )
        for index, asked in enumerate(request.image_prompts)
    )
    return changes


def _load(path: Path, told: Told, name: str | None, device: str | None, dtype: str | None, say: Say) -> Model:
    settings = load_settings()
    platform = told.resolved.platform if told.resolved else None
    if platform and device is None:
        device = _available(platform.device)
    vae = _vae(told.vae, say) if told.vae else None
    engine, quantize = recorded(platform.engine) if platform else (None, None)
    return load(
        name or _checkpoint(path, told, settings),
        vae=vae,
        device=device,
        dtype=dtype or (platform.dtype if platform else None),
        engine=engine,
        quantize=quantize,
        settings=settings.model_copy(update={"default_model": None}),
    )


def _available(device: str) -> str | None:
    """The recorded kind of device, or None where this machine has none."""
    try:
        pick_device(device)
    except DanqingError:
        return None
    return device


def _checkpoint(path: Path, told: Told, settings: Settings) -> str | None:
    """What to load: by hash, by name, by the path it had; None is the bundled model."""
    known, asked = told.checkpoint, told.request.model
    tries = []
    if known and known.sha256:
        tries += [f"{known.name} [{known.sha256}]" if known.name else known.sha256, known.sha256]
    if asked:
        tries.append(asked)
    if known and known.name and (asked or told.resolved is None):
        tries.append(known.name)
    for text in tries:
        try:
            return str(find(text, "checkpoint", settings).path)
        except DanqingError:
            continue
    if told.resolved and not asked:
        return None
    if known is None:
        raise DanqingError(f"{path}: does not tell its checkpoint; give one by --model")
    shown = f"'{known.name}'" if known.name else "of that hash"
    digest = f" (hash {known.sha256[:10]})" if known.sha256 else ""
    raise DanqingError(f"{path}: its checkpoint {shown}{digest} is not here; give it by --model")


def _vae(known: Reference, say: Say) -> str | None:
    for text in ([f"{known.name} [{known.sha256}]"] if known.sha256 else []) + [known.name]:
        try:
            return find_vae(text)
        except DanqingError:
            continue
    say(f"the autoencoder '{known.name}' is not here; the checkpoint's own is taken")
    return None


def _differences(before: ResolvedRequest, now: ResolvedRequest) -> Iterator[str]:
    """What the picture was made with and is not made with now."""
    if before.numerics != now.numerics:
        yield f"numerics: painted by version {before.numerics} of the arithmetic, now {now.numerics}"
    files = {"checkpoint": (before.checkpoint, now.checkpoint), "vae": (before.vae, now.vae)}
    files |= {field: (before.others.get(field), now.others.get(field)) for field in {**before.others, **now.others}}
    for was, step in zip(before.enlarged, now.enlarged):
        files |= {name: (was.files.get(name), step.files.get(name)) for name in {**was.files, **step.files}}
    for field, (old, new) in files.items():
        if _shown(old) != _shown(new):
            yield f"{field}: was {_shown(old)}, now {_shown(new)}"
    if before.family != now.family:
        yield f"family: was {before.family}, now {now.family}"
    if before.platform and now.platform:
        for part in type(before.platform).model_fields:
            old, new = getattr(before.platform, part), getattr(now.platform, part)
            if old != new:
                yield f"{part}: was {old}, now {new}"


def _shown(reference: Reference | None) -> str:
    if reference is None:
        return "none"
    return f"{reference.name} [{reference.sha256[:10]}]" if reference.sha256 else reference.name


def _compare(file: PictureFile, told: Told, picture: Picture) -> tuple[bool | None, list[str]]:
    """Whether the pixels are the recorded ones, else the file's; and how far they are apart."""
    recorded = told.resolved.pixels if told.resolved else None
    now, stored = pixels_sha256(picture.image), pixels_sha256(file.image)
    if now in (recorded, stored):
        return True, []
    why = []
    if recorded and recorded != stored and not file.lossy:
        why.append("pixels: the file was edited after it was painted")
    if picture.image.size != file.image.size:
        (w, h), (was_w, was_h) = picture.image.size, file.image.size
        why.append(f"size: was {was_w}x{was_h}, now {w}x{h}")
    else:
        why.append(f"pixels: {_distance(picture.image, file.image):.2f} of 255 apart on average")
    return (None if recorded is None and file.lossy else False), why


def _distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of the RGB values, 0 to 255; 255 for pictures of different sizes."""
    if one.size != other.size:
        return 255.0
    values = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (one, other)]
    return float(np.abs(values[0] - values[1]).mean())
