"""Many pictures of many prompts at once, for scores: the fastest way to paint, at the price of the last bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from danqing.families import Model
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import Run, prepare
from danqing.pipeline.together import joined
from danqing.request_parts import Reference
from danqing.requests import ResolvedRequest, TextToImage, read
from danqing.runtime.memory import Plan
from danqing.sampling.samplers import PICTURE_BY_PICTURE

BATCH = 16


@dataclass(frozen=True)
class Job:
    """One picture to paint."""

    prompt: str
    seed: int
    cfg_scale: float | None = None
    """None is the model's default."""


def paint_many(
    jobs: Sequence[Job],
    model: Model,
    *,
    steps: int | None = None,
    fields: Mapping[str, object] | None = None,
    done: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """(N, 3, H, W) uint8: what `paint` paints for each job, at the model's default size and sampler; `fields` are more
    of a request's.

    Pictures of different prompts share the denoiser's calls, which `paint` on a CPU never does so that bits do not
    depend on the batch: here they differ by the arithmetic's precision. `done` is told how many more are painted.
    Raises what `paint` raises.
    """
    ready: list[tuple[ResolvedRequest, Run]] = []
    prepared: dict[tuple[str, float | None], Run] = {}
    pictures: dict[int, Tensor] = {}
    groups: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        asked = {"prompt": job.prompt, "seed": job.seed, "cfg_scale": job.cfg_scale, "steps": steps}
        request = read(TextToImage, {**asked, **(fields or {})})
        resolved = resolve(request, model.family, Reference(name=model.name or "model"))
        key = (job.prompt, job.cfg_scale)
        if key not in prepared:
            prepared[key] = prepare(resolved, model, say)
        ready.append((resolved, prepared[key]))
        groups.setdefault(_kind(prepared[key], number), []).append(number)
    for group in groups.values():
        for start in range(0, len(group), BATCH):
            rows = group[start : start + BATCH]
            pictures.update(zip(rows, _together([ready[row] for row in rows])))
            done(len(rows))
    return torch.stack([pictures[number] for number in range(len(jobs))])


def _kind(run: Run, number: int) -> object:
    """What pictures of one batch have in common; a prompt of several parts, or a sampler like that, goes alone."""
    request = run.resolved.request
    alone = len(run.positive) != 1 or len(run.negative) > 1 or request.sampler_name in PICTURE_BY_PICTURE
    return number if alone else (request.cfg_scale, tuple(run.positive[0].context.shape))


def _together(batch: Sequence[tuple[ResolvedRequest, Run]]) -> list[Tensor]:
    """(3, H, W) uint8 of each: one run of the sampler over all of them."""
    run = batch[0][1]
    if len(batch) > 1:
        one = joined([each.positive[0] for _, each in batch])
        run = replace(run, positive=(one,), plans=(Plan(len(batch)), *run.plans))
    latents = torch.empty(0)
    for step in run.steps([resolved for resolved, _ in batch]):
        latents = step.latents
    images = [run.picture(latents[index : index + 1]) for index in range(len(batch))]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
