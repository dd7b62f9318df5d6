"""The U-Net of Stable Diffusion 1.x, 2.x, XL and their distilled kin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 4
    """4; 9 for inpainting (latents, mask, masked latents), 8 for instruct-pix2pix."""
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Per level, from the finest."""
    down_depth: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1), (1, 1), (0, 0))
    """Transformer blocks after each residual block of each down level; 0 is a residual block alone."""
    mid_depth: int | None = 1
    """Transformer blocks of the middle; 0 is residual blocks alone; None is no middle block (SSD-1B)."""
    up_depth: tuple[tuple[int, ...], ...] = ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    """Per up level, from the coarsest."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads per level (the middle has the last level's)."""
    context_width: int = 768
    linear_projection: bool = False
    """Whether transformers enter and leave by a linear layer (SD 2.x, XL) or a 1x1 convolution (SD 1.x)."""
    pooled_width: int = 0
    """Width of the pooled vector; 0 when there is none. SDXL: 1280."""
    size_ids: int = 0
    """How many numbers `time_ids` holds: 6 for SDXL, 5 for its refiner, 0 otherwise."""
    size_id_width: int = 256
    guidance_width: int = 0
    """Width of the guidance embedding of LCM models; 0 when there is none."""
    groups: int = 32
