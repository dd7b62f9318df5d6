"""Holistically-nested edge detection (Xie & Tu 2015) as ControlNet 1.1 trained it anew: soft edges of a picture.

Modules are named as in its file, ControlNetHED.pth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)


class HEDBlock(nn.Module):
    """Convolutions at one scale, (B, C_in, H, W) -> (B, C_out, H, W), and what edges they see, (B, 1, H, W)."""

    def __init__(self, c_in: int, c_out: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(c_in if i == 0 else c_out, c_out, 3, padding=1) for i in range(depth))
        self.projection = Conv2d(c_out, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HED(nn.Module):
    """How much of an edge each pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for i, (c_in, c_out, depth) in enumerate(zip((3, *WIDTHS), WIDTHS, DEPTHS)):
            setattr(self, f"block{i + 1}", HEDBlock(c_in, c_out, depth))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) RGB from 0 to 255, both sides 16 or more -> (B, 1, H, W) from 0 to 1."""
        size, hidden, seen = x.shape[-2:], x - self.norm, []
        for i in range(len(WIDTHS)):
            if i:
                hidden = F.max_pool2d(hidden, 2)
            hidden, edges = getattr(self, f"block{i + 1}")(hidden)
            seen.append(F.interpolate(edges, size, mode="bilinear", align_corners=False))
        return torch.stack(seen).mean(0).sigmoid()
