"""A function of a picture, computed in overlapping tiles: memory for one tile, not for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles begin: `tile - overlap` apart, the last flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def ramp(start: int, size: int, length: int, overlap: int, margin: int = 0) -> Tensor:
    """(size,): a tile's weight along one axis, rising and falling across the overlaps but not at the picture's edge.

    The outermost `margin` of an overlap counts nothing: there a network has seen the tile's edge.
    """
    at = torch.arange(size, dtype=torch.float32) + 0.5 - margin
    weight = torch.ones(size)
    band = overlap - 2 * margin
    if overlap and start > 0:
        weight = torch.minimum(weight, (at / band).clamp(min=0))
    if overlap and start + size < length:
        weight = torch.minimum(weight, ((size - 2 * margin - at) / band).clamp(min=0))
    return weight


def tiled(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    ratio: tuple[int, int] = (1, 1),
    margin: int = 0,
    done: Callable[[int, int], None] = lambda tiles, total: None,
) -> Tensor:
    """`fn` of x (B, C, H, W) in tiles of `tile`, blended in float32; `fn` changes sizes by `ratio` (times, divided by).

    Neighbours overlap by `overlap`, of which each gives up its outermost `margin`: where `fn` looks no further than
    that, the result is that of the whole. `done` is told (tiles done, tiles in all).
    Raises ValueError unless overlap < tile and 2 * margin < overlap (or both are 0).
    """
    if not 0 <= overlap < tile or not (2 * margin < overlap or margin == overlap == 0):
        raise ValueError(f"tiles of {tile} cannot overlap by {overlap} with margins of {margin}")
    up, down = ratio
    height, width = (n * up // down for n in x.shape[-2:])
    places = [(y, x0) for y in starts(x.shape[-2], tile, overlap) for x0 in starts(x.shape[-1], tile, overlap)]
    total = torch.zeros(())
    weights = torch.zeros(height, width, device=x.device)
    for count, (top, left) in enumerate(places, 1):
        part = fn(x[:, :, top : top + tile, left : left + tile])
        if total.dim() == 0:
            total = torch.zeros(*part.shape[:2], height, width, device=x.device)
        y, x0, (h, w) = top * up // down, left * up // down, part.shape[-2:]
        band, edge = overlap * up // down, margin * up // down
        weight = (ramp(y, h, height, band, edge)[:, None] * ramp(x0, w, width, band, edge)).to(x.device)
        total[:, :, y : y + h, x0 : x0 + w] += part.to(total) * weight
        weights[y : y + h, x0 : x0 + w] += weight
        done(count, len(places))
    return total / weights
