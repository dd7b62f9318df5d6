"""Guidance against diffusers' rescale and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from danqing.families import At, Process
from danqing.models.conditioning import Conditioning
from danqing.sampling.guidance import classifier_free, dynamic_thresholding, rescale

from .references import relative_error

Parity = Callable[[str, str, float, float], None]


def _outputs(count: int) -> list[Tensor]:
    """What a network may say: (3, 4, 8, 8) per branch."""
    generator = torch.Generator().manual_seed(11)
    common = torch.randn(3, 4, 8, 8, generator=generator)
    return [common + 0.3 * torch.randn(3, 4, 8, 8, generator=generator) for _ in range(count)]


def _predict(process: Process, outputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    def predict(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        c_skip, c_out, _ = process.scalings(at.sigma)
        return [c_skip * latents + c_out * outputs[int(branch.context[0, 0, 0])] for branch in branches]

    return predict


def _branch(index: int, strength: float = 1.0) -> Conditioning:
    return Conditioning(torch.full((1, 1, 1), float(index)), strength=strength)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0])
def test_rescale_of_diffusers(parity: Parity, prediction: str, sigma: float) -> None:
    process, (cond, uncond) = Process(prediction=prediction), _outputs(2)
    x = torch.randn(3, 4, 8, 8) * (1 + sigma**2) ** 0.5
    reference = rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, 0.7)
    denoise = classifier_free(_predict(process, [cond, uncond]), [_branch(0)], [_branch(1)], 7.5)
    clean = rescale(denoise, process, 0.7)(x.double(), At(sigma, 0)).clean
    c_skip, c_out, _ = process.scalings(sigma)
    expected = c_skip * x.double() + c_out * reference.double()
    error = relative_error(clean, expected)
    parity(f"guidance rescale, {prediction}", "diffusers 0.42.1 rescale_noise_cfg", error, 1e-5)


def test_composed_prompts_of_a1111(parity: Parity) -> None:
    """Its formula: the negative one's prediction, plus each prompt's difference from it times weight times scale."""
    process, outputs = Process(), _outputs(3)
    x = torch.randn(3, 4, 8, 8)
    predict = _predict(process, outputs)
    a, b, negative = predict(x, At(2.0, 0), [_branch(i) for i in range(3)])
    expected = negative.double() + (a - negative).double() * 7 * 1.3 + (b - negative).double() * 7 * 0.6
    clean = classifier_free(predict, [_branch(0, 1.3), _branch(1, 0.6)], [_branch(2)], 7.0)(x, At(2.0, 0)).clean
    parity("composed prompts (AND)", "closed form of A1111 1.10.1", relative_error(clean, expected), 1e-6)


def test_dynamic_thresholding_channel_by_channel(parity: Parity) -> None:
    process, (cond, uncond) = Process(), _outputs(2)
    x = torch.randn(3, 4, 8, 8)
    predict = _predict(process, [cond, uncond])
    positive, negative = (p.double().numpy() for p in predict(x, At(2.0, 0), [_branch(0), _branch(1)]))
    expected = np.empty_like(positive)
    for picture in range(3):
        for channel in range(4):
            u, difference = negative[picture, channel], positive[picture, channel] - negative[picture, channel]
            high, low = u + 18 * difference, u + 6 * difference
            top = np.abs(low - low.mean()).max()
            bound = max(np.quantile(np.abs(high - high.mean()), 0.9), top)
            expected[picture, channel] = np.clip(high - high.mean(), -bound, bound) / bound * top + high.mean()
    denoise = classifier_free(predict, [_branch(0)], [_branch(1)], 18.0)
    clean = dynamic_thresholding(denoise, 6.0, 0.9)(x, At(2.0, 0)).clean
    error = relative_error(clean, torch.from_numpy(expected))
    parity("dynamic thresholding", "closed form of sd-dynamic-thresholding, constant mode", error, 1e-5)
