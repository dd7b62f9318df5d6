"""What the network is told of a noise level, against the timesteps of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest

from danqing.families import Process
from danqing.sampling.predict import timesteps

Parity = Callable[[str, str, float, float], None]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("sampler", "scheduler", "reference", "options"),
    [
        ("Euler", "Automatic", "EulerDiscreteScheduler", {}),
        ("Euler", "Automatic", "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("Euler", "Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("Euler a", "Automatic", "EulerAncestralDiscreteScheduler", {}),
        ("LMS", "Automatic", "LMSDiscreteScheduler", {}),
        ("Heun", "Karras", "HeunDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", "Automatic", "DPMSolverMultistepScheduler", {}),
        ("DPM++ 2M", "Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", "Exponential", "DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
        ("DPM++ 2S a", "Beta", "DPMSolverSinglestepScheduler", {"use_beta_sigmas": True}),
        ("DPM++ 2S a", "Karras", "DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}),
        ("UniPC", "Automatic", "UniPCMultistepScheduler", {}),
        ("UniPC", "Karras", "UniPCMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPM++ SDE", "Automatic", "DPMSolverSDEScheduler", {}),
    ],
)
def test_timesteps_of_diffusers(
    parity: Parity, sampler: str, scheduler: str, reference: str, options: dict[str, Any]
) -> None:
    theirs = getattr(diffusers, reference)(**BETAS, **options)
    theirs.set_timesteps(20)
    told = timesteps(Process(), "diffusers", sampler, scheduler)
    pairs = dict(zip(theirs.sigmas[:-1].tolist(), theirs.timesteps.tolist()))
    error = max(abs(told(sigma) - t) for sigma, t in pairs.items() if sigma > 0)
    parity(f"timesteps, {sampler} {scheduler}", f"diffusers 0.42.1 {reference}", error / 1000, 1e-5)
