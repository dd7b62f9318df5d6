"""SD upscale: a picture enlarged, and painted over tile by tile, so that a model adds detail at any size."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from danqing.adapters.steer import parts_of
from danqing.errors import DanqingError
from danqing.pipeline.images import flatten
from danqing.pipeline.over import image_to_image, later
from danqing.pipeline.run import Painter, Studio
from danqing.pipeline.upscale import load_upscaler, upscale
from danqing.requests import ImageToImage, ResolvedRequest
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
        told = partial(studio.aside, upscaler.name)
        large = upscale(large, upscaler, settings.scale, progress=told, say=studio.note)
    parts = cut(large, tile, settings.overlap)
    cell = studio.model.family.autoencoder.downscale
    width, height = (max(round(side / cell), 64 // cell) * cell for side in parts[0].size)
    alone = resolved.model_copy(
        update={"request": request.model_copy(update={"sd_upscale": None, "width": width, "height": height})}
    )

    boxes = cuts(large.size, tile, settings.overlap)

    def painter(number: int) -> Painter:
        controls = parts_of(studio.controls, large.size, boxes[number])
        shown = {**studio.pictures, "image": parts[number]}
        return image_to_image(alone, replace(studio, pictures=shown, controls=controls))

    def batch(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
        painted: list[list[Image.Image]] = []
        for number in range(len(parts)):
            painted.append((yield from painter(number).batch([later(single, number) for single in singles])))
        return [joined(row, large.size, tile, settings.overlap) for row in zip(*painted)]

    return Painter(len(parts) * painter(0).count, batch)


def places(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: as few as overlap by `overlap` or more, at even distances."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [int(number * (length - tile) / (count - 1)) for number in range(count)]


def cut(image: Image.Image, tile: tuple[int, int], overlap: int) -> list[Image.Image]:
    """The tiles of `image`, row by row, each (width, height) = `tile` or as much of it as the picture has."""
    return [image.crop(box) for box in cuts(image.size, tile, overlap)]


def cuts(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> list[tuple[int, int, int, int]]:
    """Where `cut` cuts a picture of `size`: (left, upper, right, lower) of each tile."""
    width, height = (min(side, whole) for side, whole in zip(tile, size))
    columns, rows = (places(whole, side, overlap) for whole, side in zip(size, tile))
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def joined(parts: Sequence[Image.Image], size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Image.Image:
    """The RGB picture of `size` (width, height) whose tiles, as `cut` orders them, are `parts`.

    Each fades in over its first `overlap` pixels, from left to right, and rows of tiles from above. A tile of another
    size is brought to its place's.
    """
    width, height = (min(side, whole) for side, whole in zip(tile, size))
    left, out = iter(parts), np.zeros((size[1], size[0], 3))
    for y in places(size[1], tile[1], overlap):
        row = np.zeros((height, size[0], 3))
        for x in places(size[0], tile[0], overlap):
            part = next(left).convert("RGB")
            part = part if part.size == (width, height) else part.resize((width, height), Image.Resampling.LANCZOS)
            _lay(row, np.asarray(part), x, overlap, 1)
        _lay(out, row, y, overlap, 0)
    return Image.fromarray(out.round().clip(0, 255).astype(np.uint8))


def _lay(onto: np.ndarray, part: np.ndarray, at: int, overlap: int, axis: int) -> None:
    """`part` into `onto` from `at` on along `axis`, faded in over `overlap` unless it is the first."""
    length = part.shape[axis]
    share = np.minimum(np.arange(length) / overlap, 1) if at and overlap else np.ones(length)
    share = share.reshape(-1, *[1] * (2 - axis))
    there = (slice(None),) * axis + (slice(at, at + length),)
    onto[there] = onto[there] * (1 - share) + part * share
