"""Networks whose pictures repeat without a seam: their convolutions wrap around."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.autoencoder import Autoencoder, Downsample
from danqing.models.layers import Conv2d
from danqing.runtime.numerics import converted
from danqing.vocabulary import Tiling

Network = TypeVar("Network", bound=nn.Module)


def seamless(module: Network, axes: Tiling) -> Network:
    """A copy of the module tree that shares its tensors and whose convolutions wrap around along `axes`.

    For the U-Net and the autoencoder, whose other layers treat all places alike: rolling the latents by a multiple of
    the coarsest level's cell then rolls the output. `module` is left as it is.
    """
    copy = converted(module, lambda tensor: tensor)
    for layer in copy.modules():
        for plain, wrapping in _WRAPPING.items():
            if type(layer) is plain:
                layer.__class__ = wrapping
                layer.axes = axes  # type: ignore[assignment]
    return copy


class SeamlessConv2d(Conv2d):
    """A convolution over a cylinder (`axes` x or y) or a torus (both)."""

    axes: Tiling

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = (int(n) for n in self.padding)
        input = _pad(input, (columns, columns, rows, rows), self.axes)
        return F.conv2d(input, weight, bias, self.stride, 0, self.dilation, self.groups)


class SeamlessDownsample(Downsample):
    """The autoencoder's, which pads on the right and below only."""

    axes: Tiling

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_pad(x, (0, 1, 0, 1), self.axes))  # type: ignore[no-any-return]


class SeamlessAutoencoder(Autoencoder):
    """The autoencoder, whose tiles know nothing of the other side of the picture."""

    axes: Tiling

    def decode_tiled(self, latents: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
        """As the plain one, of latents that are continued by `overlap` on every side that wraps around."""
        x = min(overlap, latents.shape[-1]) if self.axes in ("x", "both") else 0
        y = min(overlap, latents.shape[-2]) if self.axes in ("y", "both") else 0
        pixels = super().decode_tiled(_pad(latents, (x, x, y, y), self.axes), tile, overlap)
        top, left = y * self.config.downscale, x * self.config.downscale
        return pixels[..., top : pixels.shape[-2] - top, left : pixels.shape[-1] - left]


_WRAPPING: dict[type[nn.Module], type[nn.Module]] = {
    Conv2d: SeamlessConv2d,
    Downsample: SeamlessDownsample,
    Autoencoder: SeamlessAutoencoder,
}


def _pad(x: Tensor, margins: tuple[int, int, int, int], axes: Tiling) -> Tensor:
    """x (B, C, H, W) with margins (left, right, top, bottom): what lies on the other side along `axes`, else zeros."""
    left, right, top, bottom = margins
    if max(margins) == 0:
        return x
    x = F.pad(x, (left, right, 0, 0), "circular" if axes in ("x", "both") else "constant")
    return F.pad(x, (0, 0, top, bottom), "circular" if axes in ("y", "both") else "constant")
