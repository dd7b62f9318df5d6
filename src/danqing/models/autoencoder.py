"""The KL autoencoder of latent diffusion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    quant_convolutions: bool = True
    """Whether `quant_conv` and `post_quant_conv` are there (SD 1.x, 2.x, XL; not SD 3)."""
    scale: float = 0.18215
    shift: float = 0.0
    """Model-space latents are (z - shift) * scale."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Per channel, where a family normalises so (Playground 2.5): (z - mean) / std * scale."""

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along each axis."""
        return 2 ** (len(self.channels) - 1)
