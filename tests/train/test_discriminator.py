"""The adversary's losses by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from danqing.train.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.25, -0.5])


def test_hinge() -> None:
    # (0 + 0.5 + 2) / 3 and (0 + 1.25 + 0.5) / 3, halved
    assert float(discriminator_loss(REAL, FAKE, "hinge")) == pytest.approx((2.5 / 3 + 1.75 / 3) / 2)
    assert float(generator_loss(FAKE, "hinge")) == pytest.approx(2.25 / 3)


def test_minimax() -> None:
    """-log D(real) - log(1 - D(fake)), and -log D(fake) for the other side, with D the sigmoid of the score."""
    real, fake = REAL.sigmoid().log(), (1 - FAKE.sigmoid()).log()
    assert float(discriminator_loss(REAL, FAKE, "minimax")) == pytest.approx(float(-(real.mean() + fake.mean()) / 2))
    assert float(generator_loss(FAKE, "minimax")) == pytest.approx(float(-FAKE.sigmoid().log().mean()))


def test_gradient_penalty() -> None:
    """Of scores a . x + |x|^2 / 2 a picture, whose gradient is a + x; and it teaches a."""
    a = torch.randn(3, 4, 4, requires_grad=True)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = gradient_penalty((a * x).sum((1, 2, 3)) + x.square().sum((1, 2, 3)) / 2, x)
    torch.testing.assert_close(penalty, (a + x).square().sum((1, 2, 3)).mean())
    (found,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(found, 2 * (a + x).mean(0))


def test_adaptive_weight() -> None:
    last = nn.Parameter(torch.tensor([1.0, 1.0]))
    rebuilding, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(rebuilding, adversarial, last)
    assert float(weight) == pytest.approx(5 / (2 + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(1e6 * rebuilding, 0 * adversarial, last)) == 1e4
    assert float(adaptive_weight(0 * rebuilding, adversarial, last)) == 0


@pytest.mark.parametrize(("layers", "reach"), [(1, 16), (2, 34), (3, 70)])
def test_patches(layers: int, reach: int) -> None:
    """A score sees so many pixels (Isola et al. 2017, appendix 6.1.2), and its own picture only."""
    torch.manual_seed(0)
    network = PatchDiscriminator(8, layers)
    for module in network.modules():  # normalisation sees the whole picture: left out of this
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    pixels = torch.randn(2, 3, 128, 128, requires_grad=True)
    scores = network(pixels)
    side = 128 // 2**layers - 2
    assert scores.shape == (2, 1, side, side)
    (gradient,) = torch.autograd.grad(scores[0, 0, side // 2, side // 2], pixels)
    rows, columns = (gradient[0].abs().sum((0, axis)).nonzero() for axis in (2, 1))
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == reach
    assert not gradient[1].any()


def test_odd_channels() -> None:
    assert PatchDiscriminator(3, 2)(torch.zeros(1, 3, 32, 32)).isfinite().all()
