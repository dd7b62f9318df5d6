"""The autoencoder's way to pixels in bands of rows, on a CPU: the same sums in less memory and less time.

What is between two convolutions never leaves the cache. Group normalisation sees the whole picture: each band adds to
its channels' sums while it is made. A residual block holds its input and one more tensor, an upsampling its two.
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


@dataclass(frozen=True)
class Rows:
    """A picture's values and, per channel, what their mean and variance are made of."""

    values: Tensor
    """(1, C, H, W), channels last."""
    sums: Tensor
    """(2, C) float64: of the values and of their squares."""


def pay(convolutions: Iterator[nn.Module], x: Tensor, values: int) -> bool:
    """Whether a picture is made in bands: where nobody wants gradients, on a CPU, if its largest tensor has so many
    `values`, and its borders are plain."""
    here = x.device.type in ("cpu", "meta") and not torch.is_grad_enabled()
    return here and values > 2 * BAND and all(type(conv) is Conv2d for conv in convolutions)


def measured(x: Tensor) -> Rows:
    """x (1, C, H, W) of any layout."""
    x = x.contiguous(memory_format=torch.channels_last)
    return Rows(x, sum((_sums(x[:, :, top:bottom]) for top, bottom in _bands(x)), x.new_zeros((), dtype=torch.float64)))


def res_block(block: ResBlock, x: Rows) -> Rows:
    """`ResBlock` without an embedding."""
    height = x.values.shape[-2]
    hidden = _made(
        _like(x.values, block.conv1.out_channels, 1), lambda t, b: _valid(block.conv1, _active(block.norm1, x, t, b))
    )
    above = hidden.values[:, :, :1].clone()

    def rest(top: int, bottom: int) -> Tensor:
        # what is made takes the place of what it is made from, but for the row that the next band looks back at
        nonlocal above
        source = hidden.values[:, :, top : min(bottom + 1, height)]
        if top:
            source = torch.cat([above, source], 2)
        above = hidden.values[:, :, bottom - 1 : bottom].clone()
        active = _normal(block.norm2, source, hidden.sums, height * source.shape[-1])
        out = _valid(block.conv2, F.pad(active, (0, 0, int(not top), int(bottom == height))))
        same = x.values[:, :, top:bottom]
        return out.add_(same if block.conv_shortcut is None else block.conv_shortcut(same))

    return _made(hidden.values, rest)


def upsample(layer: Upsample, x: Rows) -> Rows:
    """`Upsample` to twice the size, by four convolutions of the smaller picture (`convolutions.upsampled`)."""
    values = x.values
    out = _like(values, layer.conv.out_channels, 2)
    weights = folded(layer.conv.weight)
    height = values.shape[-2]
    sums = torch.zeros((), dtype=torch.float64, device=values.device)
    for top, bottom in _bands(values):
        edges = (1, 1, int(top == 0), int(bottom == height))
        source = F.pad(values[:, :, max(top - 1, 0) : min(bottom + 1, height)], edges)
        for (i, j), weight in zip(CORNERS, weights):
            seen = source[:, :, i : i + bottom - top + 1, j : j + values.shape[-1] + 1]
            seen = seen.contiguous(memory_format=torch.channels_last)
            part = F.conv2d(seen, weight, layer.conv.bias)
            out[:, :, 2 * top + i : 2 * bottom : 2, j::2] = part
            sums = sums + _sums(part)
    return Rows(out, sums)


def normed_convolution(norm: nn.GroupNorm, convolution: nn.Conv2d, x: Rows) -> Tensor:
    """A 3x3 convolution of what SiLU makes of the normalised x: (1, C', H, W)."""
    out = _like(x.values, convolution.out_channels, 1)
    return _made(out, lambda top, bottom: _valid(convolution, _active(norm, x, top, bottom))).values


def _like(x: Tensor, channels: int, scale: int) -> Tensor:
    size = (1, channels, scale * x.shape[-2], scale * x.shape[-1])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """(top, bottom) of each band of x (1, C, H, W)."""
    height, rows = x.shape[-2], max(1, BAND // (x.shape[1] * x.shape[-1]))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _made(out: Tensor, make: Callable[[int, int], Tensor]) -> Rows:
    """`out` (1, C, H, W) filled with the bands that `make(top, bottom)` gives."""
    sums = torch.zeros((), dtype=torch.float64, device=out.device)
    for top, bottom in _bands(out):
        part = make(top, bottom)
        out[:, :, top:bottom] = part
        sums = sums + _sums(part)
    return Rows(out, sums)


def _sums(part: Tensor) -> Tensor:
    """(2, C) float64 of a band (1, C, rows, W)."""
    pixels = part.permute(0, 2, 3, 1).flatten(0, 2).float()
    return torch.stack([pixels.sum(0), pixels.square().sum(0)]).double()


def _active(norm: nn.GroupNorm, x: Rows, top: int, bottom: int) -> Tensor:
    """SiLU of the normalised rows from one above `top` to one below `bottom`, zeros beyond the picture."""
    height, width = x.values.shape[-2:]
    source = x.values[:, :, max(top - 1, 0) : min(bottom + 1, height)]
    active = _normal(norm, source, x.sums, height * width)
    return F.pad(active, (0, 0, int(not top), int(bottom == height)))


def _normal(norm: nn.GroupNorm, rows: Tensor, sums: Tensor, pixels: int) -> Tensor:
    """SiLU of rows (1, C, h, W) that are normalised by the whole picture's sums over so many `pixels`."""
    each = sums.shape[1] // norm.num_groups
    mean, square = sums.view(2, norm.num_groups, each).sum(2) / (pixels * each)
    variance = (square - mean * mean).clamp(min=0)
    mean, variance = (value.float().repeat_interleave(each) for value in (mean, variance))
    # what is left is an affine function of each channel: that of batch normalisation
    values = F.batch_norm(rows, mean, variance, norm.weight.float(), norm.bias.float(), False, 0.0, norm.eps)
    return F.silu(values, inplace=True)


def _valid(convolution: nn.Conv2d, rows: Tensor) -> Tensor:
    """A 3x3 convolution of rows that bring their own above and below."""
    return F.conv2d(rows, convolution.weight, convolution.bias, 1, (0, 1))
