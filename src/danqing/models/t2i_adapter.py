"""T2I-Adapter (Mou et al. 2023): a small network that makes of a picture what is added on the U-Net's way down.

Modules are named as those within diffusers' T2IAdapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d
from danqing.models.unet import UNetConfig

Kind = Literal["full", "light", "xl"]


@dataclass(frozen=True)
class T2IAdapterConfig:
    kind: Kind = "full"
    hint_channels: int = 3
    """1 for grey hints (sketch)."""
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of each feature, from the finest."""
    layers: int = 2
    downscale: int = 8
    """Pixels of the hint to one of the finest feature, along a side: 8, or 16 for XL."""

    @property
    def halves(self) -> tuple[bool, ...]:
        """Whether each block halves the size first."""
        return tuple(i == 2 if self.kind == "xl" else i > 0 for i in range(len(self.channels)))


class AdapterResBlock(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.block1 = Conv2d(width, width, 3, padding=1)
        self.block2 = Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))  # type: ignore[no-any-return]


class AdapterBlock(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, H', W'); a light one does its work at a quarter of the width."""

    def __init__(self, c_in: int, c_out: int, halves: bool, config: T2IAdapterConfig) -> None:
        super().__init__()
        light = config.kind == "light"
        width = c_out // 4 if light else c_out
        self.halves = halves
        self.in_conv = Conv2d(c_in, width, 1) if light or c_in != c_out else None
        self.resnets = nn.Sequential(*(AdapterResBlock(width, 3 if light else 1) for _ in range(config.layers)))
        self.out_conv = Conv2d(width, c_out, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        if self.out_conv is not None:
            x = self.out_conv(x)
        return x


class T2IAdapter(nn.Module):
    """A picture's features, one for each level of the U-Net: they do not depend on the step or the text."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.hint_channels * config.downscale**2
        light = config.kind == "light"
        self.conv_in = None if light else Conv2d(pixels, config.channels[0], 3, padding=1)
        before = (pixels if light else config.channels[0], *config.channels[:-1])
        self.body = nn.ModuleList(
            AdapterBlock(a, b, halves, config) for a, b, halves in zip(before, config.channels, config.halves)
        )
        self.eval()

    def forward(self, hint: Tensor) -> list[Tensor]:
        """hint (B, hint_channels, H, W) from 0 to 1, its sides multiples of `downscale`; features from the finest."""
        x = F.pixel_unshuffle(hint, self.config.downscale)
        if self.conv_in is not None:
            x = self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


def places(adapter: T2IAdapterConfig, unet: UNetConfig) -> tuple[str, ...]:
    """Where each feature is added, by canonical name: at the end of each level's blocks, before its skip leaves.

    An XL adapter begins at half the latents' size: its first feature is added where the first level has been halved,
    its last in the middle.
    """
    last = [f"down_blocks.{i}.resnets.{len(depths) - 1}" for i, depths in enumerate(unet.down_depth)]
    if adapter.kind != "xl":
        return tuple(last)
    return ("down_blocks.0.downsamplers.0", *last[1:], "mid_block")
