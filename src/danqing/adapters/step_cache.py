"""Step caching: at most steps the deep part of the U-Net is not asked, what it said last stands (DeepCache).

Paper: Ma et al. 2024, arXiv 2312.00858, section 3. Neighbouring steps ask the coarse levels nearly the same, so only the
finest layers are done at each. With a threshold what is kept stands only while the input of the deep part has changed
little, the rule of first-block caching (ParaAttention's FBCache; TeaCache, Liu et al. 2025, arXiv 2411.19108).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import BlockPatch, Patches
from danqing.models.unet import UNetConfig, skip_channels
from danqing.models.weights import ASKED
from danqing.request_parts import StepCache
from danqing.sampling.predict import PatchSource

StandIn = Callable[["_Call", tuple[Any, ...]], Any]
"""What a block that is left out gives in place of its output."""


def windows(cache: StepCache, steps: int, whole: Collection[int] = ()) -> dict[int, int]:
    """Each of a run's `steps` at which the cache acts -> the step with which its window begins.

    There all of the U-Net is asked; nothing is kept beyond a window. Steps in `whole` begin one besides.
    """
    begins: dict[int, int] = {}
    begin = None
    for step in range(steps):
        share = step / steps
        if share >= cache.start and (share < cache.end or cache.end == 1):
            if begin is None or step - begin >= cache.every or step in whole:
                begin = step
            begins[step] = begin
    return begins


def step_cache_source(cache: StepCache, config: UNetConfig, begins: dict[int, int]) -> PatchSource:
    """What `predictor(patches=...)` is given for step caching in `windows`; it is for one run.

    What is kept is each picture's and branch's own, and of inner evaluations (halves of steps) their own.
    Raises DanqingError for a depth that leaves nothing out.
    """
    parts = left_out(config, cache.depth)
    kept: dict[_Key, _Kept] = {}
    first, last = next(iter(parts)), next(reversed(parts))

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        begin = begins.get(math.floor(at.step))
        if begin is None:
            return None
        call = _Call(kept, conditioning.rows, at.step, begin, cache.threshold)
        blocks: dict[str, BlockPatch] = {name: partial(_deep, call, stand_in) for name, stand_in in parts.items()}
        blocks[last] = partial(_last, call)
        blocks[first] = partial(_first, call, blocks[first])
        return Patches(blocks=blocks)

    return source


def left_out(config: UNetConfig, depth: int) -> dict[str, StandIn]:
    """The blocks that are deeper than the `depth` finest layers of the way up, in the order in which they run, and what
    stands in for each. The last of them is the one whose output is kept.

    A layer of the way up needs the skip connections of its own and the finer layers only: as many as it is deep.
    """
    skips = list(skip_channels(config))
    if depth >= len(skips):
        raise DanqingError(f"step_cache: depth {depth} leaves nothing out; the U-Net has {len(skips)} layers up")
    shallow = set(skips[:depth])
    parts: dict[str, StandIn] = {}
    for i, depths in enumerate(config.down_depth):
        pairs = [f"down_blocks.{i}.resnets.{j}" for j in range(len(depths))]
        if shallow.isdisjoint(pairs):
            parts[f"down_blocks.{i}"] = partial(_no_level, len(pairs), i == len(config.channels) - 1)
        else:
            parts |= dict.fromkeys([pair for pair in pairs if pair not in shallow], _as_it_came)
    if config.mid_depth is not None:
        parts["mid_block"] = _as_it_came
    rest = len(skips) - depth
    for i, depths in enumerate(config.up_depth):
        if rest >= len(depths):
            parts[f"up_blocks.{i}"] = _no_place if rest >= len(depths) + len(config.up_depth[i + 1]) else _place
            rest -= len(depths)
        else:
            parts |= dict.fromkeys([f"up_blocks.{i}.resnets.{j}" for j in range(rest)], _place)
            break
    return parts


# --- what is kept -----------------------------------------------------------------------------------------------------

_Key = tuple[int, int, int, float]
"""(network of several, branch, picture, share of a step)."""


@dataclass(frozen=True, eq=False)
class _Kept:
    step: float
    deep: Tensor
    """(1, C, h, w): what the deep part gave."""
    given: Tensor | None
    """(1, C', h', w'): what it was given, where a threshold asks for it."""


@dataclass(eq=False)
class _Call:
    """A call of the network. A call that is done again (in float32) decides and keeps again."""

    kept: dict[_Key, _Kept]
    rows: tuple[tuple[int, int], ...]
    step: float
    begin: int
    threshold: float
    given: Tensor | None = None
    fresh: list[bool] = field(default_factory=list)
    """Of each row, whether it is to be asked for; if any is, all are, and the others go by what is kept."""

    def decide(self, given: Tensor) -> None:
        self.given = given if self.threshold else None
        self.fresh = [self._needed(self.kept.get(key), given[i : i + 1]) for i, key in enumerate(self._keys())]

    def keep(self, deep: Tensor) -> None:
        for i, key in enumerate(self._keys()):
            if self.fresh[i]:
                given = None if self.given is None else self.given[i : i + 1]
                self.kept[key] = _Kept(self.step, deep[i : i + 1], given)

    def known(self) -> list[Tensor]:
        return [self.kept[key].deep for key in self._keys()]

    def _keys(self) -> list[_Key]:
        return [(ASKED.get(), branch, picture, self.step % 1) for branch, picture in self.rows]

    def _needed(self, known: _Kept | None, given: Tensor) -> bool:
        if known is None or not self.begin <= known.step < self.step:
            return True
        if known.given is None:
            return False
        before = known.given.float()
        change = (given.float() - before).abs().mean() / before.abs().mean()
        return bool(change > self.threshold)


# --- wrappers ---------------------------------------------------------------------------------------------------------


def _first(call: _Call, wrapped: BlockPatch, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    call.decide(arguments[0])
    return wrapped(run, arguments)


def _deep(call: _Call, stand_in: StandIn, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return run(*arguments) if any(call.fresh) else stand_in(call, arguments)


def _last(call: _Call, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
    if any(call.fresh):
        deep: Tensor = run(*arguments)
        call.keep(deep)
        if all(call.fresh):
            return deep
    return torch.cat(call.known())


# --- stand-ins: nobody looks at their values, but they are joined with what is real -----------------------------------


def _no_level(pairs: int, coarsest: bool, call: _Call, arguments: tuple[Any, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    hidden = arguments[0][:, :1]
    return hidden if coarsest else _nothing(hidden), (hidden,) * (pairs + (not coarsest))


def _as_it_came(call: _Call, arguments: tuple[Any, ...]) -> Tensor:
    return arguments[0]  # type: ignore[no-any-return]


def _place(call: _Call, arguments: tuple[Any, ...]) -> Tensor:
    """As large as what is kept: the skip connections of its level are joined to it."""
    return torch.cat([deep[:, :1] for deep in call.known()])


def _no_place(call: _Call, arguments: tuple[Any, ...]) -> Tensor:
    return _nothing(arguments[0])


def _nothing(like: Tensor) -> Tensor:
    """(1, 1, 1, 1): whatever is added to it gives its own shape."""
    return like.new_zeros(1, 1, 1, 1)
