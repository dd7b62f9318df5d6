"""The Fréchet distance of two sets of features (Heusel et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from danqing.errors import DanqingError


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Of features (N, D), N at least 2; the covariance divides by N - 1. Raises DanqingError where N is smaller."""
    if len(features) < 2:
        raise DanqingError(f"a Fréchet distance needs two pictures on each side at least, not {len(features)}")
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), 0 for equals: Heusel et al. 2017, equation 6.

    The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: its eigenvalues are real, and
    those that rounding has made negative are 0. Covariances of fewer pictures than features are singular, and so safe.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ b.covariance @ root
    both = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return max(0.0, float(apart + a.covariance.trace() + b.covariance.trace() - 2 * both))
