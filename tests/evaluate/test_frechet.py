"""The Fréchet distance where it is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from danqing.errors import DanqingError
from danqing.evaluate.frechet import Moments, frechet, moments


def features(count: int = 200, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_moments() -> None:
    found = moments(features().float())
    assert torch.allclose(found.covariance, torch.cov(features().float().double().T))
    assert found.mean.dtype == torch.float64


def test_equals_are_at_zero_and_the_distance_has_no_direction() -> None:
    a, b = moments(features()), moments(features(300)[100:] * 2 + 1)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)


def test_commuting_covariances() -> None:
    """Diagonal ones: the squared differences of means and of deviations."""
    a = Moments(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 0.0]).double()))
    b = Moments(torch.ones(3).double(), torch.diag(torch.tensor([9.0, 4.0, 2.0]).double()))
    assert frechet(a, b) == pytest.approx(3 + (1 - 3) ** 2 + 0 + 2)


def test_singular_covariances_stay_finite() -> None:
    """Fewer pictures than features."""
    a, b = moments(features(5, 64)), moments(features(9, 64)[4:])
    assert math.isfinite(frechet(a, b))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_one_picture_is_too_few() -> None:
    with pytest.raises(DanqingError, match="two pictures"):
        moments(features(1))
