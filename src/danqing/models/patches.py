"""The one way into a denoiser from outside: what ControlNet, IP-Adapter, PAG, FreeU and step caches hook.

`forward(..., patches=None)` is the plain, compilable graph. Keys are canonical block names, which are
diffusers' module paths: `conv_in`, `down_blocks.1.resnets.0`, `down_blocks.1.downsamplers.0`,
`mid_block`, `up_blocks.2`, `up_blocks.2.attentions.0.transformer_blocks.0.attn2` ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, heads, T, D) -> (B, heads, T, D)."""

AttentionPatch = Callable[[Attention, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(plain attention, query, key, value, hidden (B, T, C), context (B, S, C)) -> (B, heads, T, D).

Takes the place of one attention layer's kernel: perturbed-attention guidance returns the value, reference
attention adds keys, IP-Adapter adds the plain attention over the image's own keys and values.
"""

BlockPatch = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""(run, arguments) -> the block's output. `run(*arguments)` is the block itself: caches may leave it out,
token merging may shorten what goes in and lengthen what comes out."""

SkipPatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden, skip) -> (hidden, skip), each (B, C, H, W), before they are joined in an up block (FreeU)."""


@dataclass(frozen=True)
class Patches:
    """Changes to one call of a denoiser. Every mapping is by canonical block name."""

    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    """Added to a block's output, in the main flow: `conv_in`, `down_blocks.N.resnets.M` (with its transformer),
    `down_blocks.N.downsamplers.0` (these three before the skip connection leaves, so T2I-Adapter's), `down_blocks.N`
    (after it), `mid_block` (ControlNet's), `up_blocks.N.resnets.M`, `up_blocks.N`."""
    skips: Mapping[str, Tensor] = field(default_factory=dict)
    """Added to the skip connection that leaves a layer, and not to the main flow (ControlNet, in this order): `conv_in`,
    then by level `down_blocks.N.resnets.M` and `down_blocks.N.downsamplers.0`."""
    skip_scale: Mapping[str, SkipPatch] = field(default_factory=dict)
    """By up block."""
    attention: Mapping[str, AttentionPatch] = field(default_factory=dict)
    """By attention layer (`...attn1`, `...attn2`)."""
    blocks: Mapping[str, BlockPatch] = field(default_factory=dict)
    """By block (`down_blocks.N`, `mid_block`, `up_blocks.N`, `...transformer_blocks.N`)."""
