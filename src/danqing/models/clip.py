"""CLIP's text tower (Radford et al. 2021): OpenAI's ViT-L (SD 1.x, SDXL), OpenCLIP's ViT-H (SD 2.x) and bigG (SDXL).

Modules are named as transformers' CLIPTextModel names them, with the `text_model.` prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import per_row
from danqing.runtime.attention import attention


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

    def __post_init__(self) -> None:
        if self.activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"activation {self.activation!r} is neither quick_gelu nor gelu")


class Tower(Protocol):
    """What the text tower and the image tower are both made by."""

    @property
    def width(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def activation(self) -> str: ...


@dataclass(frozen=True)
class CLIPOutput:
    hidden: tuple[Tensor, ...]
    """(B, T, C) each: the embeddings, then every layer's output, none of them through the final norm."""
    last: Tensor
    """(B, T, C): the last layer's output through the final norm."""
    pooled: Tensor
    """(B, P): `last` at the first end-of-text token, projected where the tower has a projection."""


class Attention(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        projected = (layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        return self.out_proj(attention(query, key, value, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.width, config.intermediate)
        self.fc2 = nn.Linear(config.intermediate, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        return self.fc2(x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)


class Encoder(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class TextModel(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)


class CLIPText(nn.Module):
    """Token numbers in, hidden states out. Made in evaluation mode."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None
        self.eval()

    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (B, T) -> their embeddings (B, T, C), before positions are added."""
        return self.text_model.embeddings.token_embedding(ids)  # type: ignore[no-any-return]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The final layer norm of (B, T, C), for a hidden state that clip skip chose."""
        return self.text_model.final_layer_norm(hidden)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, *, embeddings: Tensor | None = None) -> CLIPOutput:
        """`ids` (B, T) int, T at most `config.positions`.

        `embeddings` (B, T, C) stands in for the tokens' own (textual inversion); `ids` then only say where the
        text ends. Text that has no end token is pooled at its first position.
        """
        hidden = self.embed(ids) if embeddings is None else embeddings
        length = ids.shape[1]
        hidden = hidden + self.text_model.embeddings.position_embedding.weight[:length]
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        states = [hidden]
        for layer in self.text_model.encoder.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        last = self.final_norm(hidden)
        end = (ids == self.config.end_token).int().argmax(-1)  # the first; transformers' rule for newer configurations
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        if self.text_projection is not None:
            pooled = per_row(self.text_projection, pooled)
        return CLIPOutput(tuple(states), last, pooled)
