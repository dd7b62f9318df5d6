"""DPM-Solver with its own steps, even in log sigma or adaptive (Lu et al. 2022), after k-diffusion.

Both run between the schedule's highest and lowest positive level, whatever lies between, and end at the lowest, not at
0, as in A1111 and ComfyUI; a schedule of one step goes to the clean prediction. Signature and conventions are those of
`danqing.sampling.singlestep`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from danqing.families import At
from danqing.sampling.common import ancestral
from danqing.sampling.types import Denoise, Noise, Step

NoisePrediction = Callable[[Tensor, float], Tensor]
"""(x, time) -> epsilon, where time = -log sigma (lambda of the paper at alpha = 1)."""


def _sigma(time: float) -> float:
    return math.exp(-time)


def _solve_1(x: Tensor, time: float, end: float, eps: Tensor) -> Tensor:
    """Lu et al. 2022, eq. 3.7."""
    return x - _sigma(end) * math.expm1(end - time) * eps


def _solve_2(x: Tensor, time: float, end: float, eps: Tensor, eps_1: Tensor, r1: float) -> Tensor:
    """Lu et al. 2022, algorithm 4, given the prediction `eps_1` at the first inner point."""
    gain = _sigma(end) * math.expm1(end - time)
    return x - gain * eps - gain / (2 * r1) * (eps_1 - eps)


def _inner_1(x: Tensor, time: float, end: float, eps: Tensor, predict: NoisePrediction, r1: float) -> Tensor:
    middle = time + r1 * (end - time)
    return predict(_solve_1(x, time, middle, eps), middle)


def _solve_3(x: Tensor, time: float, end: float, eps: Tensor, eps_1: Tensor, predict: NoisePrediction) -> Tensor:
    """Lu et al. 2022, algorithm 2 (r1 = 1/3, r2 = 2/3), given `eps_1`."""
    h = end - time
    reach = 2 / 3 * h
    second = time + reach
    bend = 2 * (math.expm1(reach) / reach - 1)
    u = x - _sigma(second) * math.expm1(reach) * eps - _sigma(second) * bend * (eps_1 - eps)
    eps_2 = predict(u, second)
    return x - _sigma(end) * math.expm1(h) * eps - _sigma(end) * 1.5 * (math.expm1(h) / h - 1) * (eps_2 - eps)


def _split(time: float, end: float, last: float, eta: float) -> tuple[float, float]:
    """(time to step to, noise to add there to come back to `end`); never beyond `last`."""
    down, _ = ancestral(_sigma(time), _sigma(end), eta)
    beyond = min(last, -math.log(down)) if eta else end
    return beyond, max(0.0, _sigma(end) ** 2 - _sigma(beyond) ** 2) ** 0.5


def _ends(sigmas: Tensor) -> tuple[float, float]:
    """(first, last) time of the schedule's positive levels."""
    levels = sigmas.tolist()
    return -math.log(levels[0]), -math.log(levels[-1] if levels[-1] > 0 else levels[-2])


def _single(denoise: Denoise, latents: Tensor, sigmas: Tensor, resume: Step | None) -> Iterator[Step]:
    """A schedule with nothing between its one level and 0."""
    if resume is None:
        clean = denoise(latents, At(float(sigmas[0]), 0)).clean
        yield Step(0, clean, clean)


def dpm_fast(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-fast: Lu et al. 2022, section 3.4, with ancestral noise at `eta` (k-diffusion).

    Makes as many predictions as the schedule has steps, three to a step of its own; `At.step` counts predictions, so
    what is scheduled by steps meets the steps that were asked for.
    """
    first, last = _ends(sigmas)
    if first >= last:
        yield from _single(denoise, latents, sigmas, resume)
        return
    count = len(sigmas) - 1
    whole = count // 3
    orders = [3] * (whole - 1) + [2, 1] if count % 3 == 0 else [3] * whole + [count % 3]
    # The end is exactly `last`, so that no rounding is left to be made up with noise there.
    times = [first + (last - first) * k / len(orders) for k in range(len(orders))] + [last]

    x = latents if resume is None else resume.latents
    for i in range(0 if resume is None else resume.index + 1, len(orders)):
        time, order = times[i], orders[i]
        end, up = _split(time, times[i + 1], last, eta)
        done = sum(orders[:i])
        clean = denoise(x, At(_sigma(time), done)).clean
        eps = (x - clean) / _sigma(time)
        inner = iter(range(done + 1, done + order))

        def predict(u: Tensor, at: float, inner: Iterator[int] = inner) -> Tensor:
            return (u - denoise(u, At(_sigma(at), next(inner))).clean) / _sigma(at)

        if order == 1:
            x = _solve_1(x, time, end, eps)
        elif order == 2:
            x = _solve_2(x, time, end, eps, _inner_1(x, time, end, eps, predict, 1 / 2), 1 / 2)
        else:
            x = _solve_3(x, time, end, eps, _inner_1(x, time, end, eps, predict, 1 / 3), predict)
        if up > 0:
            x = x + noise(i + 1, _sigma(time), _sigma(times[i + 1])) * (s_noise * up)
        yield Step(i, x, clean)


RTOL, ATOL, FIRST_STEP, ACCEPT = 0.05, 0.0078, 0.05, 0.81
"""Tolerances, first step in log sigma and acceptance of DPM-Solver-23: Lu et al. 2022, appendix C; k-diffusion."""


def dpm_adaptive(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: Noise,
    resume: Step | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-23: Lu et al. 2022, appendix C, with the integral step size controller of k-diffusion.

    A `Step` is an accepted step, so their number is not known beforehand. `At.step` is the place of the noise level in
    the schedule, plus a half at inner evaluations. Each picture chooses its own steps from its own error, so the
    pictures of a batch are solved one after another (the others' rows of the batch stand still meanwhile) and each
    counts its draws from 1: a picture is the same alone and in any batch. A batch of B costs B times the work of its
    pictures alone; `samplers.PICTURE_BY_PICTURE` says so to callers that can split it.
    """
    first, last = _ends(sigmas)
    if first >= last:
        yield from _single(denoise, latents, sigmas, resume)
        return
    x = latents if resume is None else resume.latents
    clean = torch.zeros_like(x) if resume is None else resume.clean
    state = {} if resume is None else dict(resume.state)
    index = 0 if resume is None else resume.index + 1
    for picture in range(state.get("picture", 0), len(x)):
        row = slice(picture, picture + 1)
        if state.get("picture") != picture:
            fresh = {"time": first, "h": FIRST_STEP, "draws": 0, "previous": x[row].clone()}
            state = {"picture": picture, **fresh}

        alone = _alone(denoise, x, row, sigmas.tolist())
        for solved, seen, reached in _solve_alone(alone, x[row].contiguous(), state, last, noise, eta, s_noise):
            x, clean = _with_row(x, row, solved), _with_row(clean, row, seen)
            yield Step(index, x, clean, reached)
            index += 1


CleanPrediction = Callable[[Tensor, float, bool], Tensor]
"""(x of one picture, time, inner) -> its clean prediction."""


def _alone(denoise: Denoise, batch: Tensor, row: slice, levels: Sequence[float]) -> CleanPrediction:
    """`denoise` for one picture of a batch, at a step found from the noise level's place in the schedule."""
    falling = [-level for level in levels]

    def predict(x: Tensor, time: float, inner: bool) -> Tensor:
        sigma = _sigma(time)
        # The level of a step belongs to it in spite of rounding.
        step = min(max(bisect_right(falling, -sigma * (1 - 1e-6)) - 1, 0), len(falling) - 2)
        return denoise(_with_row(batch, row, x), At(sigma, step + 0.5 * inner)).clean[row]

    return predict


def _with_row(batch: Tensor, row: slice, x: Tensor) -> Tensor:
    return torch.cat([batch[: row.start], x, batch[row.stop :]])


def _solve_alone(
    predict_clean: CleanPrediction,
    x: Tensor,
    state: dict[str, Any],
    last: float,
    noise: Noise,
    eta: float,
    s_noise: float,
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """One picture's accepted steps: (latents, clean prediction, state)."""
    picture, time, h, draws, previous = (state[key] for key in ("picture", "time", "h", "draws", "previous"))
    order = 1.5 if eta else 3.0

    def predict(u: Tensor, at: float) -> Tensor:
        return (u - predict_clean(u, at, True)) / _sigma(at)

    while time < last - 1e-5:
        clean = predict_clean(x, time, False)
        eps = (x - clean) / _sigma(time)
        accepted = False
        while not accepted:
            target = min(last, time + h)
            end, up = _split(time, target, last, eta)
            eps_1 = _inner_1(x, time, end, eps, predict, 1 / 3)
            low = _solve_2(x, time, end, eps, eps_1, 1 / 3)
            high = _solve_3(x, time, end, eps, eps_1, predict)
            error = _error(low, high, previous)
            # k-diffusion: an integral controller whose factor is softly limited to (0, 1 + pi / 2).
            factor = 1 + math.atan((error + 1e-8) ** (-1 / order) - 1) if math.isfinite(error) else 1.0
            accepted = factor >= ACCEPT
            h *= factor
        draws += 1
        if up > 0:
            high = high + noise(draws, _sigma(time), _sigma(target))[picture : picture + 1] * (s_noise * up)
        x, time, previous = high, target, low
        yield x, clean, {"picture": picture, "time": time, "h": h, "draws": draws, "previous": previous}


def _error(low: Tensor, high: Tensor, previous: Tensor) -> float:
    """The root mean square of the two orders' difference in units of the tolerance: Lu et al. 2022, appendix C."""
    tolerance = (RTOL * torch.maximum(low.abs(), previous.abs())).clamp(min=ATOL)
    norm = float(torch.linalg.norm((low - high) / tolerance))
    return norm / math.sqrt(low.numel())
