"""OpenVINO's side: diffusers' networks, converted and compiled by it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danqing.families import FAMILIES
from danqing.measure.inputs import inputs
from danqing.measure.works import Work

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class _UNet(nn.Module):
    """diffusers' U-Net with plain arguments, which the converter can follow."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, *added: Tensor) -> Any:
        told = dict(zip(("text_embeds", "time_ids"), added)) or None
        return self.unet(latents, timestep, context, added_cond_kwargs=told, return_dict=False)[0]


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Any:
        return self.vae.decode(latents, return_dict=False)[0]


def make(work: Work, path: Path) -> Callable[[], Any]:
    """What is timed, by diffusers' folder at `path`: shapes fixed, the hint for the least time of one request."""
    import diffusers

    family = FAMILIES[work.family]
    rows = 2 * work.batch if work.kind == "step" else work.batch
    given = inputs(family, rows, work.size, torch.float32)
    if work.kind == "step":
        network: nn.Module = _UNet(diffusers.UNet2DConditionModel.from_pretrained(path / "unet"))
        example = (given.latents, given.timestep, given.context, *given.added.values())
    else:
        network = _Decoder(diffusers.AutoencoderKL.from_pretrained(path / "vae"))
        example = (given.latents[:, : family.autoencoder.latent_channels],)
    compiled = _compiled(network, example, _PRECISIONS[work.dtype])
    del network
    gc.collect()
    arrays = [tensor.contiguous().numpy() for tensor in example]
    return lambda: compiled(arrays)


@torch.no_grad()
def _compiled(network: nn.Module, example: tuple[Tensor, ...], precision: str) -> Any:
    """The network as OpenVINO runs it; nothing of torch's is kept."""
    import openvino

    shapes = [list(tensor.shape) for tensor in example]
    converted = openvino.convert_model(network.eval(), example_input=example, input=shapes)
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(converted, "CPU", options)
