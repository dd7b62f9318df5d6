"""Samplers that learn from the steps before: their history is in `Step.state`.

Signature and conventions are those of `danqing.sampling.singlestep`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from danqing.families import At
from danqing.sampling.common import derivative, remaining
from danqing.sampling.types import Denoise, Noise, Step


def lms(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    order: int = 4,
) -> Iterator[Step]:
    """Linear multistep (Adams-Bashforth on uneven steps): the derivative is the polynomial through the last four."""
    x = latents if resume is None else resume.latents
    slopes: list[Tensor] = [] if resume is None else list(resume.state["slopes"])
    levels = sigmas.tolist()
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        slopes = [*slopes, derivative(x, clean, sigma)][-order:]
        nodes = levels[i + 1 - len(slopes) : i + 1]
        for slope, weight in zip(slopes, _adams_bashforth(nodes, sigma, sigma_next)):
            x = x + slope * weight
        yield Step(i, x, clean, {"slopes": tuple(slopes)})


def _adams_bashforth(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral from `start` to `end` of each Lagrange polynomial; two Gauss points are exact to degree 3."""
    centre, half = (start + end) / 2, (end - start) / 2
    points = (centre - half / 3**0.5, centre + half / 3**0.5)

    def basis(j: int, at: float) -> float:
        return math.prod((at - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)

    return [half * sum(basis(j, at) for at in points) for j in range(len(nodes))]


PLMS_WEIGHTS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (-1 / 2, 3 / 2),
    (5 / 12, -16 / 12, 23 / 12),
    (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
)
"""Adams-Bashforth on even steps, oldest first: Liu et al. 2022 (PNDM), eq. 12."""


def plms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: Noise, resume: Step | None = None) -> Iterator[Step]:
    """Pseudo linear multistep: Liu et al. 2022 (PNDM), algorithm 2 begun with one pseudo improved Euler step."""
    x = latents if resume is None else resume.latents
    slopes: list[Tensor] = [] if resume is None else list(resume.state["slopes"])
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        slopes = [*slopes, derivative(x, clean, sigma)][-4:]
        slope = sum((w * s for w, s in zip(PLMS_WEIGHTS[len(slopes) - 1], slopes)), torch.zeros_like(x))
        if len(slopes) == 1 and sigma_next > 0:
            ahead = x + slope * (sigma_next - sigma)
            slope = (slope + derivative(ahead, denoise(ahead, At(sigma_next, i + 0.5)).clean, sigma_next)) / 2
        x = x + slope * (sigma_next - sigma)
        yield Step(i, x, clean, {"slopes": tuple(slopes)})


def dpmpp_2m(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: Noise, resume: Step | None = None
) -> Iterator[Step]:
    """DPM-Solver++(2M): Lu et al. 2022b, algorithm 2."""
    x = latents if resume is None else resume.latents
    previous: Tensor | None = None if resume is None else resume.state["previous"]
    levels = sigmas.tolist()
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        ahead = clean
        if previous is not None and sigma_next > 0:
            r = math.log(levels[i - 1] / sigma) / math.log(sigma / sigma_next)
            ahead = clean + (clean - previous) / (2 * r)
        ratio = sigma_next / sigma
        x = ratio * x + (1 - ratio) * ahead
        previous = clean
        yield Step(i, x, clean, {"previous": previous})


def dpmpp_2m_sde(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M): Lu et al. 2022b, eq. 19 and appendix; `solver` says how the slope enters."""
    x = latents if resume is None else resume.latents
    previous: Tensor | None = None if resume is None else resume.state["previous"]
    levels = sigmas.tolist()
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        if sigma_next == 0:
            x = clean
        else:
            h = math.log(sigma / sigma_next)
            reach = h * (1 + eta)
            gain = -math.expm1(-reach)
            x = math.exp(-reach) * x + gain * clean
            if previous is not None:
                r = math.log(levels[i - 1] / sigma) / h
                slope = (clean - previous) / r
                x = x + (gain / 2 if solver == "midpoint" else 1 - gain / reach) * slope
            x = _renoised(x, noise, i, sigma, sigma_next, h * eta, s_noise)
        previous = clean
        yield Step(i, x, clean, {"previous": previous})


def dpmpp_3m_sde(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(3M) of k-diffusion: the third order of Lu et al. 2022b, algorithm 2, with their SDE's factors."""
    x = latents if resume is None else resume.latents
    history: list[Tensor] = [] if resume is None else list(resume.state["history"])
    levels = sigmas.tolist()
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        if sigma_next == 0:
            x = clean
        else:
            h = math.log(sigma / sigma_next)
            reach = h * (1 + eta)
            x = math.exp(-reach) * x - math.expm1(-reach) * clean
            phi_2 = math.expm1(-reach) / reach + 1
            if len(history) == 1:
                r = math.log(levels[i - 1] / sigma) / h
                x = x + phi_2 / r * (clean - history[-1])
            elif len(history) == 2:
                r0 = math.log(levels[i - 1] / sigma) / h
                r1 = math.log(levels[i - 2] / levels[i - 1]) / h
                slope, slope_before = (clean - history[-1]) / r0, (history[-1] - history[-2]) / r1
                bend = (slope - slope_before) / (r0 + r1)
                phi_3 = phi_2 / reach - 0.5
                x = x + phi_2 * (slope + bend * r0) - phi_3 * bend
            x = _renoised(x, noise, i, sigma, sigma_next, h * eta, s_noise)
        history = [*history, clean][-2:]
        yield Step(i, x, clean, {"history": tuple(history)})


def _renoised(
    x: Tensor, noise: Noise, index: int, sigma: float, sigma_next: float, reach: float, s_noise: float
) -> Tensor:
    """The noise of SDE-DPM-Solver++ (Lu et al. 2022b, eq. 18) for eta * h = `reach`."""
    if reach == 0:
        return x
    return x + noise(index + 1, sigma, sigma_next) * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * reach)))


def unipc(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh1",
) -> Iterator[Step]:
    """UniPC-p, predicting the clean latents: Zhao et al. 2023, algorithms 5 and 6 and appendix; B(h) = h or e^h - 1.

    Each step corrects the latents it stands on with the prediction made there, then predicts the next; the order
    falls towards the end and the last step is not corrected.
    """
    x = latents if resume is None else resume.latents
    history: list[Tensor] = [] if resume is None else list(resume.state["history"])
    base: Tensor = x if resume is None else resume.state["base"]
    levels = sigmas.tolist()

    def order_of(i: int) -> int:
        return min(order, i + 1, len(levels) - 1 - i)

    for i, sigma, _ in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        if i > 0:
            x = _unipc_update(base, history, levels[: i + 1], order_of(i - 1), variant, clean)
        base = x
        history = [*history, clean][-order:]
        x = _unipc_update(base, history, levels[: i + 2], order_of(i), variant, None)
        yield Step(i, x, clean, {"history": tuple(history), "base": base})


def _unipc_update(
    base: Tensor, history: Sequence[Tensor], levels: Sequence[float], order: int, variant: str, new: Tensor | None
) -> Tensor:
    """From levels[-2] to levels[-1]: the predictor, or with the prediction `new` made there, the corrector.

    `history` holds the clean predictions at the levels up to levels[-2], newest last.
    """
    newest, sigma, sigma_next = history[-1], levels[-2], levels[-1]
    if sigma_next == 0:
        return newest
    h = math.log(sigma / sigma_next)
    # r_k of the paper, and the differences D_k / r_k; the corrector's own has r = 1.
    ratios = [math.log(sigma / levels[-2 - k]) / h for k in range(1, order)]
    slopes = [(history[-1 - k] - newest) / ratio for k, ratio in enumerate(ratios, start=1)]
    ratios.append(1.0)

    phi_1 = math.expm1(-h)
    scale = -h if variant == "bh1" else phi_1
    targets, phi, factorial = [], -phi_1 / h - 1, 1
    for k in range(1, order + 1):
        targets.append(phi * factorial / scale)
        factorial *= k + 1
        phi = -phi / h - 1 / factorial
    if new is not None:
        slopes.append(new - newest)
    count = len(slopes)
    # With one unknown the paper takes 1/2, which keeps the order.
    weights = [0.5] if count == 1 else _solve_vandermonde(ratios[:count], targets[:count])

    x = (sigma_next / sigma) * base - phi_1 * newest
    for weight, slope in zip(weights, slopes):
        x = x - (scale * weight) * slope
    return x


def _solve_vandermonde(nodes: Sequence[float], targets: Sequence[float]) -> list[float]:
    """w with sum_k w_k nodes_k^p = targets_p for p = 0, 1, ..."""
    if not nodes:
        return []
    matrix = torch.tensor([[node**p for node in nodes] for p in range(len(nodes))], dtype=torch.float64)
    solution: list[float] = torch.linalg.solve(matrix, torch.tensor(targets, dtype=torch.float64)).tolist()
    return solution


def er_sde(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """ER-SDE-Solver-3 (variance exploding): Cui et al. 2023, algorithm 3, with the noise scale of its experiments."""
    x = latents if resume is None else resume.latents
    state = {"previous": None, "slope": None} if resume is None else resume.state
    previous: Tensor | None = state["previous"]
    slope_before: Tensor | None = state["slope"]
    levels = sigmas.tolist()
    for i, sigma, sigma_next in remaining(sigmas, resume):
        clean = denoise(x, At(sigma, i)).clean
        slope: Tensor | None = None
        if sigma_next == 0:
            x = clean
        else:
            scale_next = _er_sde_scale(sigma_next)
            r = scale_next / _er_sde_scale(sigma)
            x = r * x + (1 - r) * clean
            first, second = _er_sde_integrals(sigma, sigma_next)
            h = sigma_next - sigma
            if previous is not None:
                slope = (clean - previous) / (sigma - levels[i - 1])
                x = x + (h + first * scale_next) * slope
            if slope is not None and slope_before is not None:
                bend = (slope - slope_before) / ((sigma - levels[i - 2]) / 2)
                x = x + (h**2 / 2 + second * scale_next) * bend
            up = max(0.0, sigma_next**2 - (sigma * r) ** 2) ** 0.5
            if s_noise > 0 and up > 0:
                x = x + noise(i + 1, sigma, sigma_next) * (s_noise * up)
        previous, slope_before = clean, slope
        yield Step(i, x, clean, {"previous": previous, "slope": slope_before})


def _er_sde_scale(sigma: float) -> float:
    """phi of Cui et al. 2023, section 5 (ER SDE 5)."""
    return sigma * (math.exp(sigma**0.3) + 10)


def _er_sde_integrals(sigma: float, sigma_next: float) -> tuple[float, float]:
    """The integrals from sigma_next to sigma of 1 / phi(l) and (l - sigma) / phi(l), by 200 rectangles as published."""
    width = (sigma - sigma_next) / 200
    points = [sigma_next + k * width for k in range(200)]
    weights = [width / _er_sde_scale(point) for point in points]
    return sum(weights), sum((point - sigma) * weight for point, weight in zip(points, weights))
