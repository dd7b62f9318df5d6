"""SD upscale: a picture enlarged, and painted over tile by tile, so that a model adds detail at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.families import Model
from danqing.pipeline.expand import draw_seed
from danqing.pipeline.models import Say, print_note
from danqing.pipeline.paint import paint
from danqing.pipeline.upscale import Shown, Upscaler, upscale
from danqing.requests import ImageToImage, read
from danqing.runtime.tiles import tiled

Repaint = Callable[[Image.Image, int], Image.Image]
"""(tile, RGB, its number from 0) -> the tile painted over."""


def sd_upscale(
    image: Image.Image,
    model: Model,
    fields: dict[str, Any],
    *,
    upscaler: str | Path | Upscaler = "Lanczos",
    scale: float | tuple[int, int] = 2.0,
    tile: int | None = None,
    overlap: int = 64,
    progress: Shown = lambda done, total: None,
    say: Say = print_note,
) -> Image.Image:
    """`image` enlarged by `upscaler`, and painted over in tiles of `tile` pixels (the family's size unless given).

    `fields` are those of `ImageToImage` but the picture and size; each tile's seed is one more than the last's, as in
    AUTOMATIC1111's script. A `denoising_strength` of 0.2 to 0.4 keeps what the picture shows. Result RGB.
    Raises DanqingError for a field that is wrong, ValueError unless 0 <= overlap < tile.
    """
    side = tile or model.family.defaults.width
    large = upscale(image, upscaler, scale, say=say).convert("RGB")
    first = fields.get("seed")
    seed = draw_seed() if first in (None, -1, "-1", "") else int(first)

    def repaint(part: Image.Image, number: int) -> Image.Image:
        request = read(ImageToImage, {**fields, "image": part, "seed": seed + number, "batch_size": 1, "n_iter": 1})
        return paint(request, model, say=say)[0].image

    return repaint_tiles(large, repaint, side, overlap, progress)


def repaint_tiles(
    image: Image.Image, repaint: Repaint, side: int, overlap: int, progress: Shown = lambda done, total: None
) -> Image.Image:
    """An RGB picture with each tile of `side` pixels painted over by `repaint`, blended across overlaps of `overlap`.

    A tile that comes back in another size is brought to its place's. Raises ValueError unless 0 <= overlap < side.
    """
    numbers = iter(range(1 << 30))

    def painted(pixels: Tensor) -> Tensor:
        part = Image.fromarray(pixels[0].to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
        out = repaint(part, next(numbers)).convert("RGB")
        return _values(out if out.size == part.size else out.resize(part.size, Image.Resampling.LANCZOS))

    values = tiled(painted, _values(image), side, overlap, done=progress)
    return Image.fromarray(values[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _values(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 from 0 to 255."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None]
