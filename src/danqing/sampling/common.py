"""What the samplers share: walking the schedule, the derivative, the ancestral split of a step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from danqing.sampling.types import Noise, Step


def remaining(sigmas: Tensor, resume: Step | None) -> Iterator[tuple[int, float, float]]:
    """(index, sigma, next sigma) of each step that is still to do."""
    levels = sigmas.tolist()
    for index in range(0 if resume is None else resume.index + 1, len(levels) - 1):
        yield index, levels[index], levels[index + 1]


def derivative(x: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability flow, which is also the predicted noise: Karras et al. 2022, eq. 3 at s = 1."""
    return (x - clean) / sigma


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up) with down^2 + up^2 = sigma_next^2: the level to step down to and the noise to add there.

    At eta = 1, `up` is the standard deviation of q(x_next | x, x0), as in DDPM; at 0 nothing is added.
    """
    if eta == 0 or sigma_next == 0:
        return sigma_next, 0.0
    up = min(sigma_next, eta * sigma_next * max(0.0, 1 - sigma_next**2 / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def churn(
    x: Tensor,
    sigma: float,
    steps: int,
    noise: Noise,
    draw: int,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> tuple[Tensor, float]:
    """x raised to a higher noise level, and that level: Karras et al. 2022, algorithm 2, lines 4 to 6."""
    gamma = min(s_churn / steps, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
    if gamma == 0:
        return x, sigma
    raised = sigma * (gamma + 1)
    return x + noise(draw, sigma, raised) * (s_noise * (raised**2 - sigma**2) ** 0.5), raised
