"""PhotoMaker (Li et al. 2023): photographs of a person, stacked into the text's own vector of a word such as "man".

Version 1 looks through CLIP alone; version 2 reads a face recogniser's vector and lets it gather from CLIP's patches.
Modules are named as TencentARC/PhotoMaker's `id_encoder` (`model.py`, `model_v2.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig
from danqing.models.layers import per_row
from danqing.models.resampler import Resampler


@dataclass(frozen=True)
class PhotoMakerConfig:
    vision: CLIPVisionConfig
    second_projection: int = 1280
    """With CLIP's own it makes the text's width: 768 + 1280 = 2048 of SDXL."""
    faces: bool = False
    """Version 2."""
    face_width: int = 512
    face_inner: int = 2048
    tokens: int = 1
    """To a photograph: 1, of version 2 it is 2."""
    layers: int = 4
    head_width: int = 128

    @property
    def width(self) -> int:
        """Of the text's vectors."""
        return self.vision.projection + self.second_projection


class MLP(nn.Module):
    """(n, c_in) -> (n, c_out), added to its input where both are alike."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(c_in)
        self.fc1 = nn.Linear(c_in, c_out)
        self.fc2 = nn.Linear(c_out, c_out)
        self.adds = c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(F.gelu(self.fc1(self.layernorm(x))))
        return made + x if self.adds else made


class Fusion(nn.Module):
    """A word's vectors (n, C) and the photographs' (n, C) -> the word's new vectors (n, C); equation 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp1 = MLP(2 * width, width)
        self.mlp2 = MLP(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, word: Tensor, photographs: Tensor) -> Tensor:
        mixed = self.mlp1(torch.cat([word, photographs], -1)) + word
        return self.layer_norm(self.mlp2(mixed))  # type: ignore[no-any-return]


class FaceReader(nn.Module):
    """A face's vector (B, 512) gathers from CLIP's patches (B, T, W) -> (B, tokens, C)."""

    def __init__(self, config: PhotoMakerConfig) -> None:
        super().__init__()
        width = config.width
        self.token_proj = nn.Sequential(
            nn.Linear(config.face_width, config.face_inner),
            nn.GELU(),
            nn.Linear(config.face_inner, width * config.tokens),
        )
        self.token_norm = nn.LayerNorm(width)
        self.perceiver_resampler = Resampler(
            config.vision.width,
            width,
            width,
            queries=0,
            layers=config.layers,
            heads=width // config.head_width,
            head_width=config.head_width,
        )

    def forward(self, face: Tensor, patches: Tensor) -> Tensor:
        read = self.token_norm(self.token_proj(face).unflatten(-1, (-1, self.token_norm.normalized_shape[0])))
        return read + self.perceiver_resampler(patches, read)  # type: ignore[no-any-return]


class PhotoMaker(CLIPVision):
    """CLIP's image tower with what turns its answer into vectors like the text's. Made in evaluation mode."""

    def __init__(self, config: PhotoMakerConfig) -> None:
        super().__init__(config.vision)
        self.photomaker = config
        self.visual_projection_2 = nn.Linear(config.vision.width, config.second_projection, bias=False)
        self.fuse_module = Fusion(config.width)
        if config.faces:
            self.qformer_perceiver = FaceReader(config)
        self.eval()

    def photographs(self, pixels: Tensor, faces: Tensor | None = None) -> Tensor:
        """Pixels (n, 3, S, S) as CLIP's tower takes them, and of version 2 their faces (n, 512) -> (n * tokens, C)."""
        seen = self(pixels)
        if self.photomaker.faces:
            assert faces is not None
            rows = zip(torch.split(faces, 1), torch.split(seen.hidden[-1], 1))
            return torch.cat([self.qformer_perceiver(face, patches)[0] for face, patches in rows])
        return torch.cat([seen.projected, per_row(self.visual_projection_2, seen.pooled)], -1)

    def fused(self, context: Tensor, places: Tensor, photographs: Tensor) -> Tensor:
        """The text's vectors (1, T, C) with those at `places` (n,) merged with `photographs` (n, C)."""
        new = context.clone()
        new[0, places] = self.fuse_module(context[0, places], photographs).to(new.dtype)
        return new
