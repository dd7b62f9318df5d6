"""What the U-Net and the autoencoder truly share, and how a picture's bits are kept from depending on its batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.runtime.attention import attention
from danqing.runtime.convolutions import convolution, upsampled
from danqing.runtime.dense import linear


def by_row(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`fn` of x (B, ...) one row at a time."""
    return fn(x) if len(x) == 1 else torch.cat([fn(x[i : i + 1]) for i in range(len(x))])


def per_row(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` of the vectors x (B, C), one at a time, so that a picture's bits do not depend on B.

    A matrix-vector and a matrix-matrix product add up in different orders. In training only speed matters.
    """
    return layer(x) if layer.training else by_row(layer, x)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018); x (B, C, H, W).

    On a CPU torch shares the whole batch's pixels out among the threads, so a picture's sums would follow its batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        whole = self.training or x.device.type != "cpu"
        return super().forward(x) if whole else by_row(super().forward, x)


class Conv2d(nn.Conv2d):
    """A convolution; x (B, C, H, W). A class of its own, so that `models.seamless` knows those whose borders can join.

    On a CPU the float32 kernel is chosen by the size of the batch, and the kernels add up in different orders: who
    wants a picture's bits to be its own there calls the network for one picture at a time, as `sampling.predict` does.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kept = convolution(self, input, weight, bias)
        return super()._conv_forward(input, weight, bias) if kept is None else kept


class Linear(nn.Linear):
    """A linear layer of many vectors: x (..., C) -> (..., C')."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class ResBlock(nn.Module):
    """A residual block of two convolutions (He et al. 2016), with the step's embedding added between them.

    x (B, C_in, H, W), embedding (B or 1, E) -> (B, C_out, H, W). `embedding_width` None leaves the embedding out.
    """

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, embedding_width: int | None = None) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        if embedding_width is not None:
            self.time_emb_proj = nn.Linear(embedding_width, c_out)
        self.norm2 = GroupNorm(groups, c_out, eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x), inplace=True))
        if embedding is not None:
            hidden = hidden + per_row(self.time_emb_proj, F.silu(embedding))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden), inplace=True))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))  # type: ignore[no-any-return]


class PixelAttention(nn.Module):
    """Attention of all pixels to each other, by `heads` heads, added to them: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = GroupNorm(groups, width, eps)
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C)
        projected = (layer(tokens) for layer in (self.to_q, self.to_k, self.to_v))
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        out = self.to_out[0](attention(query, key, value).transpose(1, 2).flatten(2))
        return x + out.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution: x (B, C, H, W) -> (B, C, *size), or twice the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        double = 2 * x.shape[-2], 2 * x.shape[-1]
        height, width = size or double
        if (height, width) == double and type(self.conv) is Conv2d and (made := upsampled(self.conv, x)) is not None:
            return made
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))  # type: ignore[no-any-return]
