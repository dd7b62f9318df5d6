"""Latents to pictures, and pictures to latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from danqing.models.autoencoder import Autoencoder
from danqing.runtime.numerics import guarded
from danqing.vocabulary import Dialect

OVERLAP = 16
"""Latent cells by which tiles overlap, where a whole decode does not fit."""


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor, *, tile: int | None, note: Callable[[str], None]) -> Tensor:
    """Model-space latents (1, C, h, w) of one picture -> pixels (1, 3, H, W) in [-1, 1] but for overshoot.

    `tile` decodes tiles of so many latent cells. Where the autoencoder's output is not finite, the part where that
    begins runs in float32, and `note` is told. Raises DanqingError when that does not help.
    """
    latents = latents.to(next(autoencoder.parameters()).device)

    def run() -> Tensor:
        return autoencoder.decode(latents) if tile is None else autoencoder.decode_tiled(latents, tile, OVERLAP)

    def told(module: str, part: str) -> None:
        note(f"the autoencoder's {module} was not finite: {part} ran in float32")

    return guarded(autoencoder, run, told, "autoencoder")


@torch.no_grad()
def encode(
    autoencoder: Autoencoder,
    pixels: Tensor,
    *,
    tile: int | None,
    note: Callable[[str], None],
    noise: Tensor | None = None,
) -> Tensor:
    """Pixels (1, 3, H, W) in [-1, 1] of one picture -> latents (1, C, h, w) float32 in model space.

    The likeliest ones, or with `noise` of their shape (as diffusers' pipelines do) drawn from their distribution.
    `tile`, `note` and errors are those of `decode`.
    """
    pixels = pixels.to(next(autoencoder.parameters()).device)

    def run() -> Tensor:
        whole = tile is None or max(pixels.shape[-2:]) <= tile * autoencoder.config.downscale
        posterior = autoencoder.encode(pixels) if whole else autoencoder.encode_tiled(pixels, tile or 0, OVERLAP)
        return posterior.mode() if noise is None else posterior.sample(noise)

    def told(module: str, part: str) -> None:
        note(f"the autoencoder's {module} was not finite: {part} ran in float32")

    return guarded(autoencoder, run, told, "autoencoder")


def to_image(pixels: Tensor, dialect: Dialect = "danqing") -> Image.Image:
    """Pixels (1, 3, H, W) in [-1, 1] -> a picture. AUTOMATIC1111 and ComfyUI cut the fraction off, others round."""
    values = (pixels[0].float().cpu() / 2 + 0.5).clamp(0, 1) * 255
    if dialect not in ("a1111", "comfyui"):
        values = values.round()
    return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
