"""CLIP's image tower (Radford et al. 2021), and Stable Diffusion's safety checker, which is one with a list of concepts.

Modules are named as transformers' CLIPVisionModelWithProjection names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.clip import Encoder
from danqing.models.layers import per_row

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, per channel in [0, 1]."""


@dataclass(frozen=True)
class CLIPVisionConfig:
    width: int = 1024
    intermediate: int = 4096
    layers: int = 24
    heads: int = 16
    activation: str = "quick_gelu"
    picture: int = 224
    """Pixels along an edge of what the tower looks at."""
    patch: int = 14
    projection: int = 768


@dataclass(frozen=True)
class CLIPVisionOutput:
    hidden: tuple[Tensor, ...]
    """(B, 1 + patches, C) each: the embeddings, then every layer's output. The class token is first."""
    pooled: Tensor
    """(B, C): the class token through the final norm."""
    projected: Tensor
    """(B, P): in the space that CLIP's texts share."""


class VisionEmbeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding((config.picture // config.patch) ** 2 + 1, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, C)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1)
        return tokens + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # spelled so in every file
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width)


class CLIPVision(nn.Module):
    """Pictures in, vectors out."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config.width, config.projection, bias=False)

    def forward(self, pixels: Tensor) -> CLIPVisionOutput:
        """`pixels` (B, 3, S, S) with S = `config.picture`, normalised by `MEAN` and `STD` (see `prepare`)."""
        tower = self.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        states = [hidden]
        for layer in tower.encoder.layers:
            hidden = layer(hidden, None)
            states.append(hidden)
        pooled = tower.post_layernorm(hidden[:, 0])
        return CLIPVisionOutput(tuple(states), pooled, per_row(self.visual_projection, pooled))


def prepare(pixels: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as the tower takes them: shorter edge resized, centre cropped, normalised."""
    height, width = pixels.shape[-2:]
    factor = size / min(height, width)
    fitted = (max(size, int(height * factor)), max(size, int(width * factor)))
    pixels = F.interpolate(pixels, size=fitted, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (fitted[0] - size) // 2, (fitted[1] - size) // 2
    pixels = pixels[..., top : top + size, left : left + size]
    mean = torch.tensor(MEAN, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    std = torch.tensor(STD, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    return (pixels - mean) / std


class SafetyChecker(CLIPVision):
    """Compares a picture with 17 concepts and 3 of special care; names as diffusers' StableDiffusionSafetyChecker."""

    def __init__(self, config: CLIPVisionConfig, concepts: int = 17, special: int = 3) -> None:
        super().__init__(config)
        self.concept_embeds = nn.Parameter(torch.ones(concepts, config.projection))
        self.concept_embeds_weights = nn.Parameter(torch.ones(concepts))
        self.special_care_embeds = nn.Parameter(torch.ones(special, config.projection))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(special))

    def flagged(self, pixels: Tensor) -> list[bool]:
        """For each of the prepared pictures (B, 3, S, S), whether a concept is nearer than its threshold.

        A picture near a concept of special care is judged 0.01 more strictly. Scores are rounded to three
        decimals, as diffusers rounds them.
        """
        vectors = F.normalize(self(pixels).projected.float())
        special = vectors @ F.normalize(self.special_care_embeds.float()).T - self.special_care_embeds_weights.float()
        strictness = 0.01 * (special.round(decimals=3) > 0).any(1, keepdim=True).float()
        scores = vectors @ F.normalize(self.concept_embeds.float()).T - self.concept_embeds_weights.float() + strictness
        return (scores.round(decimals=3) > 0).any(1).tolist()  # type: ignore[no-any-return]
