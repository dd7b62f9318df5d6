"""Schedules against k-diffusion and diffusers live, and against vectors recorded from A1111 and ComfyUI."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from references import k_diffusion
from torch import Tensor

from danqing.families import Process
from danqing.sampling.schedules import DIFFUSERS_SCHEDULERS, schedule
from danqing.vocabulary import find_sampler

VECTORS = Path(__file__).parent / "vectors"
A1111: dict[str, Any] = json.loads((VECTORS / "a1111.json").read_text())
COMFYUI: dict[str, Any] = json.loads((VECTORS / "comfyui.json").read_text())
PROCESSES = {"": Process(), "v": Process("v", zero_terminal_snr=True), "flow": Process("flow", shift=3.0)}
STEPS = (1, 2, 4, 10, 20, 33)


def source(vectors: dict[str, Any]) -> str:
    return f"{vectors['repository']} {vectors['commit'][:7]}"


def error(ours: Tensor, theirs: Any) -> float:
    """The largest relative difference of any level."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    assert ours.shape == theirs.shape
    return float(((ours.double() - theirs).abs() / theirs.abs().clamp(min=1e-3)).max())


def split(key: str) -> tuple[Process, str, int]:
    """`v KL Optimal 20` -> (the v process, KL Optimal, 20)."""
    *name, steps = key.split()
    prefix = name.pop(0) if name[0] in ("v", "flow") else ""
    return PROCESSES[prefix], " ".join(name), int(steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential"])
def test_k_diffusion(name: str, steps: int, parity: Any) -> None:
    process = Process()
    theirs = getattr(k_diffusion(), f"get_sigmas_{name}")(steps, process.sigma_min, process.sigma_max)
    ours = schedule(name, process, steps)
    parity(f"schedule {name.title()}", f"k-diffusion 0.1.1 get_sigmas_{name}", error(ours, theirs), 1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_k_diffusion_uniform(steps: int, parity: Any) -> None:
    process = Process()
    theirs = k_diffusion("external").DiscreteSchedule(process.sigmas.float(), False).get_sigmas(steps)
    ours = schedule("Uniform", process, steps)
    parity("schedule Uniform", "k-diffusion 0.1.1 DiscreteSchedule", error(ours, theirs), 1e-5)


A1111_SCHEDULES = [key for key in A1111["schedules"] if not key.startswith(("LCM", "timesteps", "bounded", "Align"))]


@pytest.mark.parametrize("key", A1111_SCHEDULES)
def test_a1111(key: str, parity: Any) -> None:
    process, name, steps = split(key)
    ours = schedule(name, process, steps, dialect="a1111")
    # At zero terminal SNR the reference takes the tangent of nearly pi / 2 in float32.
    bound = 5e-3 if process.zero_terminal_snr and name == "KL Optimal" else 1e-5
    parity(
        f"schedule {name}{' (v, zero SNR)' if process.prediction == 'v' else ''}",
        source(A1111),
        error(ours, A1111["schedules"][key]),
        bound,
    )


@pytest.mark.parametrize("steps", [4, 10, 11, 20, 33])
def test_a1111_align_your_steps(steps: int, parity: Any) -> None:
    ours = schedule("Align Your Steps", Process(), steps)
    parity(
        "schedule Align Your Steps", source(A1111), error(ours, A1111["schedules"][f"Align Your Steps {steps}"]), 1e-5
    )


def test_a1111_align_your_steps_xl(parity: Any) -> None:
    ours = schedule("Align Your Steps", Process(), 20, table="sdxl")
    theirs = A1111["schedules"]["Align Your Steps sdxl 20"]
    parity("schedule Align Your Steps (XL)", source(A1111), error(ours, theirs), 1e-5)


@pytest.mark.parametrize("key", [key for key in A1111["schedules"] if key.startswith("bounded")])
def test_a1111_with_bounds(key: str, parity: Any) -> None:
    name = key.removeprefix("bounded ").removesuffix(" 20")
    ours = schedule(name, Process(), 20, sigma_min=0.1, sigma_max=10.0, rho=3.0)
    parity(f"schedule {name} within bounds", source(A1111), error(ours, A1111["schedules"][key]), 1e-5)


@pytest.mark.parametrize("steps", [4, 8])
def test_a1111_lcm(steps: int, parity: Any) -> None:
    ours = schedule("Automatic", Process(), steps, sampler=find_sampler("LCM"))
    theirs = A1111["schedules"][f"LCM Uniform {steps}"]
    # The reference's levels come from float32 cumulative alphas.
    parity("schedule Uniform for LCM", source(A1111), error(ours, theirs), 1e-4)


@pytest.mark.parametrize("steps", [20, 30])
@pytest.mark.parametrize("sampler", ["DDIM", "PLMS", "DDIM CFG++"])
def test_a1111_timesteps(sampler: str, steps: int, parity: Any) -> None:
    process = Process()
    theirs = process.sigmas[A1111["schedules"][f"timesteps {steps}"]].flip(0)
    ours = schedule("Automatic", process, steps, sampler=find_sampler(sampler))
    parity("schedule of A1111's DDIM and PLMS", source(A1111), error(ours, theirs), 1e-6)


@pytest.mark.parametrize("key", COMFYUI["schedules"])
def test_comfyui(key: str, parity: Any) -> None:
    table = "sdxl" if " sdxl " in key else "sd1"
    process, name, steps = split(key.replace(" sdxl ", " ").replace(" sd1 ", " "))
    ours = schedule(name, process, steps, dialect="comfyui", table=table)
    theirs = torch.tensor(COMFYUI["schedules"][key], dtype=torch.float64)
    if process.prediction == "flow":
        # In t, where the reference's levels are; t = 1 is our 1 - 1e-4.
        ours, theirs = ours.double() / (1 + ours.double()), theirs.clamp(max=1 - 1e-4)
    bound = 1e-5
    if process.zero_terminal_snr and name == "KL Optimal":
        bound = 5e-3
    elif process.prediction == "flow" and name in ("Karras", "Exponential", "KL Optimal"):
        bound = 2e-5
    parity(
        f"schedule {name}{f' ({process.prediction})' if process.prediction != 'epsilon' else ''}",
        source(COMFYUI),
        error(ours, theirs),
        bound,
    )


def published(name: str, **changes: Any) -> Any:
    """A diffusers scheduler with Stable Diffusion's published configuration, its table in float64."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    settings |= {"set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False, **changes}
    kind = getattr(diffusers, name)
    scheduler = kind(
        **{key: value for key, value in settings.items() if key in kind.__init__.__wrapped__.__code__.co_varnames}
    )
    scheduler.alphas_cumprod = 1 / (1 + Process().sigmas ** 2)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def levels_of(scheduler: Any, steps: int) -> Tensor:
    """(steps + 1,): the levels a scheduler walks, from its sigmas or its timesteps."""
    scheduler.set_timesteps(steps)
    name = type(scheduler).__name__
    if "KDPM2" in name or "Heun" in name or "SDE" in name:
        # Every level but the first and last stands there twice.
        return torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])[: steps + 1]
    if hasattr(scheduler, "sigmas"):
        return torch.as_tensor(scheduler.sigmas)
    timesteps = list(dict.fromkeys(scheduler.timesteps.tolist()))
    ends_low = name in ("DDIMScheduler", "PNDMScheduler", "TCDScheduler")
    return torch.cat([Process().sigmas[timesteps], Process().sigmas[:1] if ends_low else torch.zeros(1)])


@pytest.mark.parametrize("steps", [4, 20, 33])
@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        (sampler, spacing)
        for sampler, row in DIFFUSERS_SCHEDULERS.items()
        for spacing in (None, "linspace", "leading", "trailing")
        # These classes have one spacing.
        if spacing is None or not (row.distilled or "Singlestep" in row.name)
    ],
)
def test_diffusers(sampler: str, spacing: str | None, steps: int, parity: Any) -> None:
    row = DIFFUSERS_SCHEDULERS[sampler]
    theirs = levels_of(published(row.name, **({} if spacing is None else {"timestep_spacing": spacing})), steps)
    ours = schedule("Automatic", Process(), steps, dialect="diffusers", sampler=find_sampler(sampler), spacing=spacing)
    parity(f"schedule of {row.name}", f"diffusers {diffusers.__version__}", error(ours, theirs), 1e-5)


@pytest.mark.parametrize("form", ["Karras", "Exponential", "Beta"])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "LMS", "DPM2", "DPM++ 2M", "UniPC", "DPM++ SDE"])
@pytest.mark.parametrize("spacing", [None, "leading"])
def test_diffusers_forms(form: str, sampler: str, spacing: str | None, parity: Any) -> None:
    row = DIFFUSERS_SCHEDULERS[sampler]
    changes: dict[str, Any] = {f"use_{form.lower()}_sigmas": True}
    theirs = levels_of(published(row.name, **changes, **({} if spacing is None else {"timestep_spacing": spacing})), 12)
    ours = schedule(form, Process(), 12, dialect="diffusers", sampler=find_sampler(sampler), spacing=spacing)
    parity(f"schedule {form} of {row.name}", f"diffusers {diffusers.__version__}", error(ours, theirs), 1e-5)


def test_diffusers_align_your_steps(parity: Any) -> None:
    from diffusers.schedulers import AysSchedules

    for table, key in (("sd1", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")):
        ours = schedule("Align Your Steps", Process(), 10, dialect="diffusers", table=table)
        parity("schedule Align Your Steps", f"diffusers {diffusers.__version__}", error(ours, AysSchedules[key]), 1e-5)


@pytest.mark.parametrize("steps", [4, 20, 28])
def test_diffusers_flow(steps: int, parity: Any) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    theirs = np.minimum(scheduler.sigmas.double().numpy(), 1 - 1e-4)
    ours = schedule("Automatic", PROCESSES["flow"], steps, dialect="diffusers", sampler=find_sampler("Euler")).double()
    parity(
        "schedule of FlowMatchEulerDiscreteScheduler",
        f"diffusers {diffusers.__version__}",
        error(ours / (1 + ours), theirs),
        1e-5,
    )
