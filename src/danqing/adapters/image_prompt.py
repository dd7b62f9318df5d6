"""Pictures as prompts: an IP-Adapter's tokens beside the text's, in the cross-attentions of a U-Net that is left as it
is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.adapters.control import fitted, holds
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.models.clip_vision import CLIPVision, prepare
from danqing.models.conditioning import Conditioning
from danqing.models.ip_adapter import IPAdapter, KeysAndValues
from danqing.models.patches import Attention, Patches
from danqing.models.unet import UNetConfig, level_size, transformer_blocks
from danqing.request_parts import Combine, WeightType
from danqing.runtime.attention import attention
from danqing.sampling.predict import PatchSource
from danqing.vocabulary import Dialect

_WEAK = 0.2
_EASES: Mapping[str, Callable[[float], float]] = {
    "ease in": lambda way: 1 - way,
    "ease out": lambda way: way,
    "ease in-out": lambda way: 1 - abs(2 * way - 1),
    "reverse in-out": lambda way: abs(2 * way - 1),
}
"""How a weight goes over the transformers, by the share of them that is passed; the last twentieth is never taken."""
_SIDES: Mapping[str, tuple[str, ...]] = {
    "weak input": ("down_blocks",),
    "weak middle": ("mid_block",),
    "weak output": ("up_blocks",),
    "strong middle": ("down_blocks", "up_blocks"),
}
"""Where a weight counts a fifth."""
_SD1_STYLE = dict.fromkeys((0, 1, 2, 3, *range(9, 16)), 1.0)
_PLACES: Mapping[str, Mapping[int, Mapping[int, float]]] = {
    "style transfer": {16: _SD1_STYLE, 11: {6: 1.0}},
    "composition": {16: {4: 0.25, 5: 1.0}, 11: {3: 1.0}},
    "strong style transfer": {
        16: {i: 1.0 for i in range(16) if i not in (4, 5)},
        11: {i: 1.0 for i in range(11) if i != 3},
    },
    "style and composition": {16: _SD1_STYLE | {4: 0.25, 5: 1.0}, 11: {3: 1.0, 6: 1.0}},
    "style transfer precise": {16: _SD1_STYLE | {4: 0.25, 5: 1.0}, 11: {3: 1.0, 6: 1.0}},
    "composition precise": {
        16: _SD1_STYLE | {4: 0.25, 5: 1.0, 6: 0.1, 7: 0.1, 8: 0.1},
        11: dict.fromkeys(range(11), 0.1) | {3: 1.0, 6: 1.0},
    },
}
"""Weight type -> the U-Net's number of transformers (16: SD 1.x and 2.x; 11: SDXL) -> transformer -> factor; others 0.

These tables, the eases and the fifths: cubiq's ComfyUI_IPAdapter_plus; SDXL's are InstantStyle's (Wang et al. 2024)."""
_COMPOSING: Mapping[int, frozenset[int]] = {16: frozenset((4, 5)), 11: frozenset((3,))}
"""The transformers that make the composition. There `style transfer precise` shows the picture to the negative prompt's
side and not to the prompt's; `composition precise` does so everywhere else."""
_COMBINED: Mapping[Combine, Callable[[Tensor], Tensor]] = {
    "average": lambda seen: seen.mean(0, keepdim=True),
    "add": lambda seen: seen.sum(0, keepdim=True),
    "subtract": lambda seen: seen[:1] - seen[1:].mean(0, keepdim=True),
    "norm average": lambda seen: (seen / seen.norm(dim=0, keepdim=True).clamp(min=1e-12)).mean(0, keepdim=True),
}
"""What is seen of several pictures, (n, ...), made one, as the same extension does."""


def layers_of(kind: WeightType, config: UNetConfig) -> tuple[dict[str, float], frozenset[str]]:
    """(what the weight counts in each cross-attention, by its canonical name, but for those at 0; those of them in
    which the pictures act on the negative prompt's side, and not on the prompt's).

    Transformers are counted as the flow passes them. Raises DanqingError for a kind that this U-Net has no places for.
    """
    layers = {f"{name}.attn2": name.rpartition(".transformer_blocks.")[0] for name in transformer_blocks(config)}
    found = list(dict.fromkeys(layers.values()))
    places = _PLACES.get(kind)
    if places is not None and len(found) not in places:
        raise DanqingError(
            f"image_prompts: the weight type '{kind}' is known for U-Nets of SD 1.x, 2.x and SDXL (16 or 11 transformers); "
            f"the model's has {len(found)}. Choose linear"
        )
    factors: dict[str, float] = {}
    for index, name in enumerate(found):
        if places is not None:
            factors[name] = places[len(found)].get(index, 0.0)
        elif kind in _EASES:
            factors[name] = 0.05 + 0.95 * _EASES[kind](index / len(found))
        else:
            factors[name] = _WEAK if name.startswith(_SIDES.get(kind, ())) else 1.0
    weights = {layer: factors[name] for layer, name in layers.items() if factors[name]}
    if kind not in ("style transfer precise", "composition precise"):
        return weights, frozenset()
    composing = {found[index] for index in _COMPOSING[len(found)]}
    style = kind == "style transfer precise"
    return weights, frozenset(layer for layer in weights if (layers[layer] in composing) is style)


# --- what it is -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PicturePrompt:
    """An adapter, what it made of the pictures, and how much that is listened to.

    Raises DanqingError for settings that make no sense.
    """

    network: IPAdapter
    positive: Tensor
    """(1, T, C): the pictures' tokens."""
    negative: Tensor
    """(1, T, C): those of no picture, for the negative prompt's side."""
    layers: Mapping[str, float]
    """What `weight` counts in each cross-attention (`layers_of`)."""
    weight: float = 1.0
    start: float = 0.0
    """Share of the steps at which it begins, from 0 to 1."""
    end: float = 1.0
    mask: Tensor | None = None
    """(1, 1, H, W) of any size, from 0 to 1: where it acts."""
    turned: frozenset[str] = frozenset()
    """Those of `layers` in which the pictures act on the negative prompt's side, and not on the prompt's."""

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The tokens of (the prompt's side, the negative prompt's): for most layers, then for those that are turned."""
        if not self.turned:
            return self.positive, self.negative
        nothing = torch.zeros_like(self.positive)  # whose keys and values are zero
        return torch.cat([self.positive, nothing], 1), torch.cat([self.negative, self.positive], 1)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise DanqingError(
                f"image_prompts: start {self.start:g} and end {self.end:g} should be between 0 and 1, the start not after "
                "the end"
            )
        if not math.isfinite(self.weight):
            raise DanqingError(f"image_prompts: weight {self.weight} is not a number")


@torch.no_grad()
def picture_prompt(
    network: IPAdapter,
    config: UNetConfig,
    *,
    tower: CLIPVision | None = None,
    pixels: Sequence[Tensor] = (),
    faces: Tensor | None = None,
    combine: Combine = "concat",
    kind: WeightType = "linear",
    weight: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    mask: Tensor | None = None,
) -> PicturePrompt:
    """The prompt that `network` makes of pictures (each (1, 3, H, W) in [0, 1], any size) and of faces (n, W).

    What it looks at is its `config.look`: the tower's projected vector or its patches, or faces' vectors, or both, a
    picture to each face. Several pictures: `concat` puts their tokens one after another, any other `combine` makes one
    of what is looked at. No picture is told as diffusers tells it: a vector of zeros, or the patches of a picture of
    zeros. Raises DanqingError where what is looked at is not given, or is of another width.
    """
    told = _looks(network, tower, pixels, faces)
    nothing = _looks(network, tower, [], None, like=told)
    if combine != "concat":
        told, nothing = [_COMBINED[combine](t) for t in told], [t[:1] for t in nothing]
    weights = next(network.parameters())
    positive, negative = (
        network.tokens(*(t.to(weights.device, weights.dtype) for t in side)).flatten(0, 1)[None]
        for side in (told, nothing)
    )
    layers, turned = layers_of(kind, config)
    return PicturePrompt(network, positive, negative, layers, weight, start, end, mask, turned)


def _looks(
    network: IPAdapter,
    tower: CLIPVision | None,
    pixels: Sequence[Tensor],
    faces: Tensor | None,
    like: Sequence[Tensor] = (),
) -> list[Tensor]:
    """What the network is told of the pictures; with `like`, of as many that show nothing."""
    config, look = network.config, network.config.look
    told: list[Tensor] = []
    if "face" in look:
        if not like and (faces is None or faces.shape[-1] != config.face_width):
            given = "none are given" if faces is None else f"these have {faces.shape[-1]}"
            raise DanqingError(
                f"image_prompts: the adapter reads faces' vectors of {config.face_width} numbers, and {given}; see its faces"
            )
        told.append(torch.zeros_like(like[0]) if like else faces if faces is not None else torch.empty(0))
    if look != "face":
        if tower is None or not (pixels or like):
            raise DanqingError("image_prompts: the adapter looks at pictures through CLIP's image tower; give both")
        if like and look == "vector":
            return [torch.zeros_like(like[0])]
        size = tower.config.picture
        prepared = [prepare(picture, size) for picture in pixels] or [torch.zeros(1, 3, size, size)] * len(like[-1])
        told.append(torch.cat([_seen(tower, picture, look) for picture in prepared]))
        if told[-1].shape[-1] != config.feature_width:
            raise DanqingError(
                f"image_prompts: the adapter wants an image tower that tells {config.feature_width} numbers; this one "
                f"tells {told[-1].shape[-1]}"
            )
    if len({len(t) for t in told}) > 1:
        raise DanqingError(f"image_prompts: {len(told[0])} faces for {len(told[1])} pictures; give one to each")
    return told


def _seen(tower: CLIPVision, picture: Tensor, look: str) -> Tensor:
    weight = tower.visual_projection.weight
    out = tower(picture.to(weight.device, weight.dtype))
    seen: Tensor = out.projected if look == "vector" else out.hidden[-2]
    return seen


# --- in a run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture prompt at one size of latents."""

    prompt: PicturePrompt
    first: int
    """Its tokens among a branch's `image_tokens`: from here ..."""
    count: int
    """... so many, and where some layers are turned as many again for those."""
    mask: Tensor | None = None
    """(B or 1, cell * cell, H, W) on the latents' grid: it is cut where the latents are cut."""
    cell: int = 1

    def map(self, fn: Callable[[Tensor], Tensor]) -> Shown:
        mask = None if self.mask is None else fn(self.mask)
        return self if mask is self.mask else replace(self, mask=mask)


def at_size(prompt: PicturePrompt, first: int, width: int, height: int, cell: int) -> Shown:
    """The prompt for latents of `width` x `height`, of which each is `cell` pixels wide and high."""
    mask = prompt.mask
    if mask is not None:
        mask = F.pixel_unshuffle(fitted(mask, width * cell, height * cell, "stretch"), cell)
    return Shown(prompt, first, prompt.positive.shape[1], mask, cell)


@dataclass(frozen=True)
class _Part:
    """What one prompt adds to one cross-attention."""

    layer: KeysAndValues
    tokens: Tensor
    scale: float
    mask: Tensor | None
    """(B or 1, 1, H, W) in pixels."""
    grid: tuple[int, int]
    """The latents' height and width."""
    resized: dict[int, Tensor] = field(default_factory=dict)
    """The mask by the number of queries that it is for."""


def prompt_source(model: Model, steps: int, dialect: Dialect = "danqing") -> PatchSource:
    """What `predictor(patches=...)` is given so that each branch's picture prompts act, over a run of `steps`."""

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        parts: dict[str, list[_Part]] = {}
        tokens = conditioning.image_tokens
        for each in conditioning.controls:
            if not isinstance(each, Shown) or tokens is None:
                continue
            prompt = each.prompt
            if not prompt.weight or not holds(prompt.start, prompt.end, at, steps, model.process, dialect):
                continue
            own, other = (tokens[:, i : i + each.count] for i in (each.first, each.first + each.count))
            mask = None if each.mask is None else F.pixel_shuffle(each.mask.float(), each.cell)
            grid, resized = (scaled.shape[-2], scaled.shape[-1]), dict[int, Tensor]()
            for name, factor in prompt.layers.items():
                seen = other if name in prompt.turned else own
                part = _Part(prompt.network.at(name), seen, prompt.weight * factor, mask, grid, resized)
                parts.setdefault(name, []).append(part)
        return Patches(attention={name: partial(_attend, found) for name, found in parts.items()}) if parts else None

    return source


def _attend(
    parts: Sequence[_Part],
    plain: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    context: Tensor,
) -> Tensor:
    """Z = attention(Q, K, V) + scale attention(Q, K', V') of Ye et al. 2023, equation 5, once for each part."""
    out = plain(query, key, value)
    for part in parts:
        tokens = part.tokens.to(part.layer.to_k_ip.weight.dtype)
        own = (part.layer.to_k_ip(tokens), part.layer.to_v_ip(tokens))
        keys, values = (
            t.to(query.dtype).unflatten(-1, (query.shape[1], -1)).transpose(1, 2).expand(len(query), -1, -1, -1)
            for t in own
        )
        more = attention(query, keys, values)
        if part.mask is not None:
            more = more * _mask(part, query.shape[2]).to(query.dtype)
        out = out + part.scale * more
    return out


def _mask(part: _Part, queries: int) -> Tensor:
    """The mask at the size of the attention's own grid: (B or 1, 1, queries, 1). Bicubic, as diffusers and ComfyUI
    do."""
    assert part.mask is not None
    if queries not in part.resized:
        sizes = (level_size(*part.grid, level) for level in range(8))
        size = next(((height, width) for height, width in sizes if height * width == queries), None)
        if size is None:
            raise DanqingError(
                "image_prompts: a mask does not go with what cuts up the U-Net's grid or makes it coarser"
            )
        small = F.interpolate(part.mask, size=size, mode="bicubic")
        part.resized[queries] = small.flatten(2).transpose(1, 2)[:, None]
    return part.resized[queries]
