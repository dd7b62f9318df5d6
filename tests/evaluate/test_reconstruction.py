"""PSNR and SSIM by their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from danqing.evaluate.reconstruction import psnr, similarity, ssim


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def test_psnr() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[0] += 0.1  # mean square 0.01
    b[1, 0, 0, 0] = 1  # one of 48 values
    assert psnr(a, b).tolist() == pytest.approx([20.0, 10 * math.log10(48)], rel=1e-6)
    assert psnr(a, a).tolist() == [math.inf, math.inf]


def test_ssim_of_a_picture_with_itself() -> None:
    assert ssim(pictures(), pictures()).tolist() == pytest.approx([1.0] * 3)


def test_ssim_of_flat_pictures() -> None:
    """Without structure the means alone count."""
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.7)
    assert float(ssim(a, b)) == pytest.approx((2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4), rel=1e-5)


def test_each_picture_is_scored_by_itself() -> None:
    a, b = pictures(), pictures().flip(0)
    for score in (psnr, ssim):
        together = score(a, b)
        alone = torch.cat([score(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        assert together.shape == (3,)
        torch.testing.assert_close(together, alone)


def test_more_noise_scores_lower() -> None:
    a = pictures()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    for score in (psnr, ssim):
        near, far = (float(score(a, a + part * noise).mean()) for part in (0.02, 0.1))
        assert near > far


def test_similarity_teaches() -> None:
    """In float32, and following its gradient makes pictures more alike."""
    a, b = pictures(1), pictures(2)[1:].clone().requires_grad_()
    found = similarity(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach().double(), ssim(a, b.detach()), rtol=1e-3, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), b)
    assert float(ssim(a, b.detach() + 0.5 * gradient / gradient.norm())) > float(ssim(a, b.detach())) + 1e-3
