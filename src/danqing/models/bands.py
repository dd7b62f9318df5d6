"""The autoencoder's way to pixels in bands of rows, on a CPU: the same sums in less memory and less time.

What is between two convolutions never leaves the cache. Group normalisation sees the whole picture: each band adds to
its channels' sums while it is made. What is made takes the place of what it is made from, so that a level holds two
tensors of its own width, and the first of a level, which is twice as wide, is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d, ResBlock, Upsample
from danqing.runtime.convolutions import CORNERS, folded

BAND = 1 << 22
"""Values of a band: 8 MB of bfloat16."""


@dataclass
class Rows:
    """A picture on its way; the functions below change it."""

    values: Tensor
    """(1, C, H, W), a pixel's channels side by side."""
    sums: Tensor
    """(2, C) float64: of the values and of their squares, of which a channel's mean and variance are made."""
    spare: Tensor | None = None
    """Room for as many values."""


def pay(convolutions: Iterator[nn.Module], x: Tensor, values: int) -> bool:
    """Whether a picture is made in bands: where nobody wants gradients, on a CPU, if its largest tensor has so many
    `values`, and its borders are plain."""
    here = x.device.type in ("cpu", "meta") and not torch.is_grad_enabled()
    return here and values > 2 * BAND and all(type(conv) is Conv2d for conv in convolutions)


def measured(x: Tensor) -> Rows:
    """x (1, C, H, W) of any layout."""
    x = x.contiguous(memory_format=torch.channels_last)
    return Rows(x, sum((_sums(x[:, :, top:bottom]) for top, bottom in _bands(x)), x.new_zeros((), dtype=torch.float64)))


def res_block(block: ResBlock, x: Rows) -> None:
    """`ResBlock` without an embedding."""
    source, sums = x.values, x.sums
    c_in, c_out = block.conv1.in_channels, block.conv1.out_channels
    shortcut = block.conv_shortcut
    if shortcut is None:
        same, room = source, _like(source, c_out, 1) if x.spare is None else x.spare
    elif c_in == 2 * c_out:
        same, room = source.chunk(2, 1)
    else:
        same, room = _like(source, c_out, 1), _like(source, c_out, 1)

    def first(top: int, bottom: int, rows: Tensor) -> Tensor:
        if shortcut is not None:
            same[:, :, top:bottom] = shortcut(rows[:, :, int(top > 0) :][:, :, : bottom - top])
        return _valid(block.conv1, _active(block.norm1, rows, sums, top, bottom, source))

    x.sums = _make(room, source, first)
    between = x.sums

    def second(top: int, bottom: int, rows: Tensor) -> Tensor:
        made = _valid(block.conv2, _active(block.norm2, rows, between, top, bottom, room))
        return made.add_(same[:, :, top:bottom])

    x.sums = _make(room, room, second)
    x.values, x.spare = room, same


def upsample(layer: Upsample, x: Rows) -> None:
    """`Upsample` to twice the size, by four convolutions of the smaller picture (`convolutions.upsampled`)."""
    width = x.values.shape[-1]
    out = _like(x.values, layer.conv.out_channels, 2)
    # the picture moves to the end of what is made of it, which comes up to it only where it has been seen
    end = out.permute(0, 2, 3, 1).reshape(-1)[-x.values.numel() :]
    source = end.view(1, *x.values.shape[2:], -1).permute(0, 3, 1, 2).copy_(x.values)
    x.values, x.spare = out, None
    weights = folded(layer.conv.weight)
    sums = torch.zeros((), dtype=torch.float64, device=out.device)
    for top, bottom, rows in _sources(source):
        rows = F.pad(rows, (1, 1, int(top == 0), int(bottom == source.shape[-2])))
        for (i, j), weight in zip(CORNERS, weights):
            seen = rows[:, :, i : i + bottom - top + 1, j : j + width + 1]
            part = F.conv2d(seen.contiguous(memory_format=torch.channels_last), weight, layer.conv.bias)
            out[:, :, 2 * top + i : 2 * bottom : 2, j::2] = part
            sums = sums + _sums(part)
    x.sums = sums


def normed_convolution(norm: nn.GroupNorm, convolution: nn.Conv2d, x: Rows) -> Tensor:
    """A 3x3 convolution of what SiLU makes of the normalised x: (1, C', H, W)."""
    out = _like(x.values, convolution.out_channels, 1)
    for top, bottom, rows in _sources(x.values):
        out[:, :, top:bottom] = _valid(convolution, _active(norm, rows, x.sums, top, bottom, x.values))
    return out


def _like(x: Tensor, channels: int, scale: int) -> Tensor:
    size = (1, channels, scale * x.shape[-2], scale * x.shape[-1])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """(top, bottom) of each band of x (1, C, H, W)."""
    height, rows = x.shape[-2], max(1, BAND // (x.shape[1] * x.shape[-1]))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _sources(x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(top, bottom, its rows with the ones above and below) of each band of x (1, C, H, W).

    They are a copy: something else may take their place, as it may have that of the bands before.
    """
    above: list[Tensor] = []
    for top, bottom in _bands(x):
        rows = torch.cat([*above, x[:, :, top : bottom + 1]], 2)
        above = [x[:, :, bottom - 1 : bottom].clone()]
        yield top, bottom, rows


def _make(out: Tensor, source: Tensor, make: Callable[[int, int, Tensor], Tensor]) -> Tensor:
    """Fill `out` (1, C, H, W) with the bands that `make(top, bottom, rows of the source)` gives. Returns their sums."""
    sums = torch.zeros((), dtype=torch.float64, device=out.device)
    for top, bottom, rows in _sources(source):
        part = make(top, bottom, rows)
        out[:, :, top:bottom] = part
        sums = sums + _sums(part)
    return sums


def _sums(part: Tensor) -> Tensor:
    """(2, C) float64 of a band (1, C, rows, W)."""
    channels, pixels = part.shape[1], part.shape[2] * part.shape[3]
    if part.is_meta:  # has no such operation
        return part.new_empty((2, channels), dtype=torch.float64)
    unused = torch.zeros(channels)
    mean, variance = (value.double() for value in torch.batch_norm_update_stats(part, unused, unused, 0.0))
    return torch.stack([mean, variance + mean * mean]) * pixels


def _active(norm: nn.GroupNorm, rows: Tensor, sums: Tensor, top: int, bottom: int, x: Tensor) -> Tensor:
    """SiLU of rows (1, C, h, W) of x, normalised by the sums over all of it; zeros beyond the picture."""
    height, width = x.shape[-2:]
    each = sums.shape[1] // norm.num_groups
    mean, square = sums.view(2, norm.num_groups, each).sum(2) / (height * width * each)
    variance = (square - mean * mean).clamp(min=0)
    mean, variance = (value.float().repeat_interleave(each) for value in (mean, variance))
    # what is left is an affine function of each channel: that of batch normalisation
    values = F.batch_norm(rows, mean, variance, norm.weight.float(), norm.bias.float(), False, 0.0, norm.eps)
    return F.pad(F.silu(values, inplace=True), (0, 0, int(not top), int(bottom == height)))


def _valid(convolution: nn.Conv2d, rows: Tensor) -> Tensor:
    """A 3x3 convolution of rows that bring their own above and below."""
    return F.conv2d(rows, convolution.weight, convolution.bias, 1, (0, 1))
