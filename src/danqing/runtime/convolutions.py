"""Convolutions on a CPU by oneDNN, with weights that are kept in its order (`packed`).

torch gives convolutions to oneDNN as well, but some in float32 to kernels of its own, which add up in another order:
those of one small picture, and of 1x1 where there is one thread (`use_mkldnn` in its Convolution.cpp). Here all go one
way, so that a picture has its bits alone and beside others, and on the first call and the third; large ones of 3x3 by
`winograd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.runtime import packed, winograd
from danqing.runtime.dense import by_onednn

_OPS = torch.ops.mkldnn
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Rows and columns of the four places where a value that is enlarged to twice the size stands."""
FEW_WEIGHTS = 1 << 20
FEW_PIXELS = 1 << 6
"""With fewer of either the four convolutions of `upsampled` are as slow as the one."""
CHUNK = 1 << 18
"""Weights that are added up at a time, which stay in the cache."""


def convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The layer's convolution of x (B, C, H, W) -> (B, C', H', W'), both channels last.

    None where torch's own is as good: another device, another layout of x, gradients, padding by name, and bfloat16
    without a kept weight.
    """
    if not _pays(x, weight) or x.is_contiguous() or not isinstance(layer.padding, tuple):
        return None
    shape = layer.padding, layer.stride, layer.dilation, layer.groups
    by = winograd.way(weight, x.shape[2] * x.shape[3]) if shape[1:] == ((1, 1), (1, 1), 1) else None
    if by is not None:
        return _by_tiles(x, weight, bias, layer.padding, by)
    (used,) = packed.ordered(weight, _into_order(x, shape))
    if used is weight and x.dtype != torch.float32:
        return None
    return _OPS._convolution_pointwise(x, used, bias, *shape, "none", [], "")  # type: ignore[no-any-return]


def upsampled(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """The layer's 3x3 convolution, which pads by one, of x (B, C, H, W) at twice its size: (B, C', 2 H, 2 W).

    Of the nine places that the convolution looks at after each value stood four times, only four differ: for each of
    the four kinds of places a 2x2 convolution of the smaller picture gives the same, with weights added up. That is
    four ninths of the products. None where the plain way is as good: another device, another layout of x, gradients,
    small pictures and small layers.
    """
    height, width = x.shape[-2:]
    weight = layer.weight
    if weight.numel() < FEW_WEIGHTS or not _pays(x, weight) or height * width < FEW_PIXELS:
        return None
    shape = (0, 0), (1, 1), (1, 1), 1
    size = len(x), layer.out_channels, 2 * height, 2 * width
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    padded = F.pad(x, (1, 1, 1, 1))
    for (i, j), part in zip(CORNERS, packed.ordered(weight, _into_order(x, shape), folded)):
        seen = padded[:, :, i : i + height + 1, j : j + width + 1].contiguous(memory_format=torch.channels_last)
        out[:, :, i::2, j::2] = _OPS._convolution_pointwise(seen, part, layer.bias, *shape, "none", [], "")
    return out


def folded(weight: Tensor) -> list[Tensor]:
    """(C', C, 3, 3) -> for each of the `CORNERS` (C', C, 2, 2), channels last."""
    empty = partial(torch.empty, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    out = [empty((*weight.shape[:2], 2, 2)) for _ in CORNERS]
    step = max(1, CHUNK // weight[0].numel())
    for rows in (slice(top, top + step) for top in range(0, len(weight), step)):
        exact = weight[rows].permute(2, 3, 0, 1).float().contiguous()  # (3, 3, c', C)
        for (i, j), corner in zip(CORNERS, out):
            corner[rows] = torch.stack([torch.stack(list(_pair(row, j))) for row in _pair(exact, i)]).permute(
                2, 3, 0, 1
            )
    return out


def _pair(three: Tensor, which: int) -> Iterator[Tensor]:
    """Of three weights in a row, those that the first (0) or the second (1) of two equal values has for the pairs of
    values that it looks at."""
    first, second, third = three
    yield from (first, second + third) if which == 0 else (first + second, third)


def _by_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], by: winograd.Way) -> Tensor:
    rows = len(x) * math.prod(winograd.tiles(x, by, padding))
    with torch.profiler.record_function("convolution by tiles"):  # its parts are called linear layers
        parts = packed.ordered(weight, lambda part: _OPS._reorder_linear_weight(part, rows), winograd.changed)
        return winograd.convolved(x, by, parts, bias, padding)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return packed.AVAILABLE and by_onednn(x, weight) and x.is_contiguous(memory_format=torch.channels_last)


def _into_order(x: Tensor, shape: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """shape: padding, stride, dilation and groups of a convolution of x."""
    return lambda weight: _OPS._reorder_convolution_weight(weight, *shape, list(x.shape))
