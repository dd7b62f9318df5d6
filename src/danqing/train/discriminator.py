"""The adversary of the autoencoder: which patches of a picture are drawn, and which rebuilt."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import GroupNorm


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, appendix 6.1.2): pictures (B, 3, H, W) in [-1, 1] -> (B, 1, h, w), high where real.

    Group normalisation stands where the original has batch normalisation, so that a picture is judged by itself.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            wider = min(channels * 2**i, channels * 8)
            parts += [
                nn.Conv2d(width, wider, 4, 2 if i < layers else 1, 1, bias=False),
                GroupNorm(gcd(8, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)  # type: ignore[no-any-return]


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """What the adversary minimises, of its scores: `hinge` (Lim & Ye 2017) or `minimax` (Goodfellow et al. 2014)."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """What the autoencoder minimises: minus the score, or the original game's non-saturating form."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def gradient_penalty(real_scores: Tensor, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, equation 9) without its factor: the squared gradient at real pictures."""
    (gradient,) = torch.autograd.grad(real_scores.sum(), real, create_graph=True)
    penalty: Tensor = gradient.square().sum((1, 2, 3)).mean()
    return penalty


def adaptive_weight(rebuilding: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the adversary may count: the ratio of both losses' gradients at the decoder's last weights.

    Esser et al. 2021, equation 7, with latent diffusion's bounds.
    """
    (a,) = torch.autograd.grad(rebuilding, last, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    weight: Tensor = (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4)
    return weight.detach()
