"""Line drawings of anime pictures: pix2pix's U-Net (Isola et al. 2017) as lllyasviel trained it, netG.pth.

Modules are named as in that file, each level inside of the one above it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danqing.models.layers import Conv2d

WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)
"""Of what each level makes on its way down, from the pixels; each halves the size."""
STRIDE = 2 ** len(WIDTHS)
"""What a picture's sides have to be multiples of."""


class _Level(nn.Module):
    """A level and all below it: (B, C, H, W) -> what it was given and, after it, what comes back up, (B, 2 C, H, W)."""

    def __init__(self, c_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        width, below = widths[0], widths[1:]
        down: list[nn.Module] = [nn.LeakyReLU(0.2), Conv2d(c_in, width, 4, stride=2, padding=1)]
        if below:
            down += [nn.InstanceNorm2d(width), _Level(width, below)]
        grow = nn.ConvTranspose2d(2 * width if below else width, c_in, 4, stride=2, padding=1)
        self.model = nn.Sequential(*down, nn.ReLU(), grow, nn.InstanceNorm2d(c_in))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


class LineUNet(nn.Module):
    """How little of a line each pixel is: paper is 1, ink -1."""

    def __init__(self) -> None:
        super().__init__()
        first = WIDTHS[0]
        outer = nn.Sequential(
            Conv2d(3, first, 4, stride=2, padding=1),
            _Level(first, WIDTHS[1:]),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * first, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.model = nn.ModuleDict({"model": outer})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) RGB from -1 to 1, both sides multiples of 256 -> (B, 1, H, W) from -1 to 1."""
        return self.model["model"](x)  # type: ignore[no-any-return]
