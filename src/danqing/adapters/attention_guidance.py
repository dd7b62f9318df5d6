"""Guidance by the U-Net's own attention: perturbed (PAG, Ahn et al. 2024), and by what it looks at (SAG, Hong et al.
2023).

What marks a branch rides along in its `controls`, so that it is called apart from the others and seen by a
`PatchSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Attention, Patches, with_attention
from danqing.models.unet import UNetConfig, level_size, transformer_blocks
from danqing.models.weights import ASKED
from danqing.request_parts import PerturbedAttention, SelfAttention
from danqing.sampling.predict import PatchSource
from danqing.sampling.types import Denoise, Prediction

WATCHED = "mid_block.attentions.0.transformer_blocks.0"
"""The block whose attention self-attention guidance goes by."""
_KERNEL = 9
"""Cells of the blur's kernel along a side."""


# --- perturbed attention ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Perturbed:
    """Marks a branch in which each pixel of some layers attends to itself alone."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Perturbed:
        return self


def perturbed(branches: Sequence[Conditioning]) -> tuple[Conditioning, ...]:
    """The branches, marked."""
    mark = Perturbed()
    return tuple(replace(branch, controls=(*branch.controls, mark)) for branch in branches)


def perturbed_layers(pag: PerturbedAttention, config: UNetConfig) -> list[str]:
    """The attention layers that are perturbed: those whose canonical (diffusers') name has one of `pag.layers` in it.

    Raises DanqingError for one of them that is in no name.
    """
    names = [f"{name}.attn1" for name in transformer_blocks(config)]
    for part in pag.layers:
        if not any(part in name for name in names):
            blocks = dict.fromkeys(name.partition(".attentions")[0] for name in names)
            there = f"layers are in {', '.join(blocks)}" if blocks else "it has no such layers"
            raise DanqingError(f"pag: the U-Net has no self-attention layer called '{part[:60]}'; {there}")
    return [name for name in names if any(part in name for part in pag.layers)]


def perturbed_source(pag: PerturbedAttention, config: UNetConfig) -> PatchSource:
    """What `predictor(patches=...)` is given so that marked branches are perturbed. Raises as `perturbed_layers`."""
    patches = Patches(attention=dict.fromkeys(perturbed_layers(pag, config), _identity))

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        return patches if any(isinstance(mark, Perturbed) for mark in conditioning.controls) else None

    return source


def _identity(plain: Attention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
    return value


# --- self-attention ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Watched:
    """Marks a branch of which it is kept where its pixels look, in one call of what is guided."""

    maps: list[dict[int, Tensor]] = field(default_factory=list)
    """For each call's pictures (B, T), by the number of the network of several (`weights.ASKED`): how much each token
    of the middle is looked at, 1 on average."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Watched:
        return self


class Watch:
    """The watched branches of a run, and what self-attention guidance makes of what was seen.

    Raises DanqingError where the U-Net has no attention in its middle.
    """

    def __init__(self, sag: SelfAttention, config: UNetConfig) -> None:
        if WATCHED not in transformer_blocks(config):
            raise DanqingError(
                "sag: the U-Net has no attention in its middle, by which this guidance goes; leave it out"
            )
        self.sag = sag
        self.level = len(config.channels) - 1
        self.marks: dict[int, Watched] = {}

    def marked(self, branches: Sequence[Conditioning]) -> tuple[Conditioning, ...]:
        """The branches, each with a mark of its own."""
        for branch in branches:
            self.marks[id(branch)] = Watched()
        return tuple(replace(branch, controls=(*branch.controls, self.marks[id(branch)])) for branch in branches)

    def watching(self, denoise: Denoise) -> Denoise:
        """`denoise`, which asks the marked branches; what its last call saw is what is kept."""

        def watched(latents: Tensor, at: At) -> Prediction:
            for mark in self.marks.values():
                mark.maps.clear()
            return denoise(latents, at)

        return watched

    def source(self, scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        """A `PatchSource`, for the first place: so it sees all tokens, whatever merges or cuts them."""
        for mark in conditioning.controls:
            if isinstance(mark, Watched):
                mark.maps.append({})
                return Patches(blocks={WATCHED: partial(_watched, mark.maps[-1])})
        return None

    def blurred(self, branch: Conditioning, clean: Tensor) -> Tensor:
        """The branch's clean prediction (B, C, H, W), blurred where its pixels look most (equations 10 to 12); of
        several networks that answer together, on average."""
        calls = self.marks[id(branch)].maps
        looked_at = torch.cat([torch.stack([*call.values()]).mean(0) for call in calls]).to(clean.device)
        size = level_size(clean.shape[-2], clean.shape[-1], self.level)
        mask = torch.unflatten((looked_at > self.sag.threshold).to(clean.dtype), 1, size)[:, None]
        mask = F.interpolate(mask, clean.shape[-2:])  # to the nearest
        return clean + (blur(clean, self.sag.blur_sigma) - clean) * mask


def _watched(seen: dict[int, Tensor], run: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
    return run(*with_attention(arguments, f"{WATCHED}.attn1", partial(_watch, seen)))


def _watch(
    seen: dict[int, Tensor],
    plain: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    context: Tensor,
) -> Tensor:
    total = torch.zeros_like(query[:, 0, :, 0], dtype=torch.float32)
    for head in range(query.shape[1]):  # one at a time: all scores at once would be large
        scores = query[:, head].float() @ key[:, head].float().transpose(1, 2) * query.shape[-1] ** -0.5
        total = total + scores.softmax(-1).sum(1)
    seen[ASKED.get()] = total / query.shape[1]  # a call that is done again in float32 is seen again: the last counts
    return plain(query, key, value)


def blur(x: Tensor, sigma: float) -> Tensor:
    """`x` (B, C, H, W) under a Gaussian of deviation `sigma` cells, its edges mirrored; 0 leaves it as it is."""
    if sigma == 0:
        return x
    reach = _KERNEL // 2
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=x.device)
    bell = torch.exp(-0.5 * (places / sigma) ** 2)
    bell = (bell / bell.sum()).to(x.dtype)
    channels = x.shape[1]
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
