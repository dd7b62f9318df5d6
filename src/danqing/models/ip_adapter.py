"""IP-Adapter (Ye et al. 2023): a picture's tokens, and the keys and values that a U-Net's attention has of them.

Every cross-attention gets a second one, over the picture's tokens, whose result is added to the text's (equation 5).
The U-Net itself is not touched. Modules are named as in the files of tencent-ailab's IP-Adapter, which InstantID's
follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from danqing.models.layers import by_row
from danqing.models.resampler import Resampler

Kind = Literal["plain", "plus", "full", "face", "face plus"]
Look = Literal["vector", "patches", "face", "face and patches"]
"""What a kind is told of a picture: CLIP's projected vector; the hidden states before its image tower's last layer; the
vector that a face recogniser (ArcFace, 512 numbers) has of a face; or the last two together."""


@dataclass(frozen=True)
class IPAdapterConfig:
    kind: Kind
    feature_width: int
    """Of what CLIP tells of a picture, or a face recogniser of a face where CLIP is not asked."""
    context_width: int
    """Of the tokens, which is that of the U-Net's text."""
    tokens: int = 4
    """To a picture; a full adapter makes as many as CLIP has patches, and this is not looked at."""
    width: int = 0
    """Inside of a resampler."""
    layers: int = 4
    heads: int = 12
    inner: int = 0
    """Of the two linear layers that read a face."""
    face_width: int = 512
    shortcut: bool = False
    """FaceID plus v2: what is read of the face is added to what CLIP's patches make of it."""

    @property
    def look(self) -> Look:
        looks: dict[Kind, Look] = {
            "plain": "vector",
            "full": "patches",
            "face": "face",
            "face plus": "face and patches",
        }
        return looks.get(self.kind) or ("face" if self.feature_width == self.face_width else "patches")


class Projection(nn.Module):
    """A vector (B, W) -> (B, tokens, C)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.feature_width, config.tokens * config.context_width)
        self.norm = nn.LayerNorm(config.context_width)

    def forward(self, vector: Tensor) -> Tensor:
        return self.norm(self.proj(vector).unflatten(-1, (-1, self.norm.normalized_shape[0])))  # type: ignore[no-any-return]


class FullProjection(nn.Module):
    """Every patch for itself: (B, T, W) -> (B, T, C)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.feature_width
        self.proj = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.context_width),
            nn.LayerNorm(config.context_width),
        )

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)  # type: ignore[no-any-return]


class FaceProjection(nn.Module):
    """A face (B, 512) -> (B, tokens, C)."""

    def __init__(self, config: IPAdapterConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(config.face_width, config.inner), nn.GELU(), nn.Linear(config.inner, config.tokens * width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, face: Tensor) -> Tensor:
        return self.norm(self.proj(face).unflatten(-1, (-1, self.norm.normalized_shape[0])))  # type: ignore[no-any-return]


class FacePlusProjection(FaceProjection):
    """A face (B, 512) and CLIP's patches of it (B, T, W) -> (B, tokens, C)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__(config, config.width)
        self.shortcut = config.shortcut
        self.perceiver_resampler = Resampler(
            config.feature_width,
            config.width,
            config.context_width,
            queries=0,
            layers=config.layers,
            heads=config.heads,
        )

    def forward(self, face: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
        read = super().forward(face)
        made: Tensor = self.perceiver_resampler(patches, read)
        return read + made if self.shortcut else made


def _projection(config: IPAdapterConfig) -> nn.Module:
    if config.kind == "plain":
        return Projection(config)
    if config.kind == "full":
        return FullProjection(config)
    if config.kind == "face":
        return FaceProjection(config, config.context_width)
    if config.kind == "face plus":
        return FacePlusProjection(config)
    return Resampler(
        config.feature_width,
        config.width,
        config.context_width,
        queries=config.tokens,
        layers=config.layers,
        heads=config.heads,
    )


class KeysAndValues(nn.Module):
    """What one cross-attention of the U-Net has of the tokens."""

    def __init__(self, context_width: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_width, width, bias=False)
        self.to_v_ip = nn.Linear(context_width, width, bias=False)


class IPAdapter(nn.Module):
    """Made in evaluation mode. `places` are the U-Net's cross-attentions with their widths
    (`models.unet.cross_attentions`)."""

    def __init__(self, config: IPAdapterConfig, places: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.places = tuple(places)
        self.image_proj = _projection(config)
        # the files count a U-Net's attentions, and those of the pixels to each other have the even numbers
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): KeysAndValues(config.context_width, width) for i, width in enumerate(places.values())}
        )
        self.eval()

    def tokens(self, *told: Tensor) -> Tensor:
        """(n, ...) of n pictures, by `config.look` -> (n, tokens, C). `face and patches` takes the two in this
        order."""
        if self.config.kind == "plus" and self.config.look == "face":
            told = (told[0][:, None],)  # a resampler gathers from many: here from one
        if len(told) == 1:
            return by_row(self.image_proj, told[0])
        rows = zip(*(torch.split(t, 1) for t in told))
        return torch.cat([self.image_proj(*row) for row in rows])

    def at(self, place: str) -> KeysAndValues:
        """What the cross-attention of that canonical name has."""
        return self.ip_adapter[str(2 * self.places.index(place) + 1)]  # type: ignore[return-value]
