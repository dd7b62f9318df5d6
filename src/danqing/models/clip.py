"""CLIP's text tower: OpenAI's ViT-L (SD 1.x, SDXL), OpenCLIP's ViT-H (SD 2.x) and bigG (SDXL)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CLIPTextConfig:
    vocabulary: int = 49408
    width: int = 768
    intermediate: int = 3072
    layers: int = 12
    heads: int = 12
    positions: int = 77
    activation: str = "quick_gelu"
    """`quick_gelu` (OpenAI) or `gelu` (OpenCLIP)."""
    projection: int | None = None
    """Width of `text_projection`; None when the tower has none (SD 1.x)."""
    end_token: int = 49407
