"""Requests of different prompts and seeds in one run of the sampler, where that changes nobody's picture.

On a CPU each picture is a call of the network of its own, as it is in any batch, so that the bits are those that `paint`
has for it alone. On a GPU pictures share calls, as those of a batch do there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from danqing.families import Model
from danqing.models.conditioning import Conditioning
from danqing.pipeline.adapters import dress
from danqing.pipeline.models import hashes_later
from danqing.pipeline.paint import Progress, resolved_request
from danqing.pipeline.picture import Picture, platform_of
from danqing.pipeline.run import Run, Studio, Wrap, fitting_plans, prepare
from danqing.prompts.encode import Cache
from danqing.requests import ResolvedRequest, TextToImage
from danqing.sampling.samplers import PICTURE_BY_PICTURE


class Apart(Exception):
    """These requests cannot share a run; each is to be painted by itself."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared(Progress):
    """A finished step of a shared run."""

    unfinished: Callable[[int], Picture]
    """The picture of the request of that number as it is by now; its record says so."""


@dataclass(frozen=True, eq=False)
class _Ready:
    """A request on its way into a shared run."""

    run: Run
    resolved: ResolvedRequest
    files: dict[str, str | None]
    notes: list[str]


def stream_together(
    requests: Sequence[TextToImage],
    model: Model,
    *,
    cache: Cache | None = None,
    say: Callable[[int, str], None],
    wrap: Wrap | None = None,
) -> Generator[Shared, None, None]:
    """Paint one picture of each request, step by step; with the last step come all of them, in order.

    The requests differ in prompt, negative prompt and seed alone, and are plain: no hires fix, adapters, regions. `say`
    is told notes, each with its request's number; `wrap` is given the denoiser of them all. Raises Apart where they cannot
    share a run after all, and DanqingError as `paint.stream` does.
    """
    ready = [
        _ready(request, number, model, {} if cache is None else cache, say) for number, request in enumerate(requests)
    ]
    first = ready[0]
    if not all(_alike(first, each) for each in ready):
        raise Apart
    counted = first.resolved.request.model_copy(update={"batch_size": len(ready)})
    run = replace(
        first.run,
        positive=tuple(map(joined, zip(*(each.run.positive for each in ready)))),
        negative=tuple(map(joined, zip(*(each.run.negative for each in ready)))),
        plans=fitting_plans(counted, model, 2, first.run.note),
        wrap=wrap,
    )
    return _steps(run, ready, model)


def _ready(request: TextToImage, number: int, model: Model, cache: Cache, say: Callable[[int, str], None]) -> _Ready:
    notes: list[str] = []

    def note(line: str) -> None:
        if line not in notes:
            notes.append(line)
            say(number, line)

    studio = Studio(model, note, None, cache)
    resolved, files = resolved_request(request, studio)
    for line in resolved.notes:
        note(line)
    if dress(resolved.request, studio).studio.model is not model:  # an embedding's bare name, for one
        raise Apart
    return _Ready(prepare(resolved, model, note, None, cache), resolved, files, notes)


def _alike(one: _Ready, other: _Ready) -> bool:
    """Whether both walk the same levels, and each side is one branch of one shape, from the first step to the last."""
    sides = ((each.positive, each.negative) for each in (one.run, other.run))
    shapes = [[[_shape(branch) for branch in side] for side in pair] for pair in sides]
    return (
        other.resolved.request.sampler_name not in PICTURE_BY_PICTURE
        and other.run.refiner is None
        and torch.equal(one.run.sigmas, other.run.sigmas)
        and shapes[0] == shapes[1]
        and len(one.run.positive) == 1
        and len(one.run.negative) <= 1
        and all(branch.steps == (float("-inf"), float("inf")) for branch in (*other.run.positive, *other.run.negative))
    )


def _shape(branch: Conditioning) -> tuple[object, ...]:
    optional = (branch.mask, branch.pooled, branch.image_tokens, branch.channels, branch.area)
    extra = {name: tuple(value.flatten().tolist()) for name, value in branch.extra.items()}
    shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in (branch.context, *optional))
    return shapes, extra, branch.strength, len(branch.controls)


def joined(branches: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one picture each, alike in all but their text, as one of all the pictures."""

    def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
        return None if tensors[0] is None else torch.cat([tensor for tensor in tensors if tensor is not None])

    return replace(
        branches[0],
        context=torch.cat([branch.context for branch in branches]),
        mask=cat([branch.mask for branch in branches]),
        pooled=cat([branch.pooled for branch in branches]),
    )


@torch.no_grad()
def _steps(run: Run, ready: Sequence[_Ready], model: Model) -> Generator[Shared, None, None]:
    latents = clean = torch.empty(0)
    done = 0

    @torch.no_grad()
    def unfinished(index: int) -> Picture:
        return picture(index, clean, f"interrupted after step {done} of {run.count}")

    def picture(index: int, latents: Tensor, *more: str) -> Picture:
        each = ready[index]
        image = each.run.picture(latents[index : index + 1])
        single = each.resolved.picture(0).model_copy(update={"notes": (*each.notes, *more)})
        return Picture(image, single, hashes_later(each.files), platform_of(model))

    for done, step in enumerate(run.steps([each.resolved.picture(0) for each in ready]), 1):
        latents, clean = step.latents, step.clean
        if done < run.count:
            yield Shared(0, 1, done, run.count, latents, clean, unfinished=unfinished)
    pictures = tuple(picture(index, latents) for index in range(len(ready)))
    yield Shared(0, 1, run.count, run.count, latents, clean, pictures, unfinished=unfinished)
