"""What every contender is given: the same random latents and texts, of the sizes that the work asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from danqing.families import FAMILIES, Family
from danqing.measure.groups import Count, count
from danqing.measure.works import Work
from danqing.models.autoencoder import Autoencoder
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights
from danqing.runtime.devices import DTYPES

TOKENS = 77
TIMESTEP = 601
PROMPT = "a red apple on a table"
"""What whole pictures are of."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """One call of a U-Net."""

    latents: Tensor
    """(N, C, h, w)"""
    timestep: Tensor
    """(1,)"""
    context: Tensor
    """(N, 77, W)"""
    pooled: Tensor | None
    """(N, P), of SDXL."""
    time_ids: Tensor | None
    """(N, 6), of SDXL."""

    @property
    def told(self) -> dict[str, Tensor]:
        """What SDXL is told besides, in our words."""
        return (
            {} if self.pooled is None or self.time_ids is None else {"pooled": self.pooled, "time_ids": self.time_ids}
        )

    @property
    def added(self) -> dict[str, Tensor]:
        """The same in diffusers' words."""
        told = self.told
        return {"text_embeds": told["pooled"], "time_ids": told["time_ids"]} if told else {}


def inputs(family: Family, rows: int, size: int, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Random latents of `rows` pictures of `size` pixels, random texts; always the same ones."""
    config = family.denoiser
    generator = None if device == "meta" else torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        if generator is None:
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator).to(device, dtype)

    side = size // family.autoencoder.downscale
    latents = random(rows, config.in_channels, side, side).contiguous(memory_format=torch.channels_last)
    return Inputs(
        latents=latents,
        timestep=torch.tensor([float(TIMESTEP)], device=device),
        context=random(rows, TOKENS, config.context_width),
        pooled=random(rows, config.pooled_width) if config.pooled_width else None,
        time_ids=torch.full((rows, config.size_ids), float(size), device=device) if config.size_ids else None,
    )


def cost(work: Work) -> Count:
    """What `work` takes by our networks' own operations, one by one: nothing fused, nothing left out."""
    family, dtype = FAMILIES[work.family], DTYPES[work.dtype]
    with without_weights():
        unet = UNet(family.denoiser).to(dtype)
        autoencoder = Autoencoder(family.autoencoder).to(dtype)
        towers = [CLIPText(encoder.config).to(dtype) for encoder in family.text_encoders]
    rows = work.batch if work.kind == "train" else 2 * work.batch
    given = inputs(family, rows, work.size, dtype, "meta")

    def step() -> Tensor:
        out: Tensor = unet(given.latents, given.timestep, given.context, **given.told)
        return out

    def decode() -> None:
        autoencoder.decode(given.latents[: work.batch, : family.autoencoder.latent_channels])

    if work.kind == "train":
        unet.train()
        return count(lambda: torch.autograd.backward(step().square().mean()))
    with torch.no_grad():
        if work.kind == "step":
            return count(step)
        if work.kind == "decode":
            return count(decode)
        ids = torch.zeros(2, TOKENS, dtype=torch.long, device="meta")
        parts = [(count(step), work.steps), (count(decode), 1), *((count(lambda: tower(ids)), 1) for tower in towers)]  # noqa: B023
    return Count(
        {group: sum(part.flops[group] * times for part, times in parts) for group in parts[0][0].flops},
        {group: sum(part.moved[group] * times for part, times in parts) for group in parts[0][0].moved},
    )
