"""Noise against k-diffusion's Brownian tree, torchsde with AUTOMATIC1111's random numbers, and diffusers' randn_tensor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torchsde._brownian import brownian_interval

from danqing.sampling.noise import brownian_noise, philox, picture_noise

from .references import k_diffusion

Parity = Callable[[str, str, float, float], None]
SHAPE = (4, 8, 8)
SIGMAS = torch.tensor([14.6146, 9.72, 6.3, 3.9, 3.899999, 1.7, 0.61, 0.0291675])


def _largest(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor]) -> float:
    worst = 0.0
    steps = [*pairwise(SIGMAS), (SIGMAS[1], SIGMAS[4]), (SIGMAS[5], SIGMAS[2]), (SIGMAS[0], SIGMAS[-1])]
    for here, there in steps:
        worst = max(worst, float((ours(1, float(here), float(there)) - theirs(here, there)).abs().max()))
    return worst


@pytest.mark.parametrize("seeds", [[0], [1234567], [5, 6, 2**40 + 7]])
def test_brownian_tree_of_k_diffusion(parity: Parity, seeds: list[int]) -> None:
    x = torch.zeros(len(seeds), *SHAPE)
    low, high = SIGMAS[-1], SIGMAS[0]
    reference = k_diffusion().BrownianTreeNoiseSampler(x, low, high, seed=seeds)
    ours = brownian_noise(seeds, SHAPE, float(low), float(high))
    parity("Brownian noise", "k-diffusion 0.1.1 BrownianTreeNoiseSampler", _largest(ours, reference), 0.0)


def test_brownian_tree_of_one_seed_for_the_batch(parity: Parity) -> None:
    x = torch.zeros(3, *SHAPE)
    low, high = SIGMAS[-1], SIGMAS[0]
    reference = k_diffusion().BrownianTreeNoiseSampler(x, low, high, seed=77)
    ours = brownian_noise([77, 78, 79], SHAPE, float(low), float(high), batch_draw=True)
    subject = "Brownian noise, one seed for the batch (ComfyUI)"
    parity(subject, "k-diffusion 0.1.1 BrownianTreeNoiseSampler", _largest(ours, reference), 0.0)


def test_brownian_tree_over_philox(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTOMATIC1111 replaces torchsde's random numbers by those of its `randn_source`."""

    def randn(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
        return torch.from_numpy(philox(int(seed), size))

    monkeypatch.setattr(brownian_interval, "_randn", randn)
    x = torch.zeros(2, *SHAPE)
    low, high = SIGMAS[-1], SIGMAS[0]
    reference = k_diffusion().BrownianTreeNoiseSampler(x, low, high, seed=[8, 9])
    ours = brownian_noise([8, 9], SHAPE, float(low), float(high), source="philox")
    subject = "Brownian noise over Philox (A1111)"
    parity(subject, "torchsde 0.2.6 BrownianTree with its randn replaced", _largest(ours, reference), 0.0)


def test_noise_of_a_diffusers_generator(parity: Parity) -> None:
    generator = torch.Generator().manual_seed(21)
    noise = picture_noise([21, 22], SHAPE, batch_draw=True)
    error = max(
        float((noise(draw) - randn_tensor((2, *SHAPE), generator=generator, dtype=torch.float32)).abs().max())
        for draw in range(3)
    )
    parity("noise, one generator for the batch", "diffusers randn_tensor", error, 0.0)
    generators = [torch.Generator().manual_seed(seed) for seed in (21, 22)]
    each = randn_tensor((2, *SHAPE), generator=generators, dtype=torch.float32)
    error = float((picture_noise([21, 22], SHAPE)(0) - each).abs().max())
    parity("noise, a generator per picture", "diffusers randn_tensor", error, 0.0)
