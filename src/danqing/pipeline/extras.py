"""Finished pictures made better: enlarged, two upscalers blended, faces restored (AUTOMATIC1111's extras)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from danqing.errors import DanqingError
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.metadata.enlarged_text import enlarged_pairs
from danqing.metadata.files import RECORD_KEY, SUFFIXES, read_picture, save
from danqing.metadata.infotext import quote
from danqing.metadata.pixels import pixels_sha256
from danqing.metadata.read import read_record
from danqing.paths import path_of
from danqing.pipeline.faces import Detector, Restorer, load_face_detector, load_restorer, restore_faces
from danqing.pipeline.models import Say, hashes_later, print_note
from danqing.pipeline.upscale import (
    Shown,
    blended,
    centre_crop,
    covering,
    load_upscaler,
    target_size,
    upscale,
    upscaler_path,
)
from danqing.request_parts import Reference
from danqing.requests import Enlarged, ResolvedRequest, Upscale

Enhance = Callable[[Image.Image, Shown], Image.Image]
"""(picture, told of tiles) -> the better one."""


def enhancer(
    request: Upscale,
    *,
    device: str | None = None,
    dtype: str | None = None,
    say: Say = print_note,
    settings: Settings | None = None,
) -> Enhance:
    """What `request` asks for, its networks loaded once, for as many pictures as there are.

    Raises DanqingError for a name that is unknown or a file that does not serve.
    """
    wanted = [(request.upscaler, 1.0)]
    if request.upscaler_2 is not None:
        wanted.append((request.upscaler_2, request.upscaler_2_visibility))
    upscalers = [
        (load_upscaler(name, device=device, dtype=dtype, settings=settings, steps=request.ldsr_steps), seen)
        for name, seen in wanted
        if seen
    ]
    if request.ldsr_steps is not None and not any(upscaler.diffuses for upscaler, _ in upscalers):
        say("ldsr_steps has no effect: no upscaler is LDSR")
    faces: tuple[Detector, Restorer] | None = None
    if request.face_restorer is not None:
        restorer = load_restorer(request.face_restorer, fidelity=request.fidelity, device=device, settings=settings)
        faces = load_face_detector(request.face_detector, settings=settings), restorer

    def restored(image: Image.Image) -> Image.Image:
        if faces is None:
            return image
        image, count = restore_faces(image, *faces, request.face_visibility)
        if not count and request.face_visibility:
            say("no face was found in a picture")
        return image

    def enhance(image: Image.Image, shown: Shown) -> Image.Image:
        image = restored(image) if request.faces_first else image
        size, box = _sizes(request, image.size)
        result: Image.Image | None = None
        for index, (upscaler, visibility) in enumerate(upscalers):

            def told(done: int, total: int, index: int = index) -> None:
                shown(index * total + done, len(upscalers) * total)

            larger = upscale(image, upscaler, size, tile=request.tile, progress=told, say=say)
            result = larger if result is None else blended(result, larger, visibility)
        assert result is not None  # the first upscaler is always there
        result = centre_crop(result, box)
        return result if request.faces_first else restored(result)

    return enhance


def _sizes(request: Upscale, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(what the picture is enlarged to, what is cut out of the middle of that)."""
    width, height = request.width, request.height
    if width is not None and height is not None:
        enlarged = covering(size, (width, height))
        return enlarged, (width, height) if request.crop else enlarged
    if width is None and height is None:
        enlarged = target_size(size, request.scale or 2.0)
    else:
        scale = width / size[0] if width is not None else (height or 0) / size[1]
        enlarged = target_size(
            size, (width or max(round(size[0] * scale), 1), height or max(round(size[1] * scale), 1))
        )
    return enlarged, enlarged


def pictures_in(sources: Iterable[Path]) -> list[Path]:
    """The pictures named, and those in the folders named, by name; what lies in folders below is left alone.

    Raises DanqingError for what is not there and for a folder without pictures.
    """
    found: list[Path] = []
    for source in sources:
        if not source.is_dir():
            if not source.exists():
                raise DanqingError(f"{source}: no such picture or folder")
            found.append(source)
            continue
        inside = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not inside:
            raise DanqingError(f"{source}: no pictures in this folder; {', '.join(SUFFIXES)} are read")
        found += inside
    return found


def postprocessed(texts: Mapping[str, str], request: Upscale, before: Image.Image, after: Image.Image) -> str:
    """The infotext of a picture that was made larger: its own, with AUTOMATIC1111's words on what was done since."""
    pairs = enlarged_pairs(request, before.size, after.size)
    new = ", ".join(f"{key}: {quote(value)}" for key, value in pairs.items())
    old = texts.get("parameters", "").rstrip()
    return f"{old}, {new}" if old else new


def enlarged_record(
    texts: Mapping[str, str],
    request: Upscale,
    before: Image.Image,
    after: Image.Image,
    settings: Settings | None = None,
) -> ResolvedRequest | None:
    """The record of a picture that was made larger: Danqing's own of the picture that went in, and what was done since.

    None where that has none, or was edited since it was painted: nothing could be painted again by it.
    """
    try:
        painted = read_record(texts[RECORD_KEY]) if RECORD_KEY in texts else None
    except DanqingError:
        painted = None
    if painted is None or painted.pixels != pixels_sha256(before):
        return None
    step = Enlarged(request=request, before=before.size, after=after.size, files=file_references(request, settings))
    return painted.model_copy(update={"enlarged": (*painted.enlarged, step), "pixels": pixels_sha256(after)})


def file_references(request: Upscale, settings: Settings | None = None) -> dict[str, Reference]:
    """The networks that `request` needs, by its fields: their names and hashes. Raises DanqingError for an unknown one."""
    settings = settings or load_settings()
    paths = {"upscaler": upscaler_path(request.upscaler, settings)}
    if request.upscaler_2 is not None and request.upscaler_2_visibility:
        paths["upscaler_2"] = upscaler_path(request.upscaler_2, settings)
    if request.face_restorer is not None:
        paths["face_restorer"] = find(request.face_restorer, "face_restorer", settings).path
        paths["face_detector"] = find(request.face_detector, "face_detector", settings).path
    hashes = hashes_later({name: str(path) for name, path in paths.items() if path is not None})
    return {
        name: Reference(name=path.name, sha256=hashes[name].result() if name in hashes else None)
        for name, path in paths.items()
        if path is not None
    }


def enlarged_again(
    image: Image.Image, steps: Sequence[Enlarged], say: Say = print_note
) -> tuple[Image.Image, tuple[Enlarged, ...]]:
    """(`image` through what was done to it once more, that with the files of now).

    Raises DanqingError for a network that is not here.
    """
    done = []
    for step in steps:
        changes = {
            name: f"{known.name} [{known.sha256}]"
            for name, known in step.files.items()
            if known.sha256 and not path_of(getattr(step.request, name)).exists()
        }
        request = step.request.model_copy(update=changes)
        done.append(step.model_copy(update={"files": file_references(request)}))
        image = enhancer(request, say=say)(image, lambda done, total: None)
    return image, tuple(done)


def enhance_file(
    source: Path,
    target: Path,
    enhance: Enhance,
    request: Upscale,
    shown: Shown,
    metadata: bool = True,
    *,
    quality: int = 95,
    lossless: bool = True,
) -> None:
    """Read `source`, write what `enhance` makes of it to `target`, turned upright; `quality` and `lossless` as for `save`.

    With `metadata` it keeps its infotext, with AUTOMATIC1111's words on what was done since, and Danqing's own record
    likewise (`enlarged_record`). Raises DanqingError.
    """
    opened = read_picture(source)
    upright = ImageOps.exif_transpose(opened.image)
    image = enhance(upright, shown)
    text = postprocessed(opened.texts, request, upright, image) if metadata else None
    made = enlarged_record(opened.texts, request, upright, image) if metadata else None
    record = made.model_dump_json(exclude_none=True) if made else None
    if target.suffix.lower() in (".jpg", ".jpeg") and "A" in image.mode:
        raise DanqingError(f"{target}: JPEG has no transparency, but the picture has; write a .png or .webp")
    save(image, target, text, record, quality=quality, lossless=lossless)
