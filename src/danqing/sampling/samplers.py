"""The samplers by name, what of a request acts on each, and what the tools set differently."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from danqing.families import Process, Spacing
from danqing.sampling.dpm_solver import dpm_adaptive, dpm_fast
from danqing.sampling.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, er_sde, lms, plms, unipc
from danqing.sampling.schedules import TIMESTEP_SAMPLERS
from danqing.sampling.singlestep import (
    ddim,
    ddim_cfgpp,
    ddpm,
    dpm2,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    lcm,
    restart,
    tcd,
)
from danqing.sampling.types import Step
from danqing.vocabulary import Dialect

SAMPLER_FUNCTIONS: Mapping[str, Callable[..., Iterator[Step]]] = {
    "Euler": euler,
    "Euler a": euler_ancestral,
    "Heun": heun,
    "DPM2": dpm2,
    "DPM2 a": dpm2_ancestral,
    "LMS": lms,
    "DPM fast": dpm_fast,
    "DPM adaptive": dpm_adaptive,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": partial(dpmpp_2m_sde, solver="heun"),
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "Restart": restart,
    "DDIM": ddim,
    "DDIM CFG++": ddim_cfgpp,
    "PLMS": plms,
    "UniPC": unipc,
    "LCM": lcm,
    "DDPM": ddpm,
    "TCD": tcd,
    "ER-SDE": er_sde,
}
"""By the label of `vocabulary.SAMPLERS`. Each is a `types.SamplerFunction` that knows its own options only."""

REQUEST_OPTIONS = frozenset({"eta", "s_churn", "s_tmin", "s_tmax", "s_noise"})
"""The fields of a request that some samplers take."""

PICTURE_BY_PICTURE = frozenset({"DPM adaptive"})
"""Samplers that solve a batch one picture after another: a caller that can split the batch saves work."""

NEEDS_NEGATIVE = frozenset({"DDIM CFG++"})
"""Samplers that need `Prediction.unconditional` at every step."""

CFGPP_SCALE = 12.5
"""CFG++ takes scales in [0, 1]; AUTOMATIC1111 divides the usual ones by this."""

_DIALECT_OPTIONS: Mapping[tuple[str, Dialect], Mapping[str, Any]] = {
    ("DPM fast", "comfyui"): {"eta": 0.0},
    ("DPM adaptive", "comfyui"): {"eta": 0.0},
    ("UniPC", "diffusers"): {"order": 2, "variant": "bh2"},
}


def options_of(name: str) -> frozenset[str]:
    """The request's fields that have an effect with this sampler; the others must be said to have none."""
    return REQUEST_OPTIONS & inspect.signature(SAMPLER_FUNCTIONS[name]).parameters.keys()


def dialect_options(name: str, dialect: Dialect) -> dict[str, Any]:
    """Options that the tool sets otherwise than the sampler's own defaults; the request's go over these."""
    return dict(_DIALECT_OPTIONS.get((name, dialect), {}))


def start_scale(name: str, process: Process, sigma: float, dialect: Dialect, spacing: Spacing | None = None) -> float:
    """What unit noise is multiplied with to start from nothing but noise at `sigma`, in the samplers' coordinates.

    It is `sigma` in k-diffusion and A1111, and sqrt(1 + sigma^2) where the tool takes unit noise for the model's own
    latents: ComfyUI, A1111's timestep samplers, and diffusers but for its k-diffusion classes when `spacing` (their
    default is `linspace`) reaches the highest level. On a flow path both are the same.
    """
    if process.prediction == "flow":
        return sigma
    if dialect == "diffusers":
        in_sigma = name in _DIFFUSERS_IN_SIGMA and spacing != "leading"
    else:
        in_sigma = dialect != "comfyui" and name not in TIMESTEP_SAMPLERS
    return sigma if in_sigma else math.hypot(1, sigma)


_DIFFUSERS_IN_SIGMA = frozenset({"Euler", "Euler a", "Heun", "LMS", "DPM2", "DPM2 a", "DPM++ SDE"})
"""Their classes keep latents in variance-exploding coordinates and start from noise times the highest sigma."""


def end_scale(name: str, process: Process, sigma: float, dialect: Dialect) -> float:
    """What the last latents are multiplied with before the autoencoder, where a schedule ends above 0.

    Tools that keep the model's own coordinates decode alpha * x; k-diffusion's samplers decode x as it stands.
    """
    own = dialect != "comfyui" and (name in TIMESTEP_SAMPLERS or (dialect == "diffusers" and name == "TCD"))
    return process.alpha(sigma) if own and process.preserving else 1.0
