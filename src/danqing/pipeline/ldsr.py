"""Pictures four times as large by latent-diffusion super-resolution (LDSR; Rombach et al. 2022, section 4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.checkpoints.files import open_file
from danqing.checkpoints.load import load
from danqing.checkpoints.recognise import kind_of
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.models.conditioning import Conditioning
from danqing.sampling.noise import picture_noise
from danqing.sampling.predict import predictor, timesteps
from danqing.sampling.samplers import SAMPLER_FUNCTIONS, end_scale, start_scale
from danqing.sampling.schedules import schedule
from danqing.sampling.types import Prediction
from danqing.sampling.windows import in_windows
from danqing.vocabulary import find_sampler

SEED = 0
"""Of every run: the same picture in is the same picture out."""
CELL, LEAST = 64, 128
"""A picture is filled up, by its last pixels, to multiples of the one and at least the other, as in AUTOMATIC1111."""
WINDOW, OVERLAP, DECODED_OVERLAP = 128, 64, 32
"""Pixels of the picture that goes in, which are latent cells of the one that comes out: what is denoised at a time
(AUTOMATIC1111's sizes), by how much the windows overlap, and by how much the tiles do that are decoded."""


class Tiling(Enum):
    """Who cuts a picture up, named as spandrel names it."""

    INTERNAL = "internal"


@dataclass(frozen=True, eq=False)
class LatentUpscaler:
    """What `pipeline.upscale` asks of spandrel's networks, by a latent-diffusion model."""

    model: Model
    steps: int
    eta: float = 1.0
    """AUTOMATIC1111's."""
    input_channels: int = 3
    output_channels: int = 3
    tiling: Tiling = Tiling.INTERNAL

    @property
    def scale(self) -> int:
        """By how much a picture's sides grow: one latent cell comes of each pixel."""
        return self.model.family.autoencoder.downscale

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (1, 3, H, W) in [0, 1] -> (1, 3, scale H, scale W) float32 in [0, 1], on the model's device.

        DDIM (Song et al. 2021) over the whole picture, the network in windows, told the picture beside the latents.
        """
        height, width = pixels.shape[-2:]
        right, below = (max(-(-side // CELL) * CELL, LEAST) - side for side in (width, height))
        told = F.pad(pixels.to(self.device, torch.float32) * 2 - 1, (0, right, 0, below), mode="replicate")
        latents = self._sampled(told)
        decoder = self.model.autoencoder
        if max(latents.shape[-2:]) > WINDOW:
            out = decoder.decode_tiled(latents, WINDOW, DECODED_OVERLAP)
        else:
            out = decoder.decode(latents)
        return (out[..., : height * self.scale, : width * self.scale].clamp(-1, 1) + 1) / 2

    def _sampled(self, told: Tensor) -> Tensor:
        """The picture in [-1, 1] (1, 3, h, w) -> model-space latents (1, C, h, w).

        The schedule is that of latent diffusion's own DDIM, which is diffusers' too and ends above zero.
        """
        process, name = self.model.process, "DDIM"
        sigmas = schedule(name, process, self.steps, dialect="diffusers", sampler=find_sampler(name))
        shape = (self.model.family.autoencoder.latent_channels, *told.shape[-2:])
        noise = picture_noise([SEED], shape, device=self.device)
        network = predictor(self.model, timestep_of=timesteps(process, "diffusers", name))
        predict = in_windows(network, (WINDOW, WINDOW), OVERLAP)
        branch = Conditioning(torch.zeros(1, 0, 0), channels=told)

        def denoise(latents: Tensor, at: At) -> Prediction:
            return Prediction(predict(latents, at, [branch])[0])

        latents = noise(0) * start_scale(name, process, float(sigmas[0]), "diffusers")
        for step in SAMPLER_FUNCTIONS[name](denoise, latents, sigmas, noise, eta=self.eta):
            latents = step.latents
        return latents * end_scale(name, process, float(sigmas[-1]), "diffusers")


def is_latent_upscaler(path: Path) -> bool:
    """Whether `path` may hold one: a file with its tensors, or any folder in diffusers' layout. Reads headers only.

    Raises DanqingError for a damaged file.
    """
    return path.is_dir() or kind_of(open_file(path).shapes).name == "ldsr"


def load_latent_upscaler(
    path: Path, device: torch.device, dtype: torch.dtype, steps: int | None = None
) -> LatentUpscaler:
    """The latent-diffusion upscaler in a file of latent diffusion's layout or a folder of diffusers'.

    It takes `steps`, the family's number unless given. Where the file keeps the moving average of its U-Net's weights, that is what runs, as in AUTOMATIC1111.
    Raises DanqingError: another model, damaged, or with missing, surplus and mis-shaped keys.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.family.variant != "upscale":
        raise DanqingError(f"{path}: is a model of {checkpoint.family.title}, not an upscaler")
    model = load(path, device=device, dtype=dtype, ema=checkpoint.has_ema)
    return LatentUpscaler(model, steps or model.family.defaults.steps)
