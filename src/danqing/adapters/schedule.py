"""Adapters that hold at some steps of a sampling run and not at others, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from danqing.adapters.apply import Use, apply
from danqing.families import Model
from danqing.models.weights import ByStep

Holds = Callable[[int], bool]
"""Whether an adapter holds at a step, counted from 0."""


def always(step: int) -> bool:
    return True


def between(first: float, last: float) -> Holds:
    """At the steps from `first` on and before `last`."""
    return lambda step: first <= step < last


def in_turn(uses: Sequence[Use], every: int = 1) -> list[tuple[Use, Holds]]:
    """One adapter at a time, each for `every` steps: the `switch` of Zhong et al. 2024 (Multi-LoRA composition)."""

    def turn(index: int) -> Holds:
        return lambda step: step // every % len(uses) == index

    return [(use, turn(index)) for index, use in enumerate(uses)]


def scheduled(
    model: Model, uses: Sequence[tuple[Use, Holds]], steps: int, say: Callable[[str], None] | None = None
) -> Model:
    """`model` whose U-Net is changed at each of `steps` steps by the adapters that hold there; later steps are like the
    last. The text encoders, which speak before the first step, are changed by all of them.

    Each set of adapters that holds at some step is a twin of its own, which takes the memory of the weights it changes.
    `say` and errors as for `apply`.
    """
    sets = [tuple(i for i, (_, holds) in enumerate(uses) if holds(step)) for step in range(max(steps, 1))]
    text = apply(model, [use for use, _ in uses], say)  # tells of every one as it is in full
    twins = {chosen: apply(model, [uses[i][0]._replace(te=0.0) for i in chosen]).denoiser for chosen in set(sets)}
    places = {chosen: index for index, chosen in enumerate(twins)}
    denoiser = ByStep(list(twins.values()), [places[chosen] for chosen in sets]).eval()
    return replace(text, denoiser=denoiser)
