"""What a run keeps from step to step, as its request asks: step caching, and T-GATE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danqing.adapters.step_cache import step_cache_source, windows
from danqing.adapters.tgate import gate_step, tgate_source
from danqing.errors import DanqingError
from danqing.families import At, Family, Model
from danqing.models.conditioning import Conditioning
from danqing.models.weights import ByStep
from danqing.request_parts import StepCache
from danqing.requests import Painting
from danqing.sampling.predict import PatchSource

QUICK: Mapping[str, Any] = {"step_cache": StepCache(every=3, depth=2), "tgate": 0.8}
"""What `quick` asks for. The bundled model's pictures stay, in the median, within 30 dB of the exact ones, and the judge's
opinion of them within its interval (docs/speed.md). A gate at 0.8 is the end of a window of 3 in 20 steps."""


@dataclass(frozen=True)
class Caching:
    """When what is kept is made anew: by the step alone."""

    begins: dict[int, int]
    """Of the steps at which the step cache acts, where their windows begin."""
    gate: int | None
    """The first step at which no text is read."""

    def sources(self, request: Painting, model: Model, negative: Sequence[Conditioning]) -> list[PatchSource]:
        """For one run, whose caches they hold. They act around all others."""
        config, found = model.family.denoiser, list[PatchSource]()
        if request.step_cache is not None:
            found.append(step_cache_source(request.step_cache, config, self.begins))
        if self.gate is not None:
            found.append(tgate_source(config, self.gate, [id(branch) for branch in negative]))
        return found

    def rests(self, before: At, now: At) -> bool:
        """Whether what is kept at `now` may be from `before`."""
        past, step = math.floor(before.step), math.floor(now.step)
        begin = self.begins.get(step)
        return (begin is not None and begin == self.begins.get(past)) or (
            self.gate is not None and past == self.gate - 1 and before.step < now.step
        )


def quick_changes(request: Painting, family: Family) -> dict[str, Any]:
    """What `quick` fills in for a request that asks for it, and that it is done with."""
    unset = {field: value for field, value in QUICK.items() if getattr(request, field) == _default(field)}
    if family.variant == "pix2pix":
        unset.pop("tgate", None)
    return {"quick": False, **unset}


def _default(field: str) -> object:
    return Painting.model_fields[field].default


def caching(request: Painting, model: Model, steps: int) -> Caching | None:
    """What a resolved request keeps over a run of `steps`; None where that is nothing.

    The whole U-Net is also asked where another LoRA takes over, and at the step before T-GATE's.
    Raises DanqingError where a model has guidance of its own, which T-GATE would end.
    """
    if request.step_cache is None and request.tgate == 1:
        return None
    if request.tgate < 1 and model.family.variant == "pix2pix":
        raise DanqingError(
            "tgate: does not go with instruct-pix2pix models, which have guidance of their own; leave it out"
        )
    gate = gate_step(request.tgate, steps) if request.tgate < 1 else None
    order = model.denoiser.order if isinstance(model.denoiser, ByStep) else ()
    whole = {step for step in range(1, len(order)) if order[step] != order[step - 1]}
    if gate is not None:
        whole.add(gate - 1)
    return Caching({} if request.step_cache is None else windows(request.step_cache, steps, whole), gate)
