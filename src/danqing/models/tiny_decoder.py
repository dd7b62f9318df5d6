"""TAESD's decoder: latents to pixels by a few small convolutions (madebyollin, github.com/madebyollin/taesd)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64


class Block(nn.Module):
    """Three convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """To (-3, 3), softly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TinyDecoder(nn.Module):
    """Latents (B, C, h, w) in model space -> pixels (B, 3, 8 h, 8 w), in [0, 1] but for overshoot."""

    upscale = 8

    def __init__(self, channels: int = 4, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [Clamp(), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [Block(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, Block(width), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.layers(latents)
        return pixels
