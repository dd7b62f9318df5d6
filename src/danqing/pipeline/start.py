"""Where a painting begins unless with nothing but noise: a picture's latents, what of them stays, what models are told.

Masks are 1 where to paint. Coordinates are the samplers': the picture plus sigma times noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from danqing.families import At, Process
from danqing.pipeline import soft
from danqing.request_parts import SoftInpainting
from danqing.sampling.schedules import TIMESTEP_SAMPLERS
from danqing.sampling.types import Denoise, Noise, Prediction, Step
from danqing.vocabulary import Dialect


@dataclass(frozen=True, eq=False)
class Start:
    """A picture to begin with. Tensors' first dimension is the batch, or 1 for all pictures alike."""

    latents: Tensor
    """(B, C, H, W) float32: the clean picture."""
    mask: Tensor | None = None
    """(B, 1, H, W) in [0, 1], 1 where to paint; None is everywhere."""
    soft: SoftInpainting | None = None
    channels: Tensor | None = None
    """(B, C', H, W): what an inpainting or instruct-pix2pix model is told of the picture."""
    noised: Tensor | None = None
    """(B, C, H, W): the picture at the first level already (inverted), in place of random noise on it."""
    from_noise: bool = False
    """Nothing of the picture is in the first latents (diffusers' inpainting and instruct-pix2pix at full strength)."""
    keeps: bool = True
    """Whether what the mask leaves out is held; not with diffusers' inpainting models, which are only told of it."""
    noise_multiplier: float = 1.0
    extra_noise: float = 0.0
    draws: tuple[int, int] = (0, 1)
    """The numbers of the start noise and of the sampler's first: diffusers draws for the autoencoder as well."""

    def numbered(self, noise: Noise) -> Noise:
        """`noise` by the numbers that this start gives to its draws."""
        first, later = self.draws
        if self.draws == (0, 1):
            return noise

        def shifted(draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
            return noise(first, None, None) if draw == 0 else noise(draw + later - 1, sigma, sigma_next)

        return shifted

    def first(self, noise: Noise, sigma: float, scale: float, full: bool, dialect: Dialect) -> Tensor:
        """(B, C, H, W): the latents at the first level, `sigma`; `scale` is what pure noise starts with.

        `full` says that the walk begins at the schedule's beginning, where ComfyUI scales noise as for pure noise.
        """
        unit = noise(0)
        if self.noised is not None:
            return self.noised.to(unit).expand(unit.shape)
        if self.from_noise:
            return unit * scale
        if full and dialect == "comfyui":
            return self.latents.to(unit) + unit * scale
        return self.latents.to(unit) + unit * (self.noise_multiplier * (sigma + self.extra_noise))

    def holding(self, denoise: Denoise, noise: Noise, dialect: Dialect, sampler: str, process: Process) -> Denoise:
        """`denoise` that keeps what the mask leaves out, the way each tool does it.

        AUTOMATIC1111 puts the clean picture into the prediction; its timestep samplers put it into what the network is
        given; ComfyUI does the first, and gives the network the picture at the level's noise. diffusers works on the
        steps' results: see `after`.
        """
        if self.mask is None or not self.keeps or self.puts_back(dialect, sampler):
            return denoise
        before = dialect == "comfyui" or (dialect == "a1111" and sampler in TIMESTEP_SAMPLERS and self.soft is None)

        def held(latents: Tensor, at: At) -> Prediction:
            old, mask = self._old(latents)
            if not before:
                prediction = denoise(latents, at)
                return prediction.each(lambda clean: self._blend(old, clean, mask, at.sigma))
            if dialect == "comfyui":
                shown = old + at.sigma * noise(0).to(latents)
                inside = denoise(latents * mask + shown * (1 - mask), at)
                return inside.each(lambda clean: clean * mask + old * (1 - mask))
            shown = latents * mask + old / process.alpha(at.sigma) * (1 - mask)
            return denoise(shown, at).each(lambda clean: clean + latents - shown)

        return held

    def puts_back(self, dialect: Dialect, sampler: str) -> bool:
        """Whether the kept part is put back after each step, with the noise of the next level."""
        return self.mask is not None and self.keeps and dialect == "diffusers" and sampler != "DPM adaptive"

    def after(self, step: Step, sigma_next: float, noise: Noise) -> Step:
        """`step` with the kept part put back at the level that comes next."""
        old, mask = self._old(step.latents)
        level = old + sigma_next * noise(0).to(old) if sigma_next > 0 else old
        return replace(step, latents=step.latents * mask + level * (1 - mask))

    def last(self, latents: Tensor) -> Tensor:
        """The painted latents with the kept part as it was; soft inpainting leaves that to the overlay."""
        if self.mask is None or self.soft is not None or not self.keeps:
            return latents
        old, mask = self._old(latents)
        return latents * mask + old * (1 - mask)

    def _old(self, like: Tensor) -> tuple[Tensor, Tensor]:
        assert self.mask is not None
        return self.latents.to(like), self.mask.to(like)

    def _blend(self, old: Tensor, new: Tensor, mask: Tensor, sigma: float) -> Tensor:
        if self.soft is not None:
            return soft.blend(self.soft, old, new, mask, sigma)
        return new * mask + old * (1 - mask)


def switch(first: Denoise, second: Denoise, process: Process, share: float) -> Denoise:
    """`first`, and from `share` of the noise schedule on `second` (SDXL's refiner; Podell et al. 2023, section 2.5).

    The rule is AUTOMATIC1111's, by the training step of the noise level: (last step - step) / steps >= share. It falls
    between the same steps as diffusers' denoising_end and denoising_start.
    """
    count = process.steps

    def denoise(latents: Tensor, at: At) -> Prediction:
        done = (count - 1 - round(process.timestep(at.sigma), 2)) / count
        return (second if done >= share - 1e-9 else first)(latents, at)

    return denoise


def joined(parts: list[Tensor]) -> Tensor:
    """The parts as a batch, or the one part where all are the same object."""
    return parts[0] if all(part is parts[0] for part in parts) else torch.cat(parts)
