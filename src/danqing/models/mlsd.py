"""M-LSD, straight lines of a picture (Gu et al. 2022): MobileNetV2 down, and up again to half the size.

Modules are named as in its published file, mlsd_large_512_fp32.pth, but for counters of training's batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
"""MobileNetV2's first stages (Sandler et al. 2018, table 2): expansion, channels, blocks, stride of the first."""
_SEEN = (1, 3, 6, 10, 13)
"""The last block of each stage, counted from the first convolution."""


class BatchNorm2d(nn.Module):
    """Batch normalisation by statistics of training; x (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)  # type: ignore[arg-type]


class _ConvNorm(nn.Sequential):
    """A convolution of MobileNetV2's. With stride 2 the border is to the right and below, as TensorFlow has it."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        self.uneven = stride == 2
        padding = 0 if self.uneven else kernel // 2
        conv = Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, BatchNorm2d(c_out), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.uneven else x)  # type: ignore[no-any-return, no-untyped-call]


class _Inverted(nn.Module):
    """An inverted residual block: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        wider = [_ConvNorm(c_in, width, 1)] if expansion != 1 else []
        depthwise = _ConvNorm(width, width, 3, stride, groups=width)
        self.conv = nn.Sequential(*wider, depthwise, Conv2d(width, c_out, 1, bias=False), BatchNorm2d(c_out))
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)  # type: ignore[no-any-return]


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_ConvNorm(4, 32, 3, stride=2)]
        c_in = 32
        for expansion, c_out, count, stride in STAGES:
            for index in range(count):
                blocks.append(_Inverted(c_in, c_out, stride if index == 0 else 1, expansion))
                c_in = c_out
        self.features = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in _SEEN:
                seen.append(x)
        return seen


def _layer(c_in: int, c_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    conv = Conv2d(c_in, c_out, kernel, padding=kernel // 2 * dilation, dilation=dilation)
    return nn.Sequential(conv, BatchNorm2d(c_out), nn.ReLU())


class _Joined(nn.Module):
    """A stage of the way down beside what comes up, which is brought to its size."""

    def __init__(self, c_side: int, c_up: int) -> None:
        super().__init__()
        self.conv1 = _layer(c_up, 64, 1)
        self.conv2 = _layer(c_side, 64, 1)

    def forward(self, side: Tensor, up: Tensor) -> Tensor:
        side, up = self.conv2(side), self.conv1(up)
        if up.shape[-2:] != side.shape[-2:]:
            up = F.interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=True)
        return torch.cat([side, up], 1)


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _layer(128, 128, 3)
        self.conv2 = _layer(128, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x) + x)  # type: ignore[no-any-return]


class _Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _layer(64, 64, 3, dilation=5)
        self.conv2 = _layer(64, 64, 3)
        self.conv3 = Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))  # type: ignore[no-any-return]


class MLSD(nn.Module):
    """Which pixel is a line's middle, and where its ends are from there."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        for name, (c_side, c_up) in zip((15, 17, 19, 21), ((64, 96), (32, 64), (24, 64), (16, 64))):
            setattr(self, f"block{name}", _Joined(c_side, c_up))
            setattr(self, f"block{name + 1}", _Mixed())
        self.block23 = _Told()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 4, H, W) from -1 to 1, both sides multiples of 16: RGB, and a plane of 1 / 127.5 - 1 -> (B, 9, H/2, W/2).

        Of these the first is the logit of a middle, the next four the ends' X, Y, X, Y from there, in pixels of theirs.
        """
        *sides, up = self.backbone(x)
        for name, side in zip((15, 17, 19, 21), reversed(sides)):
            up = getattr(self, f"block{name + 1}")(getattr(self, f"block{name}")(side, up))
        return self.block23(up)[:, 7:]  # type: ignore[no-any-return]
