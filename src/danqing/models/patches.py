"""The one way into a denoiser from outside: what ControlNet, IP-Adapter, PAG, FreeU and step caches hook.

`forward(..., patches=None)` is the plain, compilable graph. Keys are canonical block names, which are
diffusers' module paths: `conv_in`, `down_blocks.1.resnets.0`, `down_blocks.1.downsamplers.0`,
`mid_block`, `up_blocks.2`, `up_blocks.2.attentions.0.transformer_blocks.0.attn2` ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, heads, T, D) -> (B, heads, T, D)."""

AttentionPatch = Callable[[Attention, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(plain attention, query, key, value, hidden (B, T, C), context (B, S, C)) -> (B, heads, T, D).

Takes the place of one attention layer's kernel: perturbed-attention guidance returns the value, reference
attention adds keys, IP-Adapter adds the plain attention over the image's own keys and values.
"""

ContextPatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(what the keys are made of, what the values are made of), each (B, S, C) -> likewise (hypernetworks)."""

QueryPatch = Callable[[Tensor], Tensor]
"""What the queries are made of, (B, T, C) -> likewise (ControlNet-LLLite)."""

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
    """Added to the skip connection that leaves a layer, and not to the main flow (ControlNet, in this order):
    `conv_in`, then by level `down_blocks.N.resnets.M` and `down_blocks.N.downsamplers.0`."""
    skip_scale: Mapping[str, SkipPatch] = field(default_factory=dict)
    """By up block."""
    attention: Mapping[str, AttentionPatch] = field(default_factory=dict)
    """By attention layer (`...attn1`, `...attn2`)."""
    contexts: Mapping[str, ContextPatch] = field(default_factory=dict)
    """By attention layer."""
    queries: Mapping[str, QueryPatch] = field(default_factory=dict)
    """By attention layer."""
    blocks: Mapping[str, BlockPatch] = field(default_factory=dict)
    """By block (`down_blocks.N`, `mid_block`, `up_blocks.N`; within them `...resnets.M`, which is a residual block with
    its transformer, `...transformer_blocks.N` and its `...attn2`)."""


def stacked(parts: Iterable[Patches | None]) -> Patches | None:
    """Several changes to one call as one; None where there is none.

    What is added adds up. Of two that take the place of the same thing the later is given the earlier as what it stands
    around; skips, contexts and queries go through the earlier first.
    """
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Patches(
        residuals=_merged([part.residuals for part in found], lambda a, b: a + b),
        skips=_merged([part.skips for part in found], lambda a, b: a + b),
        skip_scale=_merged([part.skip_scale for part in found], lambda a, b: partial(_one_by_one, a, b)),
        attention=_merged([part.attention for part in found], around),
        contexts=_merged([part.contexts for part in found], lambda a, b: partial(_one_by_one, a, b)),
        queries=_merged([part.queries for part in found], lambda a, b: partial(_one_after, a, b)),
        blocks=_merged([part.blocks for part in found], lambda a, b: partial(_both_blocks, a, b)),
    )


def around(inner: AttentionPatch, outer: AttentionPatch) -> AttentionPatch:
    """One attention patch about another: `outer` is given `inner` as its plain attention."""
    return partial(_both_attentions, inner, outer)


def with_attention(arguments: tuple[Any, ...], name: str, patch: AttentionPatch) -> tuple[Any, ...]:
    """A transformer block's arguments with `patch` around whatever changes its attention layer `name` already.

    What a block patch puts there stands around what those within the same block patch, or before it, put there.
    """
    *others, patches = arguments
    inner = patches.attention.get(name)
    changed = {**patches.attention, name: patch if inner is None else around(inner, patch)}
    return (*others, replace(patches, attention=changed))


def _merged(tables: Iterable[Mapping[str, Any]], join: Callable[[Any, Any], Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            merged[name] = join(merged[name], value) if name in merged else value
    return merged


def _one_by_one(
    first: SkipPatch | ContextPatch, second: SkipPatch | ContextPatch, one: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    return second(*first(one, other))


def _one_after(first: QueryPatch, second: QueryPatch, x: Tensor) -> Tensor:
    return second(first(x))


def _both_blocks(inner: BlockPatch, outer: BlockPatch, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return outer(lambda *given: inner(run, given), arguments)


def _both_attentions(
    inner: AttentionPatch,
    outer: AttentionPatch,
    plain: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    context: Tensor,
) -> Tensor:
    def within(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return inner(plain, query, key, value, hidden, context)

    return outer(within, query, key, value, hidden, context)
