"""Finished pictures made better: enlarged, two upscalers blended, faces restored (AUTOMATIC1111's extras)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath

from PIL import Image, ImageOps

from danqing.errors import DanqingError
from danqing.library.settings import Settings
from danqing.metadata.files import SUFFIXES, read_picture, save
from danqing.metadata.infotext import quote
from danqing.pipeline.faces import Detector, Restorer, load_face_detector, load_restorer, restore_faces
from danqing.pipeline.models import Say, print_note
from danqing.pipeline.upscale import Shown, blended, centre_crop, covering, load_upscaler, target_size, upscale
from danqing.requests import Upscale

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
    """The infotext of a picture that was made larger: its own, with AUTOMATIC1111's words on what was done since (its
    scripts/postprocessing_upscale.py, _gfpgan.py, _codeformer.py); what it has no words for follows."""
    done: dict[str, object] = {}
    if request.width and request.height:
        done["Postprocess upscale to"] = f"{request.width}x{request.height}"
        if request.crop:
            done["Postprocess crop to"] = f"{after.width}x{after.height}"
    else:
        done["Postprocess upscale by"] = f"{after.width / before.width:g}"
    done["Postprocess upscaler"] = _bare(request.upscaler)
    if request.upscaler_2 is not None and request.upscaler_2_visibility:
        done["Postprocess upscaler 2"] = _bare(request.upscaler_2)
        done["Postprocess upscaler 2 visibility"] = request.upscaler_2_visibility
    if request.face_restorer is not None and request.face_visibility:
        name = _bare(request.face_restorer)
        former = "codeformer" in name.lower()
        known = "CodeFormer" if former else "GFPGAN" if "gfpgan" in name.lower() else None
        done[f"{known or 'Face restorer'} visibility"] = round(request.face_visibility, 3)
        if former:
            done["CodeFormer weight"] = request.fidelity
        if known is None:
            done["Face restorer"] = name
    new = ", ".join(f"{key}: {quote(value)}" for key, value in done.items())
    old = texts.get("parameters", "").rstrip()
    return f"{old}, {new}" if old else new


def _bare(name: str) -> str:
    """A file's name, or a name as it is."""
    return PurePath(name.replace("\\", "/")).name


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

    With `metadata` it keeps its infotext, with AUTOMATIC1111's words on what was done since. Danqing's own record
    is not kept: the pixels are no longer those that it paints. Raises DanqingError.
    """
    opened = read_picture(source)
    upright = ImageOps.exif_transpose(opened.image)
    image = enhance(upright, shown)
    text = postprocessed(opened.texts, request, upright, image) if metadata else None
    if target.suffix.lower() in (".jpg", ".jpeg") and "A" in image.mode:
        raise DanqingError(f"{target}: JPEG has no transparency, but the picture has; write a .png or .webp")
    save(image, target, text, None, quality=quality, lossless=lossless)
