"""The judge: a small residual network that names the concept and the style of a drawing (He et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d, GroupNorm, ResBlock

EPS = 1e-5


@dataclass(frozen=True)
class JudgeConfig:
    """What a judge is made by; the order of the labels is that of its answers."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    picture: int = 64
    """Pixels along an edge: what it resizes pictures to."""
    channels: tuple[int, ...] = (48, 96, 192, 320)
    """Of each level; each is half as long and wide as the one before, the first half the picture."""
    layers: tuple[int, ...] = (1, 2, 2, 1)
    """Residual blocks of each level."""
    groups: int = 8
    features: int = 256


class Opinion(NamedTuple):
    """What a judge says of pictures."""

    concepts: Tensor
    """(B, number of concepts) logits."""
    styles: Tensor
    """(B, number of styles) logits."""
    features: Tensor
    """(B, features): what both are told by."""


class JudgeNetwork(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], of any size -> an Opinion.

    Concepts are told by the angle to a vector of each, times a learned scale: with one to four pictures a concept, the
    lengths of such vectors would say how often each was shown (Gidaris & Komodakis 2018, section 3.2).
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = Conv2d(3, width, 4, stride=2, padding=1)
        self.levels = nn.ModuleList()
        for channels, layers in zip(config.channels, config.layers):
            blocks = [ResBlock(width if i == 0 else channels, channels, config.groups, EPS) for i in range(layers)]
            self.levels.append(nn.Sequential(*blocks))
            width = channels
        self.norm = GroupNorm(config.groups, width, EPS)
        self.project = nn.Linear(width, config.features)
        self.concepts = nn.Parameter(torch.randn(len(config.concepts), config.features) * config.features**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.styles = nn.Linear(config.features, len(config.styles))

    def forward(self, pixels: Tensor) -> Opinion:
        x = self.stem(resized(pixels, self.config.picture))
        for index, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 2) if index else x)
        features = self.project(F.silu(self.norm(x)).mean((2, 3))).float()
        with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 is too coarse for logits
            angles = F.linear(F.normalize(features, dim=1), F.normalize(self.concepts, dim=1))
            return Opinion(angles * self.log_scale.exp(), self.styles(features), features)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Pictures (B, C, H, W) at size x size, smoothed beforehand where they shrink."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
