"""Line drawings of photographs: the generator of informative drawings (Chan, Durand & Isola 2022).

Modules are named as in its files, sk_model.pth and sk_model2.pth.
"""

from __future__ import annotations

from torch import Tensor, nn

from danqing.models.layers import Conv2d

WIDTH = 64
BLOCKS = 3


class _Residual(nn.Module):
    """Two convolutions with mirrored borders, added to what they were given: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        once = (nn.ReflectionPad2d(1), Conv2d(width, width, 3), nn.InstanceNorm2d(width))
        again = (nn.ReflectionPad2d(1), Conv2d(width, width, 3), nn.InstanceNorm2d(width))
        self.conv_block = nn.Sequential(*once, nn.ReLU(), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


class LineArt(nn.Module):
    """How little of a line each pixel is: paper is 1."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTH, 2 * WIDTH, 4 * WIDTH
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), Conv2d(3, a, 7), nn.InstanceNorm2d(a), nn.ReLU())
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for near, far in ((a, b), (b, c)):
            down += [Conv2d(near, far, 3, stride=2, padding=1), nn.InstanceNorm2d(far), nn.ReLU()]
        for far, near in ((c, b), (b, a)):
            grow = nn.ConvTranspose2d(far, near, 3, stride=2, padding=1, output_padding=1)
            up += [grow, nn.InstanceNorm2d(near), nn.ReLU()]
        self.model1 = nn.Sequential(*down)
        self.model2 = nn.Sequential(*(_Residual(c) for _ in range(BLOCKS)))
        self.model3 = nn.Sequential(*up)
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), Conv2d(a, 1, 7), nn.Sigmoid())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) RGB from 0 to 1, both sides multiples of 4, 8 or more -> (B, 1, H, W) from 0 to 1."""
        return self.model4(self.model3(self.model2(self.model1(self.model0(x)))))  # type: ignore[no-any-return]
