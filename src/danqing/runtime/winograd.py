"""3x3 convolutions with a quarter of the products, or four ninths (Winograd; Lavin & Gray 2016, arXiv:1509.09308).

The picture is cut into tiles of N x N pixels that overlap by two. Each tile and each weight becomes N x N values of
other kinds, the kinds are multiplied each for itself, as linear layers do, and the products become (N - 2) x (N - 2)
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FEW_CHANNELS = 256
FEW_PIXELS = 1 << 8
"""With fewer of either a plain convolution is as fast."""
MANY_WEIGHTS = 12 << 20
"""So many are too many for `FOUR`, by which they take four times their memory."""
FEW_PIXELS_OF_MANY = 1 << 9
"""In bfloat16 with fewer pixels changing `MANY_WEIGHTS` takes longer than `TWO` saves."""
BAND = 1 << 23
"""Values of tiles at a time: 32 MB of float32."""
CHUNK = 1 << 18
"""Weights that are changed at a time, which stay in the cache."""


@dataclass(frozen=True)
class Way:
    """How tiles of `side` x `side` pixels and weights become one another (Lavin & Gray's B^T, G and A^T in both
    directions)."""

    side: int
    of_tiles: Tensor
    """(side², side²)"""
    of_weights: Tensor
    """(side², 9)"""
    to_pixels: Tensor
    """((side - 2)², side²)"""


def _way(points: Sequence[float]) -> Way:
    """Toom and Cook's: polynomials are multiplied by their values at the points and at infinity.

    Pixels and weights are the coefficients; A^T and G have the powers of the points, B^T the polynomials that are zero
    at all points but one.
    """
    at, side = np.array(points), len(points) + 1
    scale = [np.prod(point - at[at != point]) for point in at]
    of_tiles = np.array([[*np.poly(at[at != point])[::-1], 0] for point in at] + [np.poly(at)[::-1]])
    of_weights = np.array([[point**k / by for k in range(3)] for point, by in zip(at, scale)] + [[0, 0, 1]])
    to_pixels = np.array([[*(at**k), k == side - 3] for k in range(side - 2)])
    in_both = [torch.from_numpy(np.kron(m, m)).float() for m in (of_tiles, of_weights, to_pixels)]
    return Way(side, *in_both)


FOUR = _way((0, 5 / 8, -5 / 8, 3 / 2, -3 / 2))
"""16 pixels of 36 products where plain sums have 144. Of points that binary fractions hold exactly these had the least
error: 1.7 of a plain convolution's in float32, by 0, 1, -1, 2, -2 it is 4."""
TWO = _way((0, 1, -1))
"""4 pixels of 16 products instead of 36, with 0.6 of a plain convolution's error in float32, 2.5 in bfloat16, which
rounds what is between."""


def way(weight: Tensor, pixels: float = math.inf) -> Way | None:
    """That of convolutions of so many pixels by the weight, which may be the plain one: None."""
    if weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < FEW_CHANNELS:
        return None
    many = weight.numel() >= MANY_WEIGHTS
    if pixels < (FEW_PIXELS_OF_MANY if many and weight.dtype == torch.bfloat16 else FEW_PIXELS):
        return None
    return {torch.float32: TWO if many else FOUR, torch.bfloat16: TWO}.get(weight.dtype)


def tiles(x: Tensor, by: Way, padding: Sequence[int]) -> tuple[int, int]:
    """In each direction of x (B, C, H, W) with so many zeros above and beside it; the last may stand over."""
    height, width = (size + 2 * around - 2 for size, around in zip(x.shape[2:], padding))
    step = by.side - 2
    return -(-height // step), -(-width // step)


def convolved(x: Tensor, by: Way, parts: Sequence[Tensor], bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """The convolution of x (B, C, H, W) -> (B, C', H', W'), both channels last, with the weight's `changed` parts."""
    step, (tall, wide) = by.side - 2, tiles(x, by, padding)
    (down, right), (batch, channels, height, width) = padding, x.shape
    below, beyond = tall * step + 2 - height - down, wide * step + 2 - width - right
    whole = F.pad(x.permute(0, 2, 3, 1), (0, 0, right, beyond, down, below))
    picture, row, pixel, _ = whole.stride()
    cut = whole.as_strided(
        (by.side, by.side, batch, tall, wide, channels), (row, pixel, picture, step * row, step * pixel, 1)
    )
    out = x.new_empty((batch, tall, step, wide, step, len(parts[0])))
    rows = max(1, BAND // (by.side**2 * wide * max(channels, len(parts[0]))))
    pictures, rows = max(1, rows // tall), min(rows, tall)
    for some, made in zip(torch.split(cut, pictures, 2), torch.split(out, pictures)):
        for band, done in zip(torch.split(some, rows, 3), torch.split(made, rows, 1)):
            torch.add(_multiplied(band, by, parts), 0 if bias is None else bias, out=done)
    shown = out.view(batch, tall * step, wide * step, -1)[:, : height + 2 * down - 2, : width + 2 * right - 2]
    return shown.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _multiplied(cut: Tensor, by: Way, parts: Sequence[Tensor]) -> Tensor:
    """(side, side, B, rows, columns, C) -> pixels of the tiles (B, rows, N, columns, N, C')."""
    kinds, step = by.side**2, by.side - 2
    values = torch.mm(by.of_tiles.to(cut.dtype), cut.reshape(kinds, -1)).view(kinds, -1, cut.shape[-1])
    products = cut.new_empty((*values.shape[:2], len(parts[0])))
    for product, value, part in zip(products, values, parts):
        product.copy_(torch.ops.mkldnn._linear_pointwise(value, part, None, "none", [], ""))
    del values
    pixels = torch.mm(by.to_pixels.to(cut.dtype), products.view(kinds, -1))
    return pixels.view(step, step, *cut.shape[2:5], -1).permute(2, 3, 0, 4, 1, 5)


def changed(weight: Tensor) -> Sequence[Tensor]:
    """(C', C, 3, 3) that has a way -> for each kind of value (C', C)."""
    by = way(weight)
    assert by is not None
    out = weight.new_empty((by.side**2, *weight.shape[:2]))
    step = max(1, CHUNK // weight[0].numel())
    for top in range(0, len(weight), step):
        rows = weight[top : top + step].permute(2, 3, 0, 1).float()  # (3, 3, c', C)
        out[:, top : top + step] = torch.mm(by.of_weights, rows.reshape(9, -1)).view(-1, *rows.shape[2:])
    return out.unbind()


def changed_bytes(weight: Tensor) -> int:
    """That a weight takes at most, once it is changed for the way that it takes, or not."""
    by = way(weight)
    return weight.nbytes if by is None else weight.nbytes * by.side**2 // 9
