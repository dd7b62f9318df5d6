"""Samplers that remember nothing between steps.

All share one signature (`types.SamplerFunction`): `latents` (B, C, H, W) float32 at noise level `sigmas[0]`, in
variance-exploding coordinates x = x0 + sigma * noise; `sigmas` (steps + 1,), falling; they yield a `Step` after each
step. In these coordinates one formula serves epsilon, v and flow models. `At.step` is the step's index, plus a half at
inner evaluations. Draws of noise are addressed by the step's index, as the reference implementations count them, and
only asked for where their factor is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At, Process
from danqing.sampling.common import ancestral, churn, derivative, remaining
from danqing.sampling.schedules import karras_levels
from danqing.sampling.types import Denoise, Noise, Step


def euler(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's method on the probability flow: Karras et al. 2022, algorithm 2 without its correction."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        x, raised = churn(x, sigma, len(sigmas) - 1, noise, i + 1, s_churn, s_tmin, s_tmax, s_noise)
        clean = denoise(x, At(raised, i)).clean
        x = x + derivative(x, clean, raised) * (sigma_next - raised)
        yield Step(i, x, clean)


def heun(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method: Karras et al. 2022, algorithm 2."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        x, raised = churn(x, sigma, len(sigmas) - 1, noise, i + 1, s_churn, s_tmin, s_tmax, s_noise)
        clean = denoise(x, At(raised, i)).clean
        x = _heun_step(denoise, x, clean, raised, sigma_next, i)
        yield Step(i, x, clean)


def _heun_step(denoise: Denoise, x: Tensor, clean: Tensor, sigma: float, sigma_next: float, index: int) -> Tensor:
    """The trapezoid rule; at sigma_next = 0, where the derivative is undefined, Euler's."""
    slope = derivative(x, clean, sigma)
    ahead = x + slope * (sigma_next - sigma)
    if sigma_next == 0:
        return ahead
    slope_ahead = derivative(ahead, denoise(ahead, At(sigma_next, index + 0.5)).clean, sigma_next)
    return x + (slope + slope_ahead) / 2 * (sigma_next - sigma)


def dpm2(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """The midpoint rule with the middle in log sigma (after DPM-Solver-2, Lu et al. 2022), with Karras's churn."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        x, raised = churn(x, sigma, len(sigmas) - 1, noise, i + 1, s_churn, s_tmin, s_tmax, s_noise)
        clean = denoise(x, At(raised, i)).clean
        x = _midpoint_step(denoise, x, clean, raised, sigma_next, i)
        yield Step(i, x, clean)


def dpm2_ancestral(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """`dpm2` down to a lower level, then noise up to the next (k-diffusion's DPM2 ancestral)."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        down, up = ancestral(sigma, sigma_next, eta)
        clean = denoise(x, At(sigma, i)).clean
        x = _midpoint_step(denoise, x, clean, sigma, down, i)
        if up > 0:
            x = x + noise(i + 1, sigma, sigma_next) * (s_noise * up)
        yield Step(i, x, clean)


def _midpoint_step(denoise: Denoise, x: Tensor, clean: Tensor, sigma: float, sigma_next: float, index: int) -> Tensor:
    slope = derivative(x, clean, sigma)
    if sigma_next == 0:
        return x + slope * (sigma_next - sigma)
    middle = (sigma * sigma_next) ** 0.5
    halfway = x + slope * (middle - sigma)
    slope = derivative(halfway, denoise(halfway, At(middle, index + 0.5)).clean, middle)
    return x + slope * (sigma_next - sigma)


def euler_ancestral(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's step down to a lower level, then noise up to the next."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        down, up = ancestral(sigma, sigma_next, eta)
        x = x + derivative(x, clean, sigma) * (down - sigma)
        if up > 0:
            x = x + noise(i + 1, sigma, sigma_next) * (s_noise * up)
        yield Step(i, x, clean)


def ddim(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Song et al. 2021 (DDIM), eq. 12 with the sigma of eq. 16: divided by sqrt(alpha), it is `euler_ancestral`."""
    return euler_ancestral(denoise, latents, sigmas, noise, resume, eta=eta)


def ddpm(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: Noise, resume: Step | None = None) -> Iterator[Step]:
    """Ho et al. 2020, algorithm 2 with the posterior variance of eq. 7: DDIM at eta = 1."""
    return euler_ancestral(denoise, latents, sigmas, noise, resume, eta=1.0)


def ddim_cfgpp(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Chung et al. 2024 (CFG++), algorithm 2: DDIM that renoises with the unconditional noise.

    The guidance scale of the paper lies in [0, 1]; bringing the request's into it is the guidance's part.
    Raises DanqingError when the prediction has no unconditional part.
    """
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        prediction = denoise(x, At(sigma, i))
        if prediction.unconditional is None:
            raise DanqingError("sampler_name: CFG++ needs the unconditional prediction; use a CFG scale other than 1")
        down, up = ancestral(sigma, sigma_next, eta)
        x = prediction.clean + derivative(x, prediction.unconditional, sigma) * down
        if up > 0:
            x = x + noise(i + 1, sigma, sigma_next) * up
        yield Step(i, x, prediction.clean)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1 with r = 1/2, down to a lower level; then noise up to the next."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        down, up = ancestral(sigma, sigma_next, eta)
        target = clean
        if down > 0:
            middle = (sigma * down) ** 0.5
            halfway = _exponential_step(x, clean, middle / sigma)
            target = denoise(halfway, At(middle, i + 0.5)).clean
        x = _exponential_step(x, target, down / sigma)
        if up > 0:
            x = x + noise(i + 1, sigma, sigma_next) * (s_noise * up)
        yield Step(i, x, clean)


def _exponential_step(x: Tensor, clean: Tensor, ratio: float) -> Tensor:
    """The exact solution for a constant clean prediction: DPM-Solver++, eq. 8, with ratio = sigma_next / sigma."""
    return ratio * x + (1 - ratio) * clean


def dpmpp_sde(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++ (stochastic) of k-diffusion, r = 1/2: two draws a step, from `sigma` to the middle and to the end."""
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        if sigma_next == 0:
            x = clean
            yield Step(i, x, clean)
            continue
        start, middle, end = _log_halves(sigma, sigma_next)
        down, up = ancestral(sigma, middle, eta)
        halfway = _exponential_step(x, clean, down / sigma)
        if up > 0:
            halfway = halfway + noise(2 * i + 1, start, middle) * (s_noise * up)
        clean_middle = denoise(halfway, At(middle, i + 0.5)).clean

        # With r = 1/2 the second-order combination is the middle's prediction alone.
        down, up = ancestral(sigma, sigma_next, eta)
        x = _exponential_step(x, clean_middle, down / sigma)
        if up > 0:
            x = x + noise(2 * i + 2, start, end) * (s_noise * up)
        yield Step(i, x, clean)


def _log_halves(sigma: float, sigma_next: float) -> tuple[float, float, float]:
    """The step's ends and its middle in log sigma, through float32 logarithms as in k-diffusion.

    A Brownian path moves by sqrt(dt): only the same bits of time give that tool's noise.
    """
    time, time_next = -torch.tensor(sigma).log(), -torch.tensor(sigma_next).log()
    middle = time + (time_next - time) * 0.5
    return float((-time).exp()), float((-middle).exp()), float((-time_next).exp())


def lcm(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
) -> Iterator[Step]:
    """Multistep consistency sampling: Song et al. 2023, algorithm 1; Luo et al. 2023 (LCM).

    The boundary factors c_skip and c_out of LCM are left out: with the timestep scaled by 10 they differ from 0 and 1
    by less than 1e-5 at every step of the 50.
    """
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        x = clean = denoise(x, At(sigma, i)).clean
        if sigma_next > 0:
            x = clean + noise(i + 1, sigma, sigma_next) * sigma_next
        yield Step(i, x, clean)


def tcd(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 0.3,
    process: Process = Process(),  # noqa: B008 - frozen
) -> Iterator[Step]:
    """Strategic stochastic sampling: Zheng et al. 2024 (TCD), algorithm 4; `eta` is the paper's gamma.

    Each step goes to timestep (1 - gamma) t_next, whole as in training, and is renoised to t_next; `process` gives
    the timesteps' noise levels.
    """
    x = latents if resume is None else resume.latents
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        below = 0.0
        if sigma_next > 0:
            # Rounded first: a timestep that is whole but for float32 must not fall to the one below.
            below = min(sigma_next, process.sigma_at(math.floor(round((1 - eta) * process.timestep(sigma_next), 2))))
        x = clean + derivative(x, clean, sigma) * below
        up = (sigma_next**2 - below**2) ** 0.5
        if eta > 0 and up > 1e-6 * sigma_next:
            x = x + noise(i + 1, sigma, sigma_next) * up
        yield Step(i, x, clean)


def restart(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Xu et al. 2023 (Restart sampling), algorithm 1, on Heun's method, with A1111's choice of restarts.

    From 20 steps on the schedule is made anew (Karras) so that the steps of the restarts fit into the same number.
    Draws are counted by restarts.
    """
    x = latents if resume is None else resume.latents
    first = 0 if resume is None else resume.index + 1
    draws, previous = 0, math.inf
    for i, (sigma, sigma_next) in enumerate(_restart_plan(sigmas)):
        jump = sigma > previous
        draws += jump
        if i >= first:
            if jump:
                x = x + noise(draws, previous, sigma) * (s_noise * (sigma**2 - previous**2) ** 0.5)
            clean = denoise(x, At(sigma, i)).clean
            x = _heun_step(denoise, x, clean, sigma, sigma_next, i)
            yield Step(i, x, clean)
        previous = sigma_next


def _restart_plan(sigmas: Tensor) -> list[tuple[float, float]]:
    """(sigma, next sigma) of every step: down the schedule and, at about 0.1, back up to about 2 and down again."""
    levels: list[float] = sigmas.tolist()
    steps = len(levels) - 1
    if steps < 20:
        return list(pairwise(levels))
    extra, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    levels = [*karras_levels(levels[0], levels[-2], steps - extra * times).tolist(), 0.0]
    low = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.1))
    high = min(range(len(levels)), key=lambda i: abs(levels[i] - 2))
    plan = list(pairwise(levels))
    if high < low:
        again = karras_levels(levels[high], levels[low], extra + 1).tolist()
        plan[low:low] = list(pairwise(again)) * times
    return plan
