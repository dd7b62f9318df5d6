"""Danqing's own side of each work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.measure.inputs import PROMPT, TIMESTEP, inputs
from danqing.measure.works import Work
from danqing.models.conditioning import Conditioning
from danqing.pipeline.decode import decode
from danqing.pipeline.models import Say, load
from danqing.pipeline.paint import paint
from danqing.requests import TextToImage
from danqing.runtime.devices import DTYPES
from danqing.sampling.predict import predictor
from danqing.train.objectives import noised

LEARNING_RATE = 1e-5


def make(work: Work, path: Path, engine: str = "eager", quantize: str = "none") -> Callable[[], Any]:
    """What is timed, by the model at `path`, loaded as any other, for this engine.

    Raises DanqingError where the engine cannot serve: else eager would be timed under its name.
    """
    said: list[str] = []
    dtype = "float32" if work.kind == "train" else work.dtype
    model = load(path, device=work.device, dtype=dtype, engine=engine, quantize=quantize, say=said.append)
    run = {"step": _step, "decode": _decode, "picture": _picture, "train": _train}[work.kind](model, work, said.append)
    if engine == "eager":
        return run

    def checked() -> None:
        run()
        if model.engine is None or None in model.engine.ready.values():
            raise DanqingError(said[-1] if said else f"engine {engine} takes no part in this")

    return checked


def _step(model: Model, work: Work, say: Say) -> Callable[[], Any]:
    """The samplers' own way to the network: both branches of guidance, and what is not finite looked for."""
    given = inputs(model.family, 2 * work.batch, work.size, model.dtype, str(model.device))
    predict, at = predictor(model, say=say), At(model.process.sigma_at(TIMESTEP), 0)
    latents = given.latents[: work.batch].float()
    branches = [
        Conditioning(
            given.context[rows],
            pooled=None if given.pooled is None else given.pooled[rows],
            extra={} if given.time_ids is None else {"time_ids": given.time_ids[rows]},
        )
        for rows in (slice(None, work.batch), slice(work.batch, None))
    ]

    @torch.no_grad()
    def run() -> None:
        predict(latents, at, branches)

    return run


def _decode(model: Model, work: Work, say: Say) -> Callable[[], Any]:
    given = inputs(model.family, work.batch, work.size, torch.float32, str(model.device))
    latents = given.latents[:, : model.family.autoencoder.latent_channels]

    def run() -> None:
        for one in torch.split(latents, 1):
            decode(model.autoencoder, one, tile=None, note=say)

    return run


def _picture(model: Model, work: Work, say: Say) -> Callable[[], Any]:
    request = TextToImage(
        prompt=PROMPT,
        negative_prompt="blurry",
        width=work.size,
        height=work.size,
        steps=work.steps,
        batch_size=work.batch,
        seed=1,
    )
    return lambda: paint(request, model, say=say)


def _train(model: Model, work: Work, say: Say) -> Callable[[], Any]:
    """One update of all the U-Net's weights, as the training loop makes it."""
    device, unet = str(model.device), model.denoiser.train().requires_grad_(True)
    given = inputs(model.family, work.batch, work.size, torch.float32, device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(2)
    steps = torch.randint(model.process.steps, (work.batch,), generator=generator)
    noise = torch.randn(given.latents.shape, generator=generator).to(given.latents)

    def run() -> None:
        scaled, target, told = noised(model.process, given.latents, noise, steps)
        with torch.autocast(model.device.type, DTYPES[work.dtype], enabled=work.dtype != "float32"):
            answer = unet(scaled, told, given.context, **given.told)
        torch.autograd.backward(F.mse_loss(answer.float(), target))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
