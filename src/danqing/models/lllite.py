"""ControlNet-LLLite: a small network beside each of a U-Net's attention layers, which is shown a picture.

What it makes is added to what queries, keys or values are made of. Layout and layers are those of kohya-ss/sd-scripts
(`networks/control_net_lllite.py`), within each layer by the file's own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.models.layers import Conv2d
from danqing.models.patches import Patches

_STRIDES = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}
"""Of the convolutions that see the picture, whose kernels are as large, by how many levels down the layer is."""


@dataclass(frozen=True)
class LLLiteLayer:
    width: int
    """Of the vectors that the layer is given."""
    embedding: int = 32
    inner: int = 64
    depth: int = 2
    """1 for a layer of the latents' size, 2 for half, 3 for a quarter of it."""


class LLLiteModule(nn.Module):
    """What is added to a layer's vectors, of themselves and of the picture."""

    def __init__(self, config: LLLiteLayer) -> None:
        super().__init__()
        strides, channels = _STRIDES[config.depth], 3
        seen: list[nn.Module] = []
        for index, stride in enumerate(strides):
            last = index == len(strides) - 1
            width = config.embedding if last else config.embedding // 2
            seen += [Conv2d(channels, width, stride, stride=stride), *([] if last else [nn.ReLU()])]
            channels = width
        self.stride = 4 * 2**config.depth
        self.conditioning1 = nn.Sequential(*seen)
        self.down = nn.Sequential(nn.Linear(config.width, config.inner), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(config.inner + config.embedding, config.inner), nn.ReLU())
        self.up = nn.Sequential(nn.Linear(config.inner, config.width))

    def seen(self, picture: Tensor) -> Tensor:
        """A picture (1, 3, H, W) from 0 to 1 -> its vectors at the layer's size, (1, T, E)."""
        bottom, right = (-side % self.stride for side in picture.shape[-2:])
        whole = F.pad(picture, (0, right, 0, bottom), mode="replicate")
        return self.conditioning1(whole * 2 - 1).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, T, C), what `seen` made of the picture -> what is to be added to x."""
        if x.shape[1] != seen.shape[1]:
            raise DanqingError(
                "control: a ControlNet-LLLite does not go with token merging or HyperTile; leave them out"
            )
        return self.up(self.mid(torch.cat([seen.expand(len(x), -1, -1), self.down(x)], -1)))  # type: ignore[no-any-return]


class LLLite(nn.Module):
    """The networks beside a U-Net's layers, by their canonical names with `_` for `.`."""

    def __init__(self, layers: Mapping[str, LLLiteLayer]) -> None:
        super().__init__()
        self.names = tuple(layers)
        """Canonical: `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`."""
        self.layers = nn.ModuleDict({name.replace(".", "_"): LLLiteModule(layer) for name, layer in layers.items()})
        self.eval()

    def hints(self, picture: Tensor) -> tuple[Tensor, ...]:
        """What each layer sees of a picture (1, 3, H, W), from 0 to 1; it does not depend on the step."""
        return tuple(layer.seen(picture) for layer in self.layers.values())  # type: ignore[operator]

    def patches(self, hints: tuple[Tensor, ...], weight: float) -> Patches:
        """The changes to one call of the U-Net."""
        beside = zip(self.names, self.layers.values(), hints)
        parts = {name: partial(_added, layer, seen, weight) for name, layer, seen in beside}
        attentions = dict.fromkeys(name.rpartition(".")[0] for name in self.names)
        queries = {name: parts[f"{name}.to_q"] for name in attentions if f"{name}.to_q" in parts}
        contexts = {
            name: partial(_both, parts.get(f"{name}.to_k"), parts.get(f"{name}.to_v"))
            for name in attentions
            if f"{name}.to_k" in parts or f"{name}.to_v" in parts
        }
        return Patches(queries=queries, contexts=contexts)


def _added(layer: nn.Module, seen: Tensor, weight: float, x: Tensor) -> Tensor:
    return x + weight * layer(x, seen)  # type: ignore[no-any-return]


def _both(
    for_keys: partial[Tensor] | None, for_values: partial[Tensor] | None, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    return keys if for_keys is None else for_keys(keys), values if for_values is None else for_values(values)
