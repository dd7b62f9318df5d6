"""Masks for painting over part of a picture: 255 is painted. After AUTOMATIC1111, where it matters."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from danqing.pipeline.images import mask_pixels
from danqing.vocabulary import Dialect

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


def read_mask(picture: Image.Image, binary: bool) -> Image.Image:
    """A mask from a picture: its opacity where it is transparent anywhere, else its brightness; in AUTOMATIC1111's way.

    `binary` cuts opacity at 128. Brightness stays as grey as it is: the sampler rounds it, at the latents' size.
    """
    if picture.mode != "RGBA" or picture.getchannel("A").getextrema() == (255, 255):
        return picture.convert("L")
    opacity = picture.getchannel("A")
    return opacity.point(lambda value: 255 if value > 128 else 0) if binary else opacity


def transparent_part(picture: Image.Image, binary: bool) -> Image.Image:
    """A mask of what is transparent in a picture."""
    mask = ImageOps.invert(picture.getchannel("A"))
    return mask.point(lambda value: 255 if value > 127 else 0) if binary else mask


def blur(mask: Image.Image, x: float, y: float) -> Image.Image:
    """`mask` under a Gaussian of deviations `x` and `y` pixels, cut at 2.5 of them, mirrored at the edges.

    Rounded after each of both, as AUTOMATIC1111 blurs one after the other.
    """
    values = np.asarray(mask, dtype=np.float64)
    for axis, deviation in ((1, x), (0, y)):
        if deviation > 0:
            values = _gaussian(values, deviation, axis).round()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _gaussian(values: np.ndarray, deviation: float, axis: int) -> np.ndarray:
    radius = int(2.5 * deviation + 0.5)
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    kernel /= kernel.sum()
    length = values.shape[axis]
    # indices that walk back and forth, for kernels wider than the picture too
    walk = np.arange(-radius, length + radius) % max(2 * length - 2, 1)
    mirrored = np.take(values, np.minimum(walk, abs(2 * length - 2 - walk)) if length > 1 else walk * 0, axis=axis)
    return np.asarray(np.apply_along_axis(lambda row: np.convolve(row, kernel, "valid"), axis, mirrored))


def bounds(mask: Image.Image, padding: int, width: int, height: int) -> Box | None:
    """The box around what is masked, `padding` pixels larger, grown to width:height where the picture has room.

    None where nothing is masked.
    """
    box = mask.getbbox()
    if box is None:
        return None
    left, right = max(box[0] - padding, 0), min(box[2] + padding, mask.width)
    top, bottom = max(box[1] - padding, 0), min(box[3] + padding, mask.height)
    if (right - left) * height > width * (bottom - top):
        top, bottom = _grown(top, bottom, int((right - left) * height / width), mask.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * width / height), mask.width)
    return left, top, right, bottom


def _grown(first: int, last: int, length: int, limit: int) -> tuple[int, int]:
    """A stretch of `length` (at most `limit`) around [first, last), within [0, limit)."""
    length = min(max(length, last - first), limit)
    start = min(max(first - (length - (last - first)) // 2, 0), limit - length)
    return start, start + length


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """`image` with what is masked filled from around it: blurs of its surroundings, the finest on top."""
    blank = Image.new("RGBa", image.size)
    blank.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    out = Image.new("RGBA", image.size)
    for radius, repeats in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        layer = blank.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            out.alpha_composite(layer)
    return out.convert("RGB")


def dilate(mask: Image.Image, pixels: int) -> Image.Image:
    """`mask` grown by so many pixels on each side, or shrunk where that is negative."""
    for _ in range(abs(pixels)):
        mask = mask.filter(ImageFilter.MaxFilter(3) if pixels > 0 else ImageFilter.MinFilter(3))
    return mask


def latent_mask(mask: Image.Image, cells: tuple[int, int], rounded: bool, dialect: Dialect) -> Tensor:
    """(1, 1, h, w) float32, 1 where to paint: `mask` at latent size, `cells` = (w, h), the way each tool shrinks it."""
    if dialect == "diffusers":
        return interpolate((mask_pixels(mask) >= 0.5).float(), size=cells[::-1])
    if dialect == "comfyui":
        return interpolate(mask_pixels(mask), size=cells[::-1], mode="bilinear")
    small = mask_pixels(mask.resize(cells, Image.Resampling.BICUBIC))
    return small.round() if rounded else small


def ramp(size: tuple[int, int], inner: Box, width: int) -> Image.Image:
    """A mask of `size` that is 255 outside `inner` and falls to 0 within `width` pixels of the inner edges.

    Edges of `inner` that are edges of the picture have no ramp.
    """
    left, top, right, bottom = inner
    depth = np.full(size[::-1], math.inf)
    for low, high, end, axis in ((left, right, size[0], 1), (top, bottom, size[1], 0)):
        at = np.expand_dims(np.arange(end) + 0.5, 1 - axis)
        for edge, inwards in ((low, at - low), (end - high, high - at)):
            if edge > 0:
                depth = np.minimum(depth, inwards)
    share = 1 - depth / width if width else (depth < 0).astype(np.float64)
    return Image.fromarray((share.clip(0, 1) * 255).round().astype(np.uint8))
