"""The Fréchet distance against the matrix square root of scipy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from scipy.linalg import sqrtm

from danqing.evaluate.frechet import frechet, moments


def test_frechet(parity: Callable[[str, str, float, float], None]) -> None:
    draw = np.random.default_rng(0)
    for count, width in ((1000, 32), (400, 128)):
        turn = draw.normal(size=(width, width)) / width**0.5
        a, b = draw.normal(size=(count, width)), draw.normal(size=(count, width)) @ turn + 0.2
        covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = sqrtm(covariances[0] @ covariances[1]).real
        apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
        wanted = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
        found = frechet(moments(torch.from_numpy(a)), moments(torch.from_numpy(b)))
        parity("Fréchet distance", f"scipy {version('scipy')} linalg.sqrtm", abs(found - wanted) / wanted, 1e-8)
