"""Pictures that come in: opened, flattened, brought to a size, turned into tensors."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel
from torch import Tensor

from danqing.errors import DanqingError
from danqing.metadata.pixels import pixels_sha256, rgba_md5
from danqing.paths import path_of
from danqing.request_parts import PictureSource, Reference, ResizeMode
from danqing.vocabulary import quoted

FIELDS = ("image", "mask", "subimage")
"""A request's fields that are pictures; those of its regions, controls and image prompts come under `regions.0.mask`,
`controls.0.image`, `image_prompts.0.images.0` and `image_prompts.0.mask`."""

MASKED = ("regions", "lora_regions")
"""Its fields of parts of the picture, each of which may have a mask: `regions.0.mask`."""


def open_picture(source: PictureSource, field: str = "image") -> Image.Image:
    """The picture of a path, a data URL or a `Reference`, RGB or RGBA, turned as its EXIF orientation says.

    A `Reference` is looked for by its name, here, and must have its pixels. Raises DanqingError that names `field`.
    """
    if isinstance(source, Reference):
        return _referenced(source, field)
    shown = "the data URL" if source.startswith("data:") else f"'{source}'"
    try:
        with Image.open(_bytes(source, field) if source.startswith("data:") else path_of(source)) as opened:
            return _plain(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise DanqingError(f"{field}: there is no file {shown}") from None
    except UnidentifiedImageError:
        raise DanqingError(f"{field}: {shown} is no picture that can be read") from None
    except Image.DecompressionBombError:
        raise DanqingError(f"{field}: {shown} has more pixels than can be opened safely") from None
    except (OSError, SyntaxError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DanqingError(f"{field}: {shown} cannot be read: {why}") from None


def open_pictures(request: BaseModel) -> dict[str, Image.Image]:
    """Every picture that `request` names, by its field. Raises DanqingError."""
    return {field: open_picture(source, field) for field, source in _sources(request).items()}


def with_references(request: Any, pictures: Mapping[str, Image.Image]) -> Any:
    """`request` with a `Reference` in the place of each of its pictures."""
    named = {field: reference(source, pictures[field]) for field, source in _sources(request).items()}
    changes: dict[str, Any] = {field: named[field] for field in FIELDS if field in named}
    for field in MASKED:
        if any(name.startswith(f"{field}.") for name in named):
            changes[field] = tuple(
                region.model_copy(update={"mask": named.get(f"{field}.{index}.mask")})
                for index, region in enumerate(getattr(request, field))
            )
    if any(field.startswith("controls.") for field in named):
        changes["controls"] = tuple(
            unit.model_copy(update={"image": named.get(f"controls.{index}.image")})
            for index, unit in enumerate(request.controls)
        )
    if any(field.startswith("image_prompts.") for field in named):
        changes["image_prompts"] = tuple(
            asked.model_copy(
                update={
                    "images": tuple(named[f"image_prompts.{index}.images.{n}"] for n in range(len(asked.images))),
                    "mask": named.get(f"image_prompts.{index}.mask"),
                }
            )
            for index, asked in enumerate(request.image_prompts)
        )
    return request.model_copy(update=changes)


def reference(source: PictureSource, image: Image.Image) -> Reference:
    """A picture's name, without its folder, and the hashes of its pixels."""
    if isinstance(source, Reference):
        name = source.name
    else:
        name = "picture" if source.startswith("data:") else Path(source).name
    return Reference(name=name, sha256=pixels_sha256(image), md5=rgba_md5(image))


def _sources(request: BaseModel) -> dict[str, PictureSource]:
    named = {field: getattr(request, field, None) for field in FIELDS}
    for field in MASKED:
        for index, region in enumerate(getattr(request, field, ())):
            named[f"{field}.{index}.mask"] = region.mask
    for index, unit in enumerate(getattr(request, "controls", ())):
        named[f"controls.{index}.image"] = unit.image
    for index, asked in enumerate(getattr(request, "image_prompts", ())):
        named[f"image_prompts.{index}.mask"] = asked.mask
        named |= {f"image_prompts.{index}.images.{n}": source for n, source in enumerate(asked.images)}
    return {field: source for field, source in named.items() if source is not None}


def _referenced(source: Reference, field: str) -> Image.Image:
    path = Path(source.name)
    if not path.is_file():
        raise DanqingError(f"{field}: the picture '{source.name}' is needed; give it, or put it into this folder")
    image = open_picture(str(path), field)
    if source.sha256 not in (None, pixels_sha256(image)):
        raise DanqingError(f"{field}: '{source.name}' is another picture than the one that was used")
    return image


def _bytes(url: str, field: str) -> io.BytesIO:
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DanqingError(f"{field}: a data URL should begin with data:image/png;base64, but it is {quoted(url)}")
    try:
        return io.BytesIO(base64.b64decode(data, validate=True))
    except binascii.Error:
        raise DanqingError(f"{field}: the data URL holds no base64") from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).round().astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def flatten(image: Image.Image, background: str = "#ffffff") -> Image.Image:
    """An RGB picture: what is transparent shows `background`."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def fit(image: Image.Image, width: int, height: int, mode: ResizeMode = "just resize") -> Image.Image:
    """`image` at exactly width x height, by AUTOMATIC1111's resize modes, with Lanczos.

    `just resize` stretches, `crop and resize` covers and cuts, `resize and fill` contains and repeats the edges;
    `latent upscale` stretches, for whoever needs pixels of it nevertheless.
    """
    if image.size == (width, height):
        return image
    if mode in ("just resize", "latent upscale"):
        return image.resize((width, height), Image.Resampling.LANCZOS)
    covers = mode == "crop and resize"
    wider = width * image.height > height * image.width
    if wider == covers:
        inner = (width, max(image.height * width // image.width, 1))
    else:
        inner = (max(image.width * height // image.height, 1), height)
    resized = image.resize(inner, Image.Resampling.LANCZOS)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    if covers:
        return resized.crop((-left, -top, width - left, height - top))
    grey = [] if image.mode == "L" else [(0, 0)]
    margins = [(top, height - inner[1] - top), (left, width - inner[0] - left), *grey]
    return Image.fromarray(np.pad(np.asarray(resized), margins, mode="edge"))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture -> (1, 3, H, W) float32 in [-1, 1]."""
    values = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32)) / 255
    return (values * 2 - 1).permute(2, 0, 1)[None].contiguous()


def mask_pixels(mask: Image.Image) -> Tensor:
    """A grey picture -> (1, 1, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32) / 255)[None, None]
