"""How near a picture is to another, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures (B, C, H, W) in [0, 1]: (B,) decibels; infinite where they are equal."""
    return -10 * torch.log10((a.double() - b.double()).square().mean((1, 2, 3)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures (B, C, H, W) in [0, 1], H and W at least 11: (B,).

    Gaussian window of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03, population variances, per channel, averaged
    over the places where the window fits.
    """
    return similarity(a.double(), b.double())


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """`ssim` in the pictures' own precision, with which a loss is content."""
    rows, columns = (_bells(size, a) for size in a.shape[-2:])

    def blur(x: Tensor) -> Tensor:
        return rows @ x @ columns.T

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similar.mean((1, 2, 3))


def _bells(size: int, like: Tensor) -> Tensor:
    """(size - 10, size): a Gaussian window at each place where it fits; much faster than a convolution by channels."""
    at = torch.arange(11, dtype=like.dtype, device=like.device) - 5
    bell = torch.exp(-(at**2) / (2 * 1.5**2))
    places = torch.arange(size - 10, device=like.device)[:, None] + torch.arange(11, device=like.device)
    windows = like.new_zeros(size - 10, size)
    return windows.scatter_(1, places, (bell / bell.sum()).expand(size - 10, 11))
