"""Which noise levels a painting walks down: all of the schedule, or its end where it begins with a picture."""

from __future__ import annotations

from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.requests import Painting
from danqing.sampling.schedules import TIMESTEP_SAMPLERS, schedule
from danqing.vocabulary import find_sampler

_MOST = 0.999
"""AUTOMATIC1111's greatest denoising strength, in the arithmetic."""


def levels(request: Painting, model: Model, strength: float | None = None, exact: bool = False) -> Tensor:
    """(steps + 1,) float32, falling: the levels of `request`; with a `strength` in (0, 1] those of its share of them.

    The share is each tool's. AUTOMATIC1111 does int(strength * steps) of the steps, and k-diffusion's samplers one more;
    ComfyUI makes the schedule longer, so that all steps fall into the share; diffusers does int(strength * steps).
    `exact` does all the steps, out of a schedule of int(steps / strength), as AUTOMATIC1111's option and its hires fix.
    Raises DanqingError for a strength that leaves no step.
    """
    steps = request.steps or 1
    if strength is None:
        return _schedule(request, model, steps)
    if strength <= 0:
        raise DanqingError("denoising_strength: 0 leaves the picture as it is; give more than 0")
    timesteps = request.sampler_name in TIMESTEP_SAMPLERS
    length = done = steps
    if request.dialect == "comfyui":
        length = int(steps / strength)
    elif exact:
        length = max(int(steps / min(strength, _MOST)), steps)
        done = max(steps - 1, 1) if timesteps and request.dialect == "a1111" else steps
    elif request.dialect == "diffusers":
        done = min(int(steps * strength), steps)
    else:
        done = max(int(min(strength, _MOST) * steps) + (0 if timesteps else 1), 1)
    if done < 1:
        raise DanqingError(
            f"denoising_strength: {strength:g} of {steps} steps is less than one; give more of either, or exact_steps"
        )
    return _schedule(request, model, length)[-(done + 1) :]


def _schedule(request: Painting, model: Model, steps: int) -> Tensor:
    return schedule(
        request.scheduler or "Automatic",
        model.process,
        steps,
        dialect=request.dialect,
        sampler=find_sampler(request.sampler_name or ""),
        sigma_min=request.sigma_min,
        sigma_max=request.sigma_max,
        rho=request.rho,
        discard_penultimate=request.discard_penultimate,
        table="sdxl" if model.family.size_ids != "none" else "sd1",
        spacing=model.family.spacing,
    )
