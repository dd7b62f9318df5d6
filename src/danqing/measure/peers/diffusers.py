"""diffusers' side: its networks and pipelines over the same weights, eager or under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from danqing.families import FAMILIES
from danqing.measure.inputs import PROMPT, inputs
from danqing.measure.works import Work
from danqing.runtime.devices import DTYPES


def make(work: Work, path: Path) -> Callable[[], Any]:
    """What is timed, by diffusers' folder at `path`; channels-last, as its own guide to speed advises."""
    return _make(work, path, lambda network: network)


def make_compiled(work: Work, path: Path) -> Callable[[], Any]:
    """The same with its networks compiled: on a CPU with frozen weights, on a GPU with tuned kernels."""
    if work.device == "cpu":
        import torch._inductor.config as inductor

        inductor.freezing = True
        return _make(work, path, torch.compile)
    return _make(work, path, lambda network: torch.compile(network, mode="max-autotune"))


def _make(work: Work, path: Path, change: Callable[[Any], Any]) -> Callable[[], Any]:
    return {"step": _step, "decode": _decode, "picture": _picture, "train": _train}[work.kind](work, path, change)


def _network(name: str, folder: Path, dtype: torch.dtype, device: str) -> Any:
    import diffusers

    network = getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype).to(device)
    return network.to(memory_format=torch.channels_last).eval()


def _step(work: Work, path: Path, change: Callable[[Any], Any]) -> Callable[[], Any]:
    dtype = DTYPES[work.dtype]
    unet = change(_network("UNet2DConditionModel", path / "unet", dtype, work.device))
    given = inputs(FAMILIES[work.family], 2 * work.batch, work.size, dtype, work.device)

    @torch.no_grad()
    def run() -> None:
        unet(given.latents, given.timestep, given.context, added_cond_kwargs=given.added or None, return_dict=False)

    return run


def _decode(work: Work, path: Path, change: Callable[[Any], Any]) -> Callable[[], Any]:
    dtype = DTYPES[work.dtype]
    vae = _network("AutoencoderKL", path / "vae", dtype, work.device)
    vae.decoder = change(vae.decoder)
    family = FAMILIES[work.family]
    latents = inputs(family, work.batch, work.size, dtype, work.device).latents
    latents = latents[:, : family.autoencoder.latent_channels]

    @torch.no_grad()
    def run() -> None:
        vae.decode(latents, return_dict=False)

    return run


def _picture(work: Work, path: Path, change: Callable[[Any], Any]) -> Callable[[], Any]:
    import diffusers

    options: dict[str, Any] = {} if FAMILIES[work.family].denoiser.size_ids else {"safety_checker": None}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path, torch_dtype=DTYPES[work.dtype], **options)
    pipeline.to(work.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.unet, pipeline.vae.decoder = change(pipeline.unet), change(pipeline.vae.decoder)
    return lambda: pipeline(
        PROMPT,
        negative_prompt="blurry",
        width=work.size,
        height=work.size,
        num_inference_steps=work.steps,
        num_images_per_prompt=work.batch,
        generator=torch.Generator().manual_seed(1),
    )


def _train(work: Work, path: Path, change: Callable[[Any], Any]) -> Callable[[], Any]:
    network = _network("UNet2DConditionModel", path / "unet", torch.float32, work.device).train()
    unet = change(network)
    given = inputs(FAMILIES[work.family], work.batch, work.size, torch.float32, work.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(2)).to(given.latents)

    def run() -> None:
        with torch.autocast(work.device.partition(":")[0], DTYPES[work.dtype], enabled=work.dtype != "float32"):
            (answer,) = unet(
                given.latents, given.timestep, given.context, added_cond_kwargs=given.added or None, return_dict=False
            )
        torch.autograd.backward(F.mse_loss(answer.float(), noise))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
