"""T-GATE: from a step on the text is read no more, its cross-attentions give what they gave at the step before.

Paper: Zhang et al. 2024, arXiv 2404.02747, section 4. Once the picture's layout stands, cross-attention changes little
from step to step. From the gate on there is no guidance either: what stands is the mean of both sides'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Patches
from danqing.models.unet import UNetConfig, cross_attentions
from danqing.models.weights import ASKED
from danqing.sampling.predict import PatchSource


def gate_step(share: float, steps: int) -> int:
    """The first of `steps` that is beyond a share of them, as `guidance.interval` counts."""
    return next((step for step in range(steps) if step / steps >= share), steps)


def tgate_source(config: UNetConfig, gate: int, negative: Collection[int]) -> PatchSource:
    """What `predictor(patches=...)` is given so that cross-attentions are done up to the step `gate`; it is for one run.

    `negative` are the branches (`Conditioning.rows`) whose answers are averaged with those of each other branch. A branch
    that was not asked at the step before the gate reads its text as ever.
    """
    kept = _Kept(frozenset(negative))

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        step = math.floor(at.step)
        if step < gate - 1:
            return None
        act = _keep if step == gate - 1 else _tell
        return Patches(blocks={name: partial(act, kept, name, conditioning.rows) for name in cross_attentions(config)})

    return source


Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Kept:
    negative: frozenset[int]
    answers: dict[tuple[int, str, int], dict[int, Tensor]] = field(default_factory=dict)
    """(network of several, layer, picture) -> each branch's answer (1, T, C)."""

    def of(self, name: str, picture: int) -> dict[int, Tensor]:
        return self.answers.setdefault((ASKED.get(), name, picture), {})


def _keep(kept: _Kept, name: str, rows: Rows, run: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
    out = run(*arguments)
    for i, (branch, picture) in enumerate(rows):
        kept.of(name, picture)[branch] = out[i : i + 1]
    return out


def _tell(kept: _Kept, name: str, rows: Rows, run: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
    answers = []
    for branch, picture in rows:
        known = kept.of(name, picture)
        if branch not in known:
            return run(*arguments)
        others = [answer for other, answer in known.items() if other in kept.negative]
        own = known[branch]
        answers.append((own + torch.stack(others).mean(0)) / 2 if others else own)
    return torch.cat(answers)
