"""What the comparisons of samplers share: a denoiser in closed form, addressed noise, k-diffusion without its baggage."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from danqing.families import At
from danqing.sampling.types import Prediction, Step


@dataclass
class Mixture:
    """Every element drawn alone from the same mixture of normals: E[x0 | x] at noise level sigma in closed form.

    A denoiser in variance-exploding coordinates that records where it was asked.
    """

    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    means: tuple[float, ...] = (-1.0, 0.5, 2.0)
    deviations: tuple[float, ...] = (0.4, 0.2, 0.5)
    asked: list[At] = field(default_factory=list)

    def clean(self, x: Tensor, sigma: float) -> Tensor:
        logs, parts = [], []
        for weight, mean, deviation in zip(self.weights, self.means, self.deviations):
            variance = deviation**2 + sigma**2
            scale = torch.tensor(weight / variance**0.5, dtype=x.dtype).log()
            logs.append(scale - (x - mean) ** 2 / (2 * variance))
            parts.append((x * deviation**2 + mean * sigma**2) / variance)
        return (torch.stack(logs).softmax(0) * torch.stack(parts)).sum(0)

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The exact probability flow from one level to another, float64.

        In one dimension it keeps every point's quantile; the quantile is found by bisection.
        """
        wanted = self._quantile(x.double(), sigma)
        low, high = torch.full_like(wanted, -50), torch.full_like(wanted, 50)
        for _ in range(80):
            middle = (low + high) / 2
            under = self._quantile(middle, sigma_next) < wanted
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def _quantile(self, x: Tensor, sigma: float) -> Tensor:
        parts = zip(self.weights, self.means, self.deviations)
        return sum((w * torch.special.ndtr((x - m) / math.hypot(d, sigma)) for w, m, d in parts), torch.zeros_like(x))

    def __call__(self, x: Tensor, at: At) -> Prediction:
        self.asked.append(at)
        clean = self.clean(x, at.sigma)
        return Prediction(clean, clean * 0.9 + 0.05)


@dataclass
class Draws:
    """Noise addressed by its number, of one shape; remembers what was asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    asked: list[int] = field(default_factory=list)

    def __call__(self, draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        self.asked.append(draw)
        return self.tensor(draw)

    def tensor(self, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + draw)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def in_order(self) -> Any:
        """A function of anything that returns draw 1, 2, 3, ...: what a reference takes for its noise."""
        count = 0

        def draw(*_: Any, **__: Any) -> Tensor:
            nonlocal count
            count += 1
            return self.tensor(count)

        return draw


def run(sampler: Any, denoise: Any, latents: Tensor, sigmas: Tensor, noise: Any, **options: Any) -> list[Step]:
    return list(sampler(denoise, latents, sigmas, noise, **options))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def k_diffusion(name: str = "sampling") -> ModuleType:
    """k-diffusion's module of that name; the package's own __init__ imports training code that is not installed."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        utils = ModuleType("k_diffusion.utils")
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module(f"k_diffusion.{name}")
