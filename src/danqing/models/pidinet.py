"""PiDiNet, soft edges by convolutions of differences between pixels (Su et al. 2021), in its largest form.

Modules are named as in its published file, table5_pidinet.pth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d

WIDTH = 60
LEVELS = ((3, WIDTH), (4, 2 * WIDTH), (4, 4 * WIDTH), (4, 4 * WIDTH))
"""Blocks and channels of each level, from the pixels; each but the first halves the size."""
KINDS = ("central", "angular", "radial", "plain")
"""What each layer does in turn, the first convolution counted (the paper's configuration CARV)."""
_NARROW = 24
_RING = (3, 0, 1, 6, 4, 2, 7, 8, 5)
"""Whom each of 3x3 pixels, row by row, is compared with: its neighbour around the middle."""


def _central(weight: Tensor) -> Tensor:
    """Each pixel against the middle one: (C, c, 3, 3) -> (C, c, 3, 3) of an ordinary convolution."""
    change = torch.zeros_like(weight)
    change[..., 1, 1] = weight.sum((2, 3))
    return weight - change


def _angular(weight: Tensor) -> Tensor:
    """Each pixel against its neighbour around the middle."""
    return weight - weight.flatten(2)[..., list(_RING)].view_as(weight)


def _radial(weight: Tensor) -> Tensor:
    """Pixels two away from the middle against those one away: (C, c, 3, 3) -> (C, c, 5, 5); the middle has no say."""
    flat = weight.flatten(2)[..., 1:]
    made = weight.new_zeros(*weight.shape[:2], 25)
    made[..., [0, 2, 4, 10, 14, 20, 22, 24]] = flat
    made[..., [6, 7, 8, 11, 13, 16, 17, 18]] = -flat
    return made.view(*weight.shape[:2], 5, 5)


_PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "central": _central,
    "angular": _angular,
    "radial": _radial,
    "plain": lambda weight: weight,
}
"""The paper's section 3.1: differences are an ordinary convolution with other weights."""


class DifferenceConv2d(nn.Module):
    """A convolution of pixels' differences, (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, kind: str, c_in: int, c_out: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(c_out, c_in // groups, 3, 3))
        self.kind, self.groups = kind, groups

    def forward(self, x: Tensor) -> Tensor:
        weight = _PLAIN[self.kind](self.weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=self.groups)


class _Block(nn.Module):
    def __init__(self, kind: str, c_in: int, c_out: int, halves: bool) -> None:
        super().__init__()
        self.shortcut = Conv2d(c_in, c_out, 1) if halves else None
        self.conv1 = DifferenceConv2d(kind, c_in, c_in, groups=c_in)
        self.conv2 = Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            x = F.max_pool2d(x, 2)
        return self.conv2(F.relu(self.conv1(x))) + (x if self.shortcut is None else self.shortcut(x))  # type: ignore[no-any-return]


class _Dilated(nn.Module):
    """What lies at several distances (the paper's compact dilation convolution module)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(width, _NARROW, 1)
        for index, far in enumerate((5, 7, 9, 11)):
            conv = Conv2d(_NARROW, _NARROW, 3, dilation=far, padding=far, bias=False)
            setattr(self, f"conv2_{index + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(x))
        first, *others = (getattr(self, f"conv2_{index + 1}")(x) for index in range(4))
        return sum(others, start=first)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Which places count (the paper's compact spatial attention module)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2d(_NARROW, 4, 1)
        self.conv2 = Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(F.relu(x))).sigmoid()  # type: ignore[no-any-return]


class _Reduced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2d(_NARROW, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class PiDiNet(nn.Module):
    """How much of an edge each pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.init_block = DifferenceConv2d(KINDS[0], 3, WIDTH)
        c_in, layer = WIDTH, 1
        for level, (count, width) in enumerate(LEVELS):
            for index in range(count):
                block = _Block(KINDS[layer % 4], c_in, width, halves=level > 0 and index == 0)
                setattr(self, f"block{level + 1}_{index + 1}", block)
                c_in, layer = width, layer + 1
        self.dilations = nn.ModuleList(_Dilated(width) for _, width in LEVELS)
        self.attentions = nn.ModuleList(_Attention() for _ in LEVELS)
        self.conv_reduces = nn.ModuleList(_Reduced() for _ in LEVELS)
        self.classifier = Conv2d(len(LEVELS), 1, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) BGR from 0 to 1, both sides 8 or more -> (B, 1, H, W) from 0 to 1."""
        size, hidden, seen = x.shape[-2:], self.init_block(x), []
        for level, (count, _) in enumerate(LEVELS):
            for index in range(count):
                hidden = getattr(self, f"block{level + 1}_{index + 1}")(hidden)
            edges = self.conv_reduces[level](self.attentions[level](self.dilations[level](hidden)))
            seen.append(F.interpolate(edges, size, mode="bilinear", align_corners=False))
        return self.classifier(torch.cat(seen, 1)).sigmoid()  # type: ignore[no-any-return]
