"""All that steers a painting by pictures, as one list: ControlNets, picture prompts, references, and whom it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from danqing.adapters import control
from danqing.adapters.control import Unit, control_source, fitted, with_controls
from danqing.adapters.identity import Identity
from danqing.adapters.image_prompt import PicturePrompt, Shown, at_size, prompt_source
from danqing.adapters.reference import ReferencePicture, reference_source, references
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.conditioning import Conditioning, Mapped
from danqing.sampling.predict import PatchSource
from danqing.vocabulary import Dialect

Steering = Unit | PicturePrompt | ReferencePicture | Identity
Branches = tuple[Conditioning, ...]


def parts_of(units: Sequence[Steering], size: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[Steering, ...]:
    """The units for a part of the picture: `box` = (left, upper, right, lower) of a picture of `size` = (width,
    height).

    A ControlNet is shown its part, and listens to the same picture prompt as before; a mask is cut; pictures that are
    prompts stay whole.
    """
    left, upper, right, lower = box
    cut: dict[object, Steering] = {}
    for unit in units:
        if isinstance(unit, PicturePrompt) and unit.mask is not None:
            cut[unit] = replace(unit, mask=fitted(unit.mask, *size, "stretch")[..., upper:lower, left:right])
    for unit in units:
        if isinstance(unit, Unit):
            cut[unit] = replace(control.part_of(unit, size, box), listens=cut.get(unit.listens, unit.listens))
    return tuple(cut.get(unit, unit) for unit in units)


def steered(
    positive: Branches,
    negative: Branches,
    units: Sequence[Steering],
    cells: tuple[int, int],
    cell: int,
    encode: Callable[[Tensor], Tensor],
    device: torch.device | str | None = None,
) -> tuple[Branches, Branches]:
    """The branches of both sides with what acts on them, for latents of `cells` = (width, height), `cell` pixels each.

    `encode` makes latents of pixels (1, 3, H, W) in [-1, 1]. Picture prompts' tokens stand one after another in
    `image_tokens`. A ControlNet that listens to a picture prompt is told where its tokens are.
    Hints, masks and references are moved to `device`, if one is given: what is elsewhere than the model would be copied
    in every call, and a copied hint embedded anew.
    Raises DanqingError for one that listens to a prompt that is not among the units.
    """

    def here(tensor: Tensor) -> Tensor:
        return tensor if device is None else tensor.to(device)

    prompts = [unit for unit in units if isinstance(unit, PicturePrompt)]
    placed: list[Shown] = []
    first = 0
    for prompt in prompts:
        placed.append(at_size(prompt, first, *cells, cell).map(here))
        first += prompt.sides[0].shape[1]
    if placed:
        positive = _with_tokens(positive, [prompt.sides[0] for prompt in prompts], placed)
        negative = _with_tokens(negative, [prompt.sides[1] for prompt in prompts], placed)
    for unit in units:
        if isinstance(unit, ReferencePicture):
            ours, theirs = references(unit, cells[0] * cell, cells[1] * cell, encode)
            positive, negative = _with(positive, [ours.map(here)]), _with(negative, [theirs.map(here)])
    nets = []
    for unit in units:
        if isinstance(unit, Unit):
            heard = next((each for each in placed if each.prompt is unit.listens), None)
            if heard is None and unit.listens is not None:
                raise DanqingError("control: listens to a picture prompt that is not among the units; give it too")
            told = None if heard is None else (heard.first, heard.count)
            nets.append(replace(control.control(unit, *cells, cell).map(here), told=told))
    return with_controls(positive, nets, True), with_controls(negative, nets, False)


def steering_sources(
    units: Sequence[Steering], model: Model, steps: int, dialect: Dialect, say: Callable[[str], None]
) -> list[PatchSource]:
    """What `predictor(patches=together(...))` is given so that the units act, over a run of `steps`."""
    kinds = {type(unit) for unit in units}
    found: list[PatchSource] = []
    if ReferencePicture in kinds:
        found.append(reference_source(model, steps, dialect, say))
    if PicturePrompt in kinds:
        found.append(prompt_source(model, steps, dialect))
    if Unit in kinds:
        found.append(control_source(model, steps, dialect, say))
    return found


def _with(branches: Branches, acting: Sequence[Mapped]) -> Branches:
    return tuple(replace(branch, controls=(*branch.controls, *acting)) for branch in branches)


def _with_tokens(branches: Branches, tokens: Sequence[Tensor], placed: Sequence[Shown]) -> Branches:
    joined = torch.cat(list(tokens), 1)
    return _with(tuple(replace(branch, image_tokens=joined) for branch in branches), placed)
