"""Several adapters at once, otherwise than by adding them up: at some steps and not at others, averaged, by places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from danqing.adapters.apply import Use, apply
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.weights import Blend, ByStep

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


def averaged(model: Model, uses: Sequence[Use], say: Callable[[str], None] | None = None) -> Model:
    """`model` whose U-Net's answer is the mean of its answers with each adapter alone: the `composite` of Zhong et al.
    2024 (they average guided scores, which are linear in the answers). A step costs as much as one for each adapter.

    The text encoders are changed by all of them. `say` and errors as for `apply`.
    """
    return _blended(model, uses, torch.full((len(uses), 1, 1), 1 / len(uses)), say)


def by_places(
    model: Model,
    uses: Sequence[tuple[Use, Tensor]],
    say: Callable[[str], None] | None = None,
    common: Sequence[Use] = (),
) -> Model:
    """`model` whose U-Net is changed by each adapter where its mask (H, W) in [0, 1], of any one size, says so, and by
    the `common` ones everywhere.

    Where masks overlap they share by their values; what they leave has the common ones alone. A step costs as much as
    one for each adapter and one more; it knows nothing of tiled diffusion's windows. `say` as for `apply`.
    Raises DanqingError for masks of different sizes or values beyond [0, 1], and as `apply` does.
    """
    masks = [mask.float() for _, mask in uses]
    if len({mask.shape for mask in masks}) != 1 or masks[0].dim() != 2:
        raise DanqingError("the masks of adapters should be of one size, height by width")
    stacked = torch.stack(masks)
    if bool((stacked < 0).any()) or bool((stacked > 1).any()):
        raise DanqingError("the masks of adapters should be between 0 and 1")
    total = stacked.sum(0).clamp(min=1)
    rest = (1 - stacked.sum(0)).clamp(min=0)
    return _blended(model, [use for use, _ in uses], torch.cat([stacked / total, rest[None]]), say, common)


def _blended(
    model: Model,
    uses: Sequence[Use],
    shares: Tensor,
    say: Callable[[str], None] | None,
    common: Sequence[Use] = (),
) -> Model:
    text = apply(model, [*common, *uses], say)  # tells of every one as it is in full
    sets = [[*common, use] for use in uses] + [[*common]] * (len(shares) - len(uses))
    networks = [apply(model, [use._replace(te=0.0) for use in chosen]).denoiser for chosen in sets]
    return replace(text, denoiser=Blend(networks, shares.to(model.device)).eval())
