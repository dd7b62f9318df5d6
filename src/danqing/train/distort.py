"""Stronger changes to training pictures than `pictures.augment` makes, for a network that has to look through them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.train.recipe import Distort


def warp(pixels: Tensor, size: int, settings: Distort, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3, H, W), square -> uint8 (B, 3, size, size): turned, zoomed, stretched, moved.

    What comes into view has the colour of the picture's corner.
    """
    count = len(pixels)

    def draw(reach: float) -> Tensor:
        return reach * (torch.rand(count, generator=generator) * 2 - 1)

    angle = draw(math.radians(settings.rotation))
    zoom, stretch = (1 + settings.scale) ** draw(1.0), (1 + settings.stretch) ** draw(0.5)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * stretch * angle.cos(), -zoom * stretch * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = zoom / stretch * angle.sin(), zoom / stretch * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = draw(2 * settings.shift), draw(2 * settings.shift)
    x = pixels.float()
    corner = x[:, :, :1, :1]
    grid = F.affine_grid(theta.to(x.device), [count, 3, size, size], align_corners=False)
    x = F.grid_sample(x - corner, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + corner
    return x.round().clamp(0, 255).byte()


def spoil(pixels: Tensor, settings: Distort, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> the same size: some blurred, all with a little noise, some with a rectangle erased."""
    count, _, height, width = pixels.shape
    device = pixels.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(device)

    if settings.blur:
        share = torch.where(draw() < settings.blur, draw(), 0.0)[:, None, None, None]
        smooth = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        pixels = torch.lerp(pixels, smooth, share)
    if settings.noise:
        grain = torch.randn(pixels.shape, generator=generator).to(device)
        pixels = pixels + settings.noise * draw(1, 1, 1) * grain
    if settings.erase:
        erased = draw() < settings.erase
        inside = _rectangles(draw(2), 0.1 + 0.3 * draw(2), height, width) & erased[:, None, None]
        pixels = torch.where(inside[:, None], draw(3, 1, 1) * 2 - 1, pixels)
    return pixels.clamp(-1, 1)


def _rectangles(middle: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: within the rectangles of these middles (B, 2) and sides (B, 2), as shares of the edges."""
    low, high = middle - sides / 2, middle + sides / 2
    down = (torch.arange(height, device=middle.device) + 0.5) / height
    across = (torch.arange(width, device=middle.device) + 0.5) / width
    rows = (down >= low[:, :1]) & (down < high[:, :1])
    columns = (across >= low[:, 1:]) & (across < high[:, 1:])
    return rows[:, :, None] & columns[:, None, :]


def mix(pixels: Tensor, settings: Distort, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Some pictures blended with another of the batch, some with a rectangle of it pasted in.

    (B, 3, H, W) -> the pictures, the other's row (B,), and how much of it is there, (B,) in [0, 1/2].
    Mixup (Zhang et al. 2018, equation 1) and CutMix (Yun et al. 2019, equation 1), the share drawn evenly.
    """
    count, _, height, width = pixels.shape
    other = torch.randperm(count, generator=generator).to(pixels.device)
    kind, share, place = (torch.rand(count, *more, generator=generator).to(pixels.device) for more in ((), (), (2,)))
    share = share / 2
    blended = kind < settings.mixup
    pasted = ~blended & (kind < settings.mixup + settings.cutmix)
    result = torch.lerp(pixels, pixels[other], torch.where(blended, share, 0.0)[:, None, None, None])
    side = share.sqrt()[:, None].expand(-1, 2)
    inside = _rectangles(side / 2 + place * (1 - side), side, height, width) & pasted[:, None, None]
    result = torch.where(inside[:, None], pixels[other], result)
    there = torch.where(blended, share, inside.float().mean((1, 2)))
    return result, other, there
