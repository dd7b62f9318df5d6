"""What a denoiser is asked for: the same `Process` as at sampling, seen from the other side."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from danqing.families import Process


def _at(values: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """(B, 1, 1, 1) of `like`'s device: each picture's entry."""
    return values[steps].to(like.device, torch.float32).view(-1, 1, 1, 1)


@lru_cache(maxsize=8)
def _table(process: Process) -> Tensor:
    """(steps, 4) float64: c_skip, c_out, c_in and what the network is told, of each training step."""
    rows = [(*process.scalings(sigma), process.timestep(sigma)) for sigma in process.sigmas.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def noised(process: Process, clean: Tensor, noise: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the network is given, what it should answer, and what it is told of the noise level.

    clean, noise (B, C, H, W); steps (B,) int, training steps from 0. Returns c_in * x, the target (clean - c_skip * x)
    / c_out, both (B, C, H, W), and c_noise (B,), where x = clean + sigma * noise (Karras et al. 2022, equation 7).
    For v-prediction this is alpha * noise - sigma' * clean with sigma' = sqrt(1 - alpha^2) (Salimans & Ho 2022).
    """
    alpha, part = _coordinates(process)
    a, s = _at(alpha, steps, clean), _at(part, steps, clean)
    noisy = a * clean + s * noise  # c_in * x for all but EDM's, without the large sigma of a zero terminal SNR
    told = _table(process)[:, 3][steps].to(clean.device, torch.float32)
    if process.prediction == "epsilon":
        return noisy, noise, told
    if process.prediction == "v":
        return noisy, a * noise - s * clean, told
    if process.prediction == "flow":
        return noisy, noise - clean, told
    x = clean + _at(process.sigmas, steps, clean) * noise
    c_skip, c_out, c_in = (_at(column, steps, clean) for column in _table(process)[:, :3].T)
    return c_in * x, (clean - c_skip * x) / c_out, told


@lru_cache(maxsize=8)
def _coordinates(process: Process) -> tuple[Tensor, Tensor]:
    """(alpha, alpha * sigma) of each training step: the parts of picture and noise in the model's own coordinates."""
    sigmas = process.sigmas
    alpha = torch.tensor([process.alpha(sigma) for sigma in sigmas.tolist()], dtype=torch.float64)
    return alpha, alpha * sigmas


def weights(process: Process, steps: Tensor, gamma: float | None) -> Tensor:
    """(B,) float32: what each picture's squared error is multiplied by; 1 where gamma is None.

    Min-SNR (Hang et al. 2023, section 3.4): seen as errors of the clean picture, no noise level counts more than
    `gamma`. An error of the network's output is one of the clean picture times c_out^2, so the weight is
    min(1, gamma * c_out^2): for epsilon the paper's min(SNR, gamma) / SNR. For v it is min(SNR + 1, gamma) / (SNR + 1),
    which unlike the paper's stays 1 at a terminal SNR of zero, where a picture's colours are decided.
    """
    if gamma is None:
        return torch.ones(len(steps))
    c_out = _table(process)[:, 1][steps]
    return (gamma * c_out**2).clamp(max=1).float()
