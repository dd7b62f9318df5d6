"""Noise schedules: the noise levels that a sampler walks down, as each tool makes them.

A schedule is made in the family's own coordinate (sigma; t for flow) and handed out in the samplers'
variance-exploding coordinate, in which sigma = noise / signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import Process, Spacing
from danqing.vocabulary import Dialect, Sampler, find_scheduler

TIMESTEP_SAMPLERS = frozenset({"DDIM", "DDIM CFG++", "PLMS", "UniPC"})
"""A1111 runs these on timesteps in the model's own coordinates and knows no scheduler for them."""

_FLOW_LIMIT = 1 - 1e-4
"""Flow at t = 1 is pure noise, whose sigma would be infinite; `Process.sigmas` stops here too."""
_STEPS_OFFSET = 1
"""`steps_offset` of the scheduler configurations that Stable Diffusion 1, 2 and XL are published with."""


@dataclass(frozen=True)
class Plan:
    """What a schedule function is given. Levels are in the family's own coordinate."""

    steps: int
    process: Process
    levels: Tensor
    """(N,) float64, rising: the training levels."""
    low: float
    high: float
    rho: float | None
    table: str
    sampler: str
    spacing: Spacing | None
    shifted_end: bool
    """Flow in ComfyUI and diffusers: the lowest level is shifted a second time (their `timestep` forgets the shift)."""

    def at(self, index: Tensor) -> Tensor:
        """The level at a fractional index: by the shifted time for flow, else log-linear between the levels."""
        if self.process.prediction == "flow":
            return _shift((index + 1) / len(self.levels), self.process.shift)
        return _interpolate(index, self.levels.log()).exp()

    def index(self, level: float) -> float:
        """The inverse of `at`, clamped to the levels."""
        if self.process.prediction == "flow":
            shift = self.process.shift
            return level / (shift - (shift - 1) * level) * len(self.levels) - 1
        logs = self.levels.log()
        value = min(max(math.log(level), float(logs[0])), float(logs[-1]))
        above = max(int(torch.searchsorted(logs, value)), 1)
        below = above - 1
        return below + float((value - logs[below]) / (logs[above] - logs[below]))

    def span(self, points: int) -> Tensor:
        """(points,): indices evenly from the highest level to the lowest."""
        last = self.low * len(self.levels) - 1 if self.shifted_end else self.index(self.low)
        return _linspace(self.index(self.high), last, points)


ScheduleFunction = Callable[[Plan], Tensor]
"""Plan -> falling levels (about steps + 1,), float64, in the family's own coordinate, the last 0 included."""


def schedule(
    name: str,
    process: Process,
    steps: int,
    *,
    dialect: Dialect = "danqing",
    sampler: Sampler | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    discard_penultimate: bool | None = None,
    table: str = "sd1",
    spacing: Spacing | None = None,
) -> Tensor:
    """The noise levels of a run: float32, about (steps + 1,), falling, in variance-exploding coordinates.

    The last is 0 but where the tool stops above it (A1111's KL Optimal and timestep samplers, diffusers' DDIM and
    PLMS), and A1111's DDIM family and `DDIM` give as many levels as the tool does, not always steps + 1.
    `sigma_min` and `sigma_max` bound the schedules that have bounds, in the family's own coordinate (t for flow);
    `rho` bends Karras (7) and Polyexponential (1); `discard_penultimate` unset follows the sampler and dialect;
    `table` names the Align Your Steps table (`sd1` or `sdxl`); `spacing` overrides the diffusers class's default
    (SDXL's published configuration is `leading`).
    Raises DanqingError for an unknown schedule, steps below 1 or bounds out of order.
    """
    if steps < 1:
        raise DanqingError(f"steps: must be at least 1, but it is {steps}")
    name = scheduler_for(name, sampler, dialect)
    label = sampler.name if sampler else ""
    if discard_penultimate is None:
        discard_penultimate = _discards(sampler, dialect)

    if process.prediction == "flow":
        levels = _shift(torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps, process.shift)
    else:
        levels = process.sigmas
        if label == "LCM" and dialect in ("danqing", "a1111"):
            levels = levels[_lcm_indices(process)]
    low = float(levels[0]) if sigma_min is None else sigma_min
    high = float(levels[-1]) if sigma_max is None else sigma_max
    if not 0 < low < high:
        raise DanqingError(f"sigma_min: must lie between 0 and sigma_max {high:g}, but it is {low:g}")

    plan = Plan(
        steps=steps + 1 if discard_penultimate else steps,
        process=process,
        levels=levels,
        low=low,
        high=high,
        rho=rho,
        table=table,
        sampler=label,
        spacing=spacing,
        shifted_end=process.prediction == "flow" and dialect in ("comfyui", "diffusers"),
    )
    timestep_based = label in TIMESTEP_SAMPLERS and name == "DDIM" and dialect in ("danqing", "a1111")
    if timestep_based:
        own = _a1111_unipc(plan) if label == "UniPC" else _a1111_timesteps(plan)
    else:
        own = _SCHEDULES[dialect][name](plan)
        if discard_penultimate:
            own = torch.cat([own[:-2], own[-1:]])
    if dialect == "comfyui" and label == "UniPC":
        # ComfyUI's UniPC has no limit for sigma = 0 and stops just above it.
        own = torch.cat([own[:-1], own[-1:].clamp(min=0.001)])
    if process.prediction == "flow":
        own = own / (1 - own.clamp(max=_FLOW_LIMIT))
    return own.float()


def scheduler_for(name: str, sampler: Sampler | None, dialect: Dialect) -> str:
    """The label of the schedule that is really used: `Automatic` resolved; A1111 ignores it for timestep samplers."""
    name = find_scheduler(name).name
    if dialect == "a1111" and sampler is not None and sampler.name in TIMESTEP_SAMPLERS:
        return "DDIM"
    if name != "Automatic":
        return name
    return "Uniform" if sampler is None or dialect == "diffusers" else sampler.scheduler


def _discards(sampler: Sampler | None, dialect: Dialect) -> bool:
    if sampler is None or dialect == "diffusers":
        return False
    return sampler.comfyui_discards if dialect == "comfyui" else sampler.discard_penultimate


# Helpers.


def _linspace(first: float, last: float, points: int) -> Tensor:
    return torch.linspace(first, last, points, dtype=torch.float64)


def _append_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def _shift(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def _interpolate(index: Tensor, values: Tensor) -> Tensor:
    """`values` at fractional indices, linear between neighbours, constant beyond the ends."""
    index = index.to(values.dtype).clamp(0, len(values) - 1)
    low = index.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    part = index - low
    return values[low] * (1 - part) + values[high] * part


def _lcm_indices(process: Process) -> Tensor:
    """Every 20th training step from the top: the 50 on which latent consistency models are distilled."""
    skip = max(process.steps // 50, 1)
    return torch.arange(process.steps - 1, -1, -skip).flip(0)


def beta_quantile(p: Tensor, a: float, b: float) -> Tensor:
    """The inverse of the regularised incomplete beta function: x with I_x(a, b) = p, float64.

    I_x(a, b) = x^a / B(a, b) * sum_n (1 - b)_n x^n / (n! (a + n))  (DLMF 8.17.7), which converges at least as
    fast as 2^-n up to x = 1/2; above, I_x(a, b) = 1 - I_{1-x}(b, a). Solved by bisection.
    """
    p = p.double()
    swap = p > _incomplete_beta(torch.full_like(p, 0.5), a, b)
    below = _bisect(p, a, b)
    above = 1 - _bisect(1 - p, b, a)
    return torch.where(swap, above, below)


def _incomplete_beta(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) for x in [0, 1/2]."""
    total, term = torch.zeros_like(x), torch.ones_like(x)
    for n in range(64):
        total = total + term / (a + n)
        term = term * x * ((n + 1 - b) / (n + 1))
    return x**a * total * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


def _bisect(p: Tensor, a: float, b: float) -> Tensor:
    low, high = torch.zeros_like(p), torch.full_like(p, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        under = _incomplete_beta(middle, a, b) < p
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


# Schedules, as A1111 1.10 makes them where tools differ.


def _uniform(plan: Plan) -> Tensor:
    """Even in time (k-diffusion's `get_sigmas`)."""
    return _append_zero(plan.at(_linspace(len(plan.levels) - 1, 0, plan.steps)))


def _normal(plan: Plan) -> Tensor:
    """Even in time, between the bounds."""
    return _append_zero(plan.at(plan.span(plan.steps)))


def _sgm_uniform(plan: Plan) -> Tensor:
    """Even in time with the last level left out, as Stability's generative-models."""
    return _append_zero(plan.at(plan.span(plan.steps + 1)[:-1]))


def karras_levels(high: float, low: float, steps: int, rho: float = 7.0) -> Tensor:
    """(steps,) float64, falling from `high` to `low`: Karras et al. 2022, eq. 5."""
    ramp = _linspace(0, 1, steps)
    first, last = math.pow(high, 1 / rho), math.pow(low, 1 / rho)
    return (first + ramp * (last - first)).pow(rho)


def _karras(plan: Plan) -> Tensor:
    """Karras et al. 2022, eq. 5."""
    return _append_zero(karras_levels(plan.high, plan.low, plan.steps, 7.0 if plan.rho is None else plan.rho))


def _exponential_between(high: float, low: float, steps: int) -> Tensor:
    return _linspace(math.log(high), math.log(low), steps).exp()


def _exponential(plan: Plan) -> Tensor:
    """Even in log sigma."""
    return _append_zero(_exponential_between(plan.high, plan.low, plan.steps))


def _polyexponential(plan: Plan) -> Tensor:
    """A polynomial ramp in log sigma (k-diffusion)."""
    ramp = _linspace(1, 0, plan.steps) ** (1.0 if plan.rho is None else plan.rho)
    return _append_zero((ramp * math.log(plan.high / plan.low) + math.log(plan.low)).exp())


def _kl_points(plan: Plan, ramp: Tensor) -> Tensor:
    return (ramp * math.atan(plan.low) + (1 - ramp) * math.atan(plan.high)).tan()


def _kl_optimal(plan: Plan) -> Tensor:
    """Sabour et al. 2024 (Align Your Steps), theorem 3.1; A1111 ends at the lowest level, not at 0."""
    return _kl_points(plan, _linspace(0, 1, plan.steps + 1))


def _kl_optimal_comfyui(plan: Plan) -> Tensor:
    return _append_zero(_kl_points(plan, _linspace(0, 1, plan.steps)))


_ALIGN_YOUR_STEPS: Mapping[str, tuple[float, ...]] = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""Levels optimised for ten steps (Sabour et al. 2024, the authors' how-to page)."""
_ALIGN_YOUR_STEPS_COMFYUI: Mapping[str, tuple[float, ...]] = {
    "sd1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "sdxl": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
}


def _aligned(plan: Plan, tables: Mapping[str, tuple[float, ...]], points: int) -> Tensor:
    """The table at `points` places, log-linear between its entries."""
    if plan.table not in tables or not plan.process.preserving:
        raise DanqingError(
            "scheduler: Align Your Steps has tables for Stable Diffusion 1, 2 and XL only; choose another"
        )
    logs = torch.tensor(tables[plan.table], dtype=torch.float64).log()
    return _interpolate(_linspace(0, len(logs) - 1, points), logs).exp()


def _align_your_steps(plan: Plan) -> Tensor:
    return _append_zero(_aligned(plan, _ALIGN_YOUR_STEPS, plan.steps))


def _align_your_steps_comfyui(plan: Plan) -> Tensor:
    """The lowest entry is replaced by 0 instead of followed by it."""
    return _append_zero(_aligned(plan, _ALIGN_YOUR_STEPS_COMFYUI, plan.steps + 1)[:-1])


def _align_your_steps_diffusers(plan: Plan) -> Tensor:
    return _append_zero(_aligned(plan, _ALIGN_YOUR_STEPS, plan.steps + 1)[:-1])


def _simple(plan: Plan) -> Tensor:
    """Every (N / steps)-th training level, from the top."""
    stride = len(plan.levels) / plan.steps
    return _append_zero(plan.levels[[-(1 + int(i * stride)) for i in range(plan.steps)]])


def _ddim(plan: Plan) -> Tensor:
    """Every (N // steps)-th training level, from the second lowest; there may be more than `steps`."""
    return _append_zero(plan.levels[1 :: max(len(plan.levels) // plan.steps, 1)].flip(0))


def _beta(plan: Plan) -> Tensor:
    """Lee et al. 2024 (Beta Sampling), alpha = beta = 0.6, spread over sigma as in A1111 and diffusers."""
    quantiles = beta_quantile(1 - _linspace(0, 1, plan.steps), 0.6, 0.6)
    return _append_zero(plan.low + quantiles * (plan.high - plan.low))


def _beta_comfyui(plan: Plan) -> Tensor:
    """Lee et al. 2024, spread over the training steps; equal ones are kept once."""
    quantiles = beta_quantile(1 - _linspace(0, 1, plan.steps + 1)[:-1], 0.6, 0.6)
    # The middle of an even count lies between two steps and is meant to fall on the upper one.
    indices = (quantiles * (len(plan.levels) - 1) + 1e-9).round().long().tolist()
    return _append_zero(plan.levels[list(dict.fromkeys(indices))])


def _linear_quadratic(plan: Plan) -> Tensor:
    """Half the steps even down to 1 - 0.025 of the highest level, then quadratic to 0 (Genmo Mochi, Movie Gen)."""
    threshold, n = 0.025, plan.steps
    linear = n // 2
    if linear == 0:
        return torch.tensor([plan.high, 0.0], dtype=torch.float64)
    rest = n - linear
    excess = linear - threshold * n
    square = excess / (linear * rest**2)
    slope = threshold / linear - 2 * excess / rest**2
    i = torch.arange(n + 1, dtype=torch.float64)
    done = torch.where(i < linear, i * threshold / linear, square * i**2 + slope * i + square * linear**2)
    done[-1] = 1.0
    return (1 - done) * plan.high


def _a1111_timesteps(plan: Plan) -> Tensor:
    """DDIM, DDIM CFG++, PLMS: timesteps 1, 1 + r, 1 + 2r ... with r = 1000 // steps; the last step ends at the first.

    One step has no room in that rule (the tool returns the noise itself); it goes from the top to timestep 1.
    """
    n = len(plan.levels)
    indices = (torch.arange(0, n, max(n // plan.steps, 1)) + 1).clamp(max=n - 1).flip(0)
    if plan.steps == 1:
        indices = torch.tensor([n - 1, 1])
    return plan.levels[indices]


def _a1111_unipc(plan: Plan) -> Tensor:
    """UniPC: even in time down to the lowest level; between training steps, linear in log alpha."""
    n = len(plan.levels)
    indices = _linspace(n - 1, 0, len(range(0, n, max(n // plan.steps, 1))) + 1)
    if not plan.process.preserving:
        return plan.at(indices)
    log_alphas = -0.5 * torch.log1p(plan.levels**2)
    return torch.expm1(-2 * _interpolate(indices, log_alphas)).sqrt()


# diffusers.


@dataclass(frozen=True)
class DiffusersScheduler:
    """How a diffusers scheduler class makes its levels (its defaults, with Stable Diffusion's configuration)."""

    name: str
    spacing: Spacing = "linspace"
    whole: bool = False
    """Timesteps are rounded."""
    beyond: bool = False
    """Spaced for one step more, whose lowest timestep is dropped."""
    ends_low: bool = False
    """Ends at the lowest training level instead of 0 (`set_alpha_to_one` off)."""
    bounds: Literal["spaced", "all", "none"] = "spaced"
    """Whose ends `use_karras_sigmas` and its like take: the spaced levels', all training levels', or unsupported."""
    distilled: bool = False
    """Picks among the 50 steps of consistency distillation."""


_EULER = DiffusersScheduler("EulerDiscreteScheduler")
_DPM = DiffusersScheduler("DPMSolverMultistepScheduler", whole=True, beyond=True, bounds="all")
_DDIM = DiffusersScheduler("DDIMScheduler", "leading", whole=True, ends_low=True, bounds="none")
DIFFUSERS_SCHEDULERS: Mapping[str, DiffusersScheduler] = {
    "Euler": _EULER,
    "Euler a": DiffusersScheduler("EulerAncestralDiscreteScheduler", bounds="none"),
    "Heun": DiffusersScheduler("HeunDiscreteScheduler"),
    "LMS": DiffusersScheduler("LMSDiscreteScheduler"),
    "DPM2": DiffusersScheduler("KDPM2DiscreteScheduler"),
    "DPM2 a": DiffusersScheduler("KDPM2AncestralDiscreteScheduler"),
    "DPM++ 2M": _DPM,
    "DPM++ 2M SDE": _DPM,
    "DPM++ 2M SDE Heun": _DPM,
    "DPM++ 3M SDE": _DPM,
    "DPM++ 2S a": DiffusersScheduler("DPMSolverSinglestepScheduler", whole=True, beyond=True, bounds="all"),
    "DPM++ SDE": DiffusersScheduler("DPMSolverSDEScheduler"),
    "UniPC": DiffusersScheduler("UniPCMultistepScheduler", whole=True, beyond=True, bounds="all"),
    "DDIM": _DDIM,
    "DDIM CFG++": _DDIM,
    "PLMS": DiffusersScheduler("PNDMScheduler", "leading", whole=True, ends_low=True, bounds="none"),
    "DDPM": DiffusersScheduler("DDPMScheduler", "leading", whole=True, bounds="none"),
    "LCM": DiffusersScheduler("LCMScheduler", bounds="none", distilled=True),
    "TCD": DiffusersScheduler("TCDScheduler", ends_low=True, bounds="none", distilled=True),
}
"""By sampler label; the others have no class there and are spaced as Euler's."""


def _diffusers_row(plan: Plan) -> DiffusersScheduler:
    return DIFFUSERS_SCHEDULERS.get(plan.sampler, _EULER)


def _diffusers_timesteps(row: DiffusersScheduler, spacing: Spacing, steps: int, training: int) -> Tensor:
    """(steps,) float64, falling. `set_timesteps` of the classes."""
    extra = 1 if row.beyond else 0
    if spacing == "trailing":
        return (training - torch.arange(steps, dtype=torch.float64) * (training / steps)).round() - 1
    if spacing == "leading":
        return torch.arange(extra, steps + extra).flip(0).double() * (training // (steps + extra)) + _STEPS_OFFSET
    timesteps = _linspace(0, training - 1, steps + extra).flip(0)[:steps]
    return timesteps.round() if row.whole else timesteps


def _diffusers_levels(plan: Plan, spacing: Spacing) -> Tensor:
    """(steps,): the levels at the class's timesteps, linear in sigma between the training levels."""
    row = _diffusers_row(plan)
    if row.distilled:
        indices = _lcm_indices(plan.process).flip(0)
        if plan.steps > len(indices):
            raise DanqingError(
                f"steps: {plan.sampler} has at most {len(indices)} in the diffusers dialect; ask for fewer"
            )
        chosen = (torch.arange(plan.steps, dtype=torch.float64) * (len(indices) / plan.steps)).floor().long()
        return plan.levels[indices[chosen]]
    return _interpolate(_diffusers_timesteps(row, spacing, plan.steps, len(plan.levels)), plan.levels)


NAMED_SPACING: Mapping[str, Spacing] = {"SGM Uniform": "trailing", "Simple": "trailing", "DDIM": "leading"}
"""The schedules that are a spacing by name in the diffusers dialect; the others leave it to the model's configuration."""


def _diffusers(spacing: Spacing | None) -> ScheduleFunction:
    """The class's timesteps, spaced as given, else as the model's configuration says, else by its default."""

    def levels(plan: Plan) -> Tensor:
        if plan.process.prediction == "flow":
            # FlowMatchEulerDiscreteScheduler, whatever the sampler.
            return _normal(plan)
        row = _diffusers_row(plan)
        spaced = _diffusers_levels(plan, spacing or plan.spacing or row.spacing)
        return torch.cat([spaced, plan.levels[:1]]) if row.ends_low else _append_zero(spaced)

    return levels


def _diffusers_between(between: ScheduleFunction) -> ScheduleFunction:
    """`use_karras_sigmas`, `use_exponential_sigmas`, `use_beta_sigmas`: the general form between the class's bounds."""

    def levels(plan: Plan) -> Tensor:
        row = _diffusers_row(plan)
        if row.bounds == "spaced" and plan.process.prediction != "flow":
            spaced = _diffusers_levels(plan, plan.spacing or row.spacing)
            if len(spaced) > 1:
                plan = _bounded(plan, float(spaced[-1]), float(spaced[0]))
        return between(plan)

    return levels


def _bounded(plan: Plan, low: float, high: float) -> Plan:
    """Bounds the user gave stay."""
    levels = plan.levels
    low = low if plan.low == float(levels[0]) else plan.low
    high = high if plan.high == float(levels[-1]) else plan.high
    return replace(plan, low=low, high=high)


_A1111: Mapping[str, ScheduleFunction] = {
    "Uniform": _uniform,
    "Karras": _karras,
    "Exponential": _exponential,
    "Polyexponential": _polyexponential,
    "SGM Uniform": _sgm_uniform,
    "KL Optimal": _kl_optimal,
    "Align Your Steps": _align_your_steps,
    "Simple": _simple,
    "Normal": _normal,
    "DDIM": _ddim,
    "Beta": _beta,
    "Linear Quadratic": _linear_quadratic,
}
_SCHEDULES: Mapping[Dialect, Mapping[str, ScheduleFunction]] = {
    "danqing": _A1111,
    "a1111": _A1111,
    "comfyui": {
        **_A1111,
        "Uniform": _normal,
        "KL Optimal": _kl_optimal_comfyui,
        "Align Your Steps": _align_your_steps_comfyui,
        "Beta": _beta_comfyui,
    },
    "diffusers": {
        **_A1111,
        "Uniform": _diffusers(None),
        "Normal": _diffusers(None),
        **{name: _diffusers(spacing) for name, spacing in NAMED_SPACING.items()},
        "Karras": _diffusers_between(_karras),
        "Exponential": _diffusers_between(_exponential),
        "Beta": _diffusers_between(_beta),
        "Align Your Steps": _align_your_steps_diffusers,
    },
}
