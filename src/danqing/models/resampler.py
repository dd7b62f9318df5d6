"""The resampler: a few vectors that gather what they need from many (Jaegle et al. 2021; Alayrac et al. 2022, section
3.1).

IP-Adapter plus, InstantID and PhotoMaker v2 make their tokens by it. Modules are named as in tencent-ailab's IP-Adapter
(`resampler.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danqing.runtime.attention import attention


class Gathering(nn.Module):
    """Vectors (B, Q, C) attend to features (B, T, C) and to themselves -> (B, Q, C)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        features, vectors = self.norm1(features), self.norm2(vectors)
        key, value = self.to_kv(torch.cat([features, vectors], 1)).chunk(2, dim=-1)
        heads = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(vectors), key, value))
        return self.to_out(attention(*heads).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def feed_forward(width: int) -> nn.Sequential:
    """(..., width) -> (..., width); the numbers of its parts are the files'."""
    inner = 4 * width
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )


class Resampler(nn.Module):
    """Features (B, T, feature_width) -> (B, Q, out_width).

    Its Q vectors are learned (`queries` of them), or given by whoever calls it (`queries` 0: FaceID plus, PhotoMaker
    v2).
    """

    latents: nn.Parameter | None

    def __init__(
        self,
        feature_width: int,
        width: int,
        out_width: int,
        *,
        queries: int,
        layers: int,
        heads: int,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, width) / width**0.5) if queries else None
        self.proj_in = nn.Linear(feature_width, width)
        self.proj_out = nn.Linear(width, out_width)
        self.norm_out = nn.LayerNorm(out_width)
        self.layers = nn.ModuleList(
            nn.ModuleList([Gathering(width, heads, head_width), feed_forward(width)]) for _ in range(layers)
        )

    def forward(self, features: Tensor, vectors: Tensor | None = None) -> Tensor:
        """`vectors` (B, Q, width) where none are learned."""
        if vectors is None:
            assert self.latents is not None
            vectors = self.latents.expand(len(features), -1, -1)
        features = self.proj_in(features)
        for layer in self.layers:
            gather, feed = layer.children()
            vectors = gather(features, vectors) + vectors
            vectors = feed(vectors) + vectors
        return self.norm_out(self.proj_out(vectors))  # type: ignore[no-any-return]
