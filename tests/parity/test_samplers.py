"""Samplers on a denoiser in closed form, against k-diffusion and diffusers live, and against recorded vectors.

Every comparison injects the same noise in the same order into both.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from references import Draws, Mixture, k_diffusion, relative_error, run
from torch import Tensor

from danqing.families import Process
from danqing.sampling.samplers import SAMPLER_FUNCTIONS, dialect_options, end_scale, start_scale
from danqing.sampling.schedules import DIFFUSERS_SCHEDULERS, schedule
from danqing.vocabulary import find_sampler

VECTORS = Path(__file__).parent / "vectors"
A1111: dict[str, Any] = json.loads((VECTORS / "a1111.json").read_text())
COMFYUI: dict[str, Any] = json.loads((VECTORS / "comfyui.json").read_text())
PROCESS = Process()
SHAPE = (1, 4, 8, 8)
RECORDED = (1, 4, 2, 2)
BOUND = 1e-5


def source(vectors: dict[str, Any]) -> str:
    return f"{vectors['repository']} {vectors['commit'][:7]}"


def ours(sampler: str, start: Tensor, sigmas: Tensor, noise: Any, **options: Any) -> Tensor:
    return run(SAMPLER_FUNCTIONS[sampler], Mixture(), start, sigmas, noise, **options)[-1].latents


# k-diffusion.

K_DIFFUSION = {
    "Euler": ("sample_euler", {}),
    "Euler, churn": ("sample_euler", {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.01}),
    "Euler a": ("sample_euler_ancestral", {}),
    "Euler a, eta": ("sample_euler_ancestral", {"eta": 0.4, "s_noise": 1.02}),
    "Heun": ("sample_heun", {}),
    "Heun, churn": ("sample_heun", {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.01}),
    "DPM2": ("sample_dpm_2", {}),
    "DPM2, churn": ("sample_dpm_2", {"s_churn": 8.0, "s_noise": 0.99}),
    "DPM2 a": ("sample_dpm_2_ancestral", {}),
    "DPM2 a, eta": ("sample_dpm_2_ancestral", {"eta": 0.5, "s_noise": 1.02}),
    "LMS": ("sample_lms", {}),
    "DPM++ 2S a": ("sample_dpmpp_2s_ancestral", {}),
    "DPM++ 2S a, eta": ("sample_dpmpp_2s_ancestral", {"eta": 0.5, "s_noise": 1.02}),
    "DPM++ 2M": ("sample_dpmpp_2m", {}),
    "DPM++ SDE": ("sample_dpmpp_sde", {}),
    "DPM++ SDE, eta": ("sample_dpmpp_sde", {"eta": 0.5, "s_noise": 1.02}),
    "DPM++ 2M SDE": ("sample_dpmpp_2m_sde", {}),
    "DPM++ 2M SDE, eta": ("sample_dpmpp_2m_sde", {"eta": 0.5, "s_noise": 1.02}),
    "DPM++ 2M SDE Heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "DPM++ 3M SDE": ("sample_dpmpp_3m_sde", {}),
    "DPM++ 3M SDE, eta": ("sample_dpmpp_3m_sde", {"eta": 0.5, "s_noise": 1.02}),
}


def theirs_k_diffusion(function: Any, start: Tensor, noise: Any, **arguments: Any) -> Tensor:
    mixture = Mixture()
    if "noise_sampler" in function.__wrapped__.__code__.co_varnames:
        arguments["noise_sampler"] = noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", noise)
        result = function(lambda x, sigma: mixture.clean(x, float(sigma[0])), start, disable=True, **arguments)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("schedule_name", ["Karras", "Exponential", "KL Optimal"])
@pytest.mark.parametrize("case", K_DIFFUSION)
def test_k_diffusion(case: str, schedule_name: str, parity: Any) -> None:
    function, options = K_DIFFUSION[case]
    label = case.split(",")[0]
    draws = Draws(SHAPE)
    sigmas = schedule(schedule_name, PROCESS, 12)
    start = draws.tensor(0) * sigmas[0]
    theirs = theirs_k_diffusion(getattr(k_diffusion(), function), start, draws.in_order(), sigmas=sigmas, **options)
    mine = {key: value for key, value in options.items() if key != "solver_type"}
    error = relative_error(ours(label, start, sigmas, draws, **mine), theirs)
    parity(f"sampler {case}", f"k-diffusion 0.1.1 {function}", error, BOUND)


@pytest.mark.parametrize("label", ["DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE"])
def test_k_diffusion_on_a_brownian_path(label: str, parity: Any) -> None:
    # Also holds the times at which the path is asked: only the same bits give the same noise.
    function = K_DIFFUSION[label][0]
    sigmas = schedule("Karras", PROCESS, 10)
    start = Draws(SHAPE).tensor(0) * sigmas[0]
    path = k_diffusion().BrownianTreeNoiseSampler(start, sigmas[sigmas > 0].min(), sigmas.max(), seed=7)
    theirs = theirs_k_diffusion(getattr(k_diffusion(), function), start, path, sigmas=sigmas)
    error = relative_error(
        ours(label, start, sigmas, lambda draw, a, b: path(torch.tensor(a), torch.tensor(b))), theirs
    )
    parity(f"sampler {label}, Brownian path", f"k-diffusion 0.1.1 {function}", error, BOUND)


@pytest.fixture
def double() -> Iterator[None]:
    """k-diffusion's DPM-Solver keeps time in tensors, whose float32 alone costs 1e-4 where steps follow from errors."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("name", "steps"), [("fast", n) for n in (2, 3, 6, 7, 8, 20)] + [("adaptive", 20)])
def test_k_diffusion_dpm_solver(name: str, steps: int, eta: float, parity: Any) -> None:
    draws = Draws(SHAPE, torch.float64)
    sigmas = schedule("Uniform", PROCESS, steps)
    start = draws.tensor(0) * sigmas[0]
    arguments = {"sigma_min": float(sigmas[-2]), "sigma_max": float(sigmas[0]), "eta": eta}
    if name == "fast":
        arguments["n"] = steps
    theirs = theirs_k_diffusion(getattr(k_diffusion(), f"sample_dpm_{name}"), start, draws.in_order(), **arguments)
    error = relative_error(ours(f"DPM {name}", start, sigmas, draws, eta=eta), theirs)
    parity(f"sampler DPM {name}, eta {eta:g}", f"k-diffusion 0.1.1 sample_dpm_{name}", error, BOUND)


# diffusers, in its own coordinates, the network predicting epsilon or v.

Network = Callable[[Tensor, float], Tensor]


def network(prediction: str) -> Network:
    """(latents in the model's own coordinates, sigma) -> what the network would put out."""
    mixture = Mixture()

    def predict(own: Tensor, sigma: float) -> Tensor:
        alpha = 1 / math.hypot(1, sigma)
        clean = mixture.clean(own / alpha, sigma)
        epsilon = (own / alpha - clean) / sigma
        return epsilon if prediction == "epsilon" else alpha * epsilon - alpha * sigma * clean

    return predict


DIFFUSERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # case: (sampler, scheduler's configuration, step's arguments)
    "DDIM": ("DDIM", {}, {}),
    "DDIM, eta": ("DDIM", {}, {"eta": 0.7}),
    "PLMS": ("PLMS", {}, {}),
    "Euler": ("Euler", {}, {}),
    "Euler a": ("Euler a", {}, {}),
    "Heun": ("Heun", {}, {}),
    "DPM2": ("DPM2", {}, {}),
    "LMS": ("LMS", {}, {}),
    "DPM++ 2M": ("DPM++ 2M", {}, {}),
    "DPM++ 2M SDE": ("DPM++ 2M SDE", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPM++ 2M SDE Heun": ("DPM++ 2M SDE Heun", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, {}),
    "UniPC": ("UniPC", {}, {}),
    # bh1 there has no limit for sigma = 0, so it ends at the lowest level.
    "UniPC, order 3, bh1": ("UniPC", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {}),
    "DDPM": ("DDPM", {}, {}),
    "LCM": ("LCM", {}, {}),
    "TCD": ("TCD", {}, {"eta": 0.3}),
    "TCD, gamma 0": ("TCD", {}, {"eta": 0.0}),
    "TCD, gamma 1": ("TCD", {}, {"eta": 1.0}),
}


def diffusers_scheduler(name: str, prediction: str, **changes: Any) -> Any:
    """With Stable Diffusion's published configuration and the table of noise levels in float64."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    settings |= {"set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False}
    settings |= {"prediction_type": "v_prediction" if prediction == "v" else "epsilon", **changes}
    kind = getattr(diffusers, name)
    known = kind.__init__.__wrapped__.__code__.co_varnames
    scheduler = kind(**{key: value for key, value in settings.items() if key in known})
    scheduler.alphas_cumprod = 1 / (1 + PROCESS.sigmas**2)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if name == "DDPMScheduler":
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def sigma_now(scheduler: Any, timestep: Any) -> float:
    """The noise level at which the scheduler expects the network's output."""
    if not hasattr(scheduler, "sigmas"):
        return float(PROCESS.sigmas[int(timestep)])
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    inner = "KDPM2" in type(scheduler).__name__ and not scheduler.state_in_first_order
    return float((scheduler.sigmas_interpol if inner else scheduler.sigmas)[scheduler.step_index])


def theirs_diffusers(
    scheduler: Any, start: Tensor, steps: int, predict: Network, noise: Any, **arguments: Any
) -> Tensor:
    scheduler.set_timesteps(steps)
    x = start
    with pytest.MonkeyPatch.context() as patch:
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", noise)
        for timestep in scheduler.timesteps:
            sigma = sigma_now(scheduler, timestep)
            own = scheduler.scale_model_input(x, timestep)
            x = scheduler.step(predict(own, sigma), timestep, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("steps", [4, 15])
@pytest.mark.parametrize(
    ("case", "prediction"),
    # diffusers' PNDM extrapolates v itself, which is another method.
    [
        (case, prediction)
        for case in DIFFUSERS
        for prediction in ("epsilon", "v")
        if (case, prediction) != ("PLMS", "v")
    ],
)
def test_diffusers(case: str, steps: int, prediction: str, parity: Any) -> None:
    sampler, changes, arguments = DIFFUSERS[case]
    row = DIFFUSERS_SCHEDULERS[sampler]
    draws = Draws(SHAPE, torch.float64)
    sigmas = schedule("Automatic", PROCESS, steps, dialect="diffusers", sampler=find_sampler(sampler))
    scheduler = diffusers_scheduler(row.name, prediction, **changes)
    scheduler.set_timesteps(steps)
    scale = start_scale(sampler, PROCESS, float(sigmas[0]), "diffusers")
    start = draws.tensor(0) * scheduler.init_noise_sigma
    theirs = theirs_diffusers(scheduler, start, steps, network(prediction), draws.in_order(), **arguments)

    options = {**dialect_options(sampler, "diffusers"), **arguments}
    if "order" in case:
        options |= {"order": 3, "variant": "bh1"}
        sigmas[-1] = PROCESS.sigma_min
    noise = Draws(SHAPE)
    result = ours(sampler, noise.tensor(0) * scale, sigmas, noise, **options)
    result = result * end_scale(sampler, PROCESS, float(sigmas[-1]), "diffusers")
    parity(
        f"sampler {case} ({prediction})",
        f"diffusers {diffusers.__version__} {row.name}",
        relative_error(result, theirs),
        BOUND,
    )


def test_diffusers_singlestep(parity: Any) -> None:
    # Its second-order step lands where the step before stood, so DPM++ 2S is that on a schedule with log middles.
    sigmas = schedule("Karras", PROCESS, 8)[:-1]
    middles = (sigmas[:-1].double() * sigmas[1:].double()).sqrt()
    both = [*torch.stack([sigmas[:-1].double(), middles], 1).flatten().tolist(), float(sigmas[-1])]
    scheduler = diffusers_scheduler("DPMSolverSinglestepScheduler", "epsilon")
    scheduler.set_timesteps(len(both) - 1)
    scheduler.sigmas = torch.tensor(both, dtype=torch.float64)
    scheduler.order_list = [1, 2] * (len(sigmas) - 1)
    predict = network("epsilon")
    noise = Draws(SHAPE)
    x = Draws(SHAPE, torch.float64).tensor(0) * both[0] / math.hypot(1, both[0])
    for timestep, sigma in zip(scheduler.timesteps, both):
        x = scheduler.step(predict(x, sigma), timestep, x).prev_sample
    theirs = x * math.hypot(1, both[-1])
    result = ours("DPM++ 2S a", noise.tensor(0) * sigmas[0], sigmas, noise, eta=0.0)
    name = f"diffusers {diffusers.__version__} DPMSolverSinglestepScheduler"
    parity("sampler DPM++ 2S a, eta 0", name, relative_error(result, theirs), BOUND)


# Recorded from AUTOMATIC1111's and ComfyUI's own source.


def recorded(vectors: dict[str, Any], key: str) -> Tensor:
    return torch.tensor(vectors["samplers"][key], dtype=torch.float64).reshape(RECORDED)


@pytest.mark.parametrize("steps", [5, 20, 30])
@pytest.mark.parametrize("case", ["DDIM", "DDIM eta 1", "DDIM CFG++", "PLMS", "UniPC"])
def test_a1111_timestep_samplers(case: str, steps: int, parity: Any) -> None:
    sampler = case.removesuffix(" eta 1")
    sigmas = schedule("Automatic", PROCESS, steps, sampler=find_sampler(sampler))
    draws = Draws(RECORDED)
    start = draws.tensor(0) * start_scale(sampler, PROCESS, float(sigmas[0]), "a1111")
    result = ours(sampler, start, sigmas, draws, **({"eta": 1.0} if case.endswith("1") else {}))
    result = result * end_scale(sampler, PROCESS, float(sigmas[-1]), "a1111")
    parity(f"sampler {case}", source(A1111), relative_error(result, recorded(A1111, f"{case} {steps}")), BOUND)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_a1111_restart(steps: int, parity: Any) -> None:
    sigmas = schedule("Karras", PROCESS, steps)
    draws = Draws(RECORDED)
    result = ours("Restart", draws.tensor(0) * sigmas[0], sigmas, draws)
    parity("sampler Restart", source(A1111), relative_error(result, recorded(A1111, f"Restart {steps}")), BOUND)


@pytest.mark.parametrize("steps", [4, 8])
def test_a1111_lcm(steps: int, parity: Any) -> None:
    sigmas = torch.tensor(A1111["schedules"][f"LCM Uniform {steps}"])
    draws = Draws(RECORDED)
    result = ours("LCM", draws.tensor(0) * sigmas[0], sigmas, draws)
    parity("sampler LCM", source(A1111), relative_error(result, recorded(A1111, f"LCM {steps}")), BOUND)


@pytest.mark.parametrize("key", [key for key in COMFYUI["samplers"] if not key.startswith("UniPC")])
def test_comfyui(key: str, parity: Any) -> None:
    *name, prediction, steps = key.split()
    sampler = " ".join(name)
    sigmas = schedule("Karras", PROCESS, int(steps))
    draws = Draws(RECORDED)
    result = ours(sampler, draws.tensor(0) * sigmas[0], sigmas, draws)
    parity(f"sampler {sampler} ({prediction})", source(COMFYUI), relative_error(result, recorded(COMFYUI, key)), BOUND)


@pytest.mark.parametrize("key", [key for key in COMFYUI["samplers"] if key.startswith("UniPC")])
def test_comfyui_unipc(key: str, parity: Any) -> None:
    _, variant, steps = key.split()
    sigmas = schedule("Karras", PROCESS, int(steps))
    sigmas[-1] = 0.001  # as `schedule` ends for ComfyUI's UniPC
    draws = Draws(RECORDED)
    result = ours("UniPC", draws.tensor(0) * sigmas[0], sigmas, draws, variant=variant)
    parity(f"sampler UniPC {variant}", source(COMFYUI), relative_error(result, recorded(COMFYUI, key)), BOUND)
