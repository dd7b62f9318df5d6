"""A request with gaps -> the same request with every field of the arithmetic set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from danqing.errors import DanqingError
from danqing.families import Family
from danqing.pipeline.expand import draw_seed, expand
from danqing.requests import Reference, ResolvedRequest, TextToImage
from danqing.sampling.samplers import NEEDS_NEGATIVE, REQUEST_OPTIONS, options_of
from danqing.sampling.schedules import scheduler_for
from danqing.vocabulary import (
    DIALECT_EMPHASIS,
    DIALECT_NOISE,
    DIALECT_SCHEDULER,
    find_sampler,
    find_scheduler,
    split_combined,
)


def _size(name: str, asked: int, cell: int, notes: list[str]) -> int:
    rounded = max(round(asked / cell), 64 // cell) * cell
    if rounded != asked:
        notes.append(f"{name} {asked} is no multiple of {cell}; painting {rounded}")
    return rounded


def resolve(
    request: TextToImage, family: Family, checkpoint: Reference, vae: Reference | None = None
) -> ResolvedRequest:
    """Fill size, steps, CFG and sampler from the family's row, draw seeds, round the size to latent cells.

    Styles and wildcards are written out (`expand`). Raises DanqingError where they make several requests of this one.
    """
    request, *others = expand(request)
    if others:
        raise DanqingError(f"dynamic: {len(others) + 1} requests come of this one; expand it first")
    notes: list[str] = []
    defaults = family.defaults
    cell = family.autoencoder.downscale
    sampler_name, combined = split_combined(request.sampler_name or defaults.sampler)
    sampler = find_sampler(sampler_name)
    scheduler = find_scheduler(request.scheduler or combined or "Automatic").name
    if request.sampler_name is None and request.scheduler is None and request.dialect in ("danqing", "a1111"):
        scheduler = defaults.scheduler
    if scheduler == "Automatic":
        scheduler = DIALECT_SCHEDULER[request.dialect] or sampler.scheduler
    used = scheduler_for(scheduler, sampler, request.dialect)
    if request.dialect == "a1111" and used != scheduler:
        if request.scheduler or combined:
            notes.append(f"scheduler '{scheduler}' has no effect: AUTOMATIC1111's {sampler.name} has its own")
        scheduler = used
    changes: dict[str, Any] = {
        "width": _size("width", request.width or defaults.width, cell, notes),
        "height": _size("height", request.height or defaults.height, cell, notes),
        "steps": request.steps or defaults.steps,
        "cfg_scale": defaults.cfg_scale if request.cfg_scale is None else request.cfg_scale,
        "sampler_name": sampler.name,
        "scheduler": scheduler,
        "seed": draw_seed() if request.seed in (None, -1) else request.seed,
        "noise_source": request.noise_source or DIALECT_NOISE[request.dialect],
        "emphasis": request.emphasis or DIALECT_EMPHASIS[request.dialect],
        "clip_skip": request.clip_skip or 1,
    }
    if family.size_ids != "none":
        for side in ("width", "height"):
            changes[f"original_{side}"] = getattr(request, f"original_{side}") or changes[side]
            changes[f"target_{side}"] = getattr(request, f"target_{side}") or changes[side]
    if request.subseed_strength == 0:
        changes["subseed"] = None
    elif request.subseed in (None, -1):
        changes["subseed"] = draw_seed()
    resolved = request.model_copy(update=changes)
    notes += [f"{field} has no effect: {why}" for field, why in without_effect(request, resolved, family)]
    return ResolvedRequest(
        request=resolved,
        family=family.name,
        checkpoint=checkpoint,
        vae=vae,
        notes=tuple(notes),
    )


_SIZE_FIELDS = ("original_width", "original_height", "crop_left", "crop_top")
_RHO = ("Karras", "Polyexponential")


def without_effect(asked: TextToImage, resolved: TextToImage, family: Family) -> Iterator[tuple[str, str]]:
    """(field, why) of each field that was asked for and changes nothing."""
    sampler, scheduler = resolved.sampler_name or "", resolved.scheduler or ""
    for field in sorted(REQUEST_OPTIONS - options_of(sampler)):
        if _asked(asked, field):
            yield field, f"the sampler {sampler} does not use it"
    if _asked(asked, "rho") and scheduler not in _RHO:
        yield "rho", f"the schedule {scheduler} does not use it"
    if _asked(asked, "clip_skip") and not any(encoder.clip_skip for encoder in family.text_encoders):
        yield "clip_skip", f"the text layer of {family.title} is fixed"
    if family.size_ids == "none":
        for field in (*_SIZE_FIELDS, "target_width", "target_height"):
            if _asked(asked, field):
                yield field, f"{family.title} is told no sizes"
    if family.size_ids != "refiner":
        for field in ("aesthetic_score", "negative_aesthetic_score"):
            if _asked(asked, field):
                yield field, f"{family.title} is told no score; SDXL's refiner is"
    if resolved.cfg_scale == 1 and sampler not in NEEDS_NEGATIVE:
        for field in ("negative_prompt", "guidance_rescale", "dynamic_thresholding", "s_min_uncond"):
            if _asked(asked, field):
                yield field, "at a CFG scale of 1 the negative prompt is left out"
    if asked.subseed not in (None, -1) and not resolved.subseed_strength:
        yield "subseed", "subseed_strength is 0"


def _asked(request: TextToImage, field: str) -> bool:
    return bool(getattr(request, field) != TextToImage.model_fields[field].default)
