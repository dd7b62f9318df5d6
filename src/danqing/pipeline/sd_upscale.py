"""SD upscale: a picture enlarged, and painted over tile by tile, so that a model adds detail at any size."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.errors import DanqingError
from danqing.pipeline.images import flatten
from danqing.pipeline.over import image_to_image, later
from danqing.pipeline.run import Painter, Studio
from danqing.pipeline.upscale import load_upscaler, upscale
from danqing.requests import ImageToImage, ResolvedRequest
from danqing.runtime.tiles import starts, tiled
from danqing.sampling.types import Step


def sd_upscaled(resolved: ResolvedRequest, studio: Studio) -> Painter:
    """The painter of an ImageToImage with `sd_upscale`, after AUTOMATIC1111's script; its width x height is a tile's.

    Tile i has each picture's seed + i. A `denoising_strength` of 0.2 to 0.4 keeps what the picture shows.
    Raises DanqingError for an unknown upscaler, or tiles that their overlap leaves nothing of.
    """
    request = resolved.request
    assert isinstance(request, ImageToImage)
    assert request.sd_upscale is not None
    settings, tile = request.sd_upscale, (request.width or 0, request.height or 0)
    if settings.overlap >= min(tile):
        raise DanqingError(
            f"sd_upscale: tiles of {tile[0]}x{tile[1]} cannot overlap by {settings.overlap}; give less, or a larger size"
        )
    large = flatten(studio.pictures["image"], request.background_color)
    upscaler = load_upscaler(settings.upscaler, device=str(studio.model.device))
    if upscaler.name != "None":
        large = upscale(large, upscaler, settings.scale, say=studio.note)
    parts = cut(large, tile, settings.overlap)
    cell = studio.model.family.autoencoder.downscale
    width, height = (max(round(side / cell), 64 // cell) * cell for side in parts[0].size)
    alone = resolved.model_copy(
        update={"request": request.model_copy(update={"sd_upscale": None, "width": width, "height": height})}
    )

    def painter(part: Image.Image) -> Painter:
        return image_to_image(alone, replace(studio, pictures={**studio.pictures, "image": part}))

    def batch(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
        painted: list[list[Image.Image]] = []
        for number, part in enumerate(parts):
            painted.append((yield from painter(part).batch([later(single, number) for single in singles])))
        return [joined(row, large.size, tile, settings.overlap) for row in zip(*painted)]

    return Painter(len(parts) * painter(parts[0]).count, batch)


def cut(image: Image.Image, tile: tuple[int, int], overlap: int) -> list[Image.Image]:
    """The tiles of `image`, row by row, each (width, height) = `tile` or as much of it as the picture has."""
    width, height = (min(side, whole) for side, whole in zip(tile, image.size))
    places = [(x, y) for y in starts(image.height, height, overlap) for x in starts(image.width, width, overlap)]
    return [image.crop((x, y, x + width, y + height)) for x, y in places]


def joined(parts: Sequence[Image.Image], size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Image.Image:
    """The RGB picture of `size` (width, height) whose tiles, as `cut` orders them, are `parts`, blended where they overlap.

    One of another size is brought to its place's. Raises ValueError unless 0 <= overlap < both sides of `tile`.
    """
    left = iter(parts)

    def part(place: Tensor) -> Tensor:
        image, there = next(left).convert("RGB"), (place.shape[-1], place.shape[-2])
        return _values(image if image.size == there else image.resize(there, Image.Resampling.LANCZOS))

    values = tiled(part, torch.empty(1, 0, size[1], size[0]), tile, overlap)
    return Image.fromarray(values[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _values(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 from 0 to 255."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None]
