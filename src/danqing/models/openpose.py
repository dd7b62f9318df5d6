"""OpenPose (Cao et al. 2019): where the points of bodies, hands and faces are, seen in several stages.

Modules are named as in the files body_pose_model.pth, hand_pose_model.pth and facenet.pth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d

_VGG = (("conv1_1", 3, 64), ("conv1_2", 64, 64), None, ("conv2_1", 64, 128), ("conv2_2", 128, 128), None,
        ("conv3_1", 128, 256), ("conv3_2", 256, 256), ("conv3_3", 256, 256), ("conv3_4", 256, 256), None,
        ("conv4_1", 256, 512), ("conv4_2", 512, 512))  # fmt: skip
"""VGG-19's first layers (Simonyan & Zisserman 2015): name, channels in and out; None halves the size."""
STAGES = 6
STRIDE = 8
"""Pixels of the picture to one of the maps, along a side."""
BODY_LINKS, BODY_POINTS, HAND_POINTS, FACE_POINTS = 38, 19, 22, 71
"""Channels of the maps: 19 links by X and Y; 18, 21 and 70 points, each with one for what is none."""


class _Maps(nn.Module):
    """Layers by the file's names, each with a ReLU behind it but the last of a chain."""

    def add(self, name: str, c_in: int, c_out: int, kernel: int = 3) -> str:
        setattr(self, name, Conv2d(c_in, c_out, kernel, padding=kernel // 2))
        return name

    def chain(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names[:-1]:
            x = F.relu(getattr(self, name)(x))
        return getattr(self, names[-1])(x)  # type: ignore[no-any-return]

    def seen(self, tail: Sequence[str], x: Tensor) -> Tensor:
        for row in _VGG:
            x = F.max_pool2d(x, 2) if row is None else F.relu(getattr(self, row[0])(x))
        return F.relu(self.chain(tail, x))

    def stage(self, mark: str, c_in: int, c_out: int) -> list[str]:
        """Five wide convolutions and two of one pixel: (B, c_in, H, W) -> (B, c_out, H, W)."""
        names = [self.add(f"Mconv{i}_{mark}", c_in if i == 1 else 128, 128, 7) for i in range(1, 6)]
        return [*names, self.add(f"Mconv6_{mark}", 128, 128, 1), self.add(f"Mconv7_{mark}", 128, c_out, 1)]

    def vgg(self, tail: Sequence[tuple[str, int, int]]) -> list[str]:
        for row in _VGG:
            if row is not None:
                self.add(*row)
        return [self.add(*row) for row in tail]


class BodyPose(_Maps):
    """Where body parts are, and which way the limbs between them run."""

    def __init__(self) -> None:
        super().__init__()
        self._tail = self.vgg((("conv4_3_CPM", 512, 256), ("conv4_4_CPM", 256, 128)))
        self._stages: list[tuple[list[str], list[str]]] = []
        branches = (("L1", BODY_LINKS), ("L2", BODY_POINTS))
        first = []
        for mark, count in branches:
            names = [self.add(f"conv5_{i}_CPM_{mark}", 128, 128) for i in (1, 2, 3)]
            names += [self.add(f"conv5_4_CPM_{mark}", 128, 512, 1), self.add(f"conv5_5_CPM_{mark}", 512, count, 1)]
            first.append(names)
        self._stages.append((first[0], first[1]))
        width = 128 + BODY_LINKS + BODY_POINTS
        for number in range(2, STAGES + 1):
            links, points = (self.stage(f"stage{number}_{mark}", width, count) for mark, count in branches)
            self._stages.append((links, points))
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) BGR from -0.5 to 0.5, sides multiples of 8 -> links (B, 38, H/8, W/8), points (B, 19, H/8, W/8)."""
        seen = hidden = self.seen(self._tail, x)
        for number, stage in enumerate(self._stages, 1):
            links, points = (self.chain(names, hidden) for names in stage)
            if number == STAGES:  # ControlNet's hints were made with a ReLU here
                points = F.relu(points)
            hidden = torch.cat([links, points, seen], 1)
        return links, points


class PointMaps(_Maps):
    """Where the points of a hand (22 maps) or a face (71) are, the last map where none is."""

    def __init__(self, count: int) -> None:
        super().__init__()
        deeper = [("conv4_3", 512, 512), ("conv4_4", 512, 512), ("conv5_1", 512, 512), ("conv5_2", 512, 512)]
        self._tail = self.vgg((*deeper, ("conv5_3_CPM", 512, 128)))
        self._stages = [[self.add("conv6_1_CPM", 128, 512, 1), self.add("conv6_2_CPM", 512, count, 1)]]
        for number in range(2, STAGES + 1):
            self._stages.append(self.stage(f"stage{number}", 128 + count, count))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) BGR from -0.5 to 0.5, both sides multiples of 8 -> (B, count, H/8, W/8)."""
        seen = hidden = self.seen(self._tail, x)
        for stage in self._stages:
            maps = self.chain(stage, hidden)
            hidden = torch.cat([maps, seen], 1)
        return maps
