"""A request with gaps -> the same request with every field of the arithmetic set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from danqing.adapters.fast import Known, advice
from danqing.adapters.fast import defaults as fast_defaults
from danqing.errors import DanqingError
from danqing.families import Family
from danqing.pipeline.caching import quick_changes
from danqing.pipeline.expand import draw_seed, expand
from danqing.pipeline.patching import patches_without_effect
from danqing.request_parts import Reference
from danqing.requests import ImageToImage, Inpaint, Masked, Outpaint, Painting, ResolvedRequest, TextToImage
from danqing.sampling.samplers import NEEDS_NEGATIVE, REQUEST_OPTIONS, options_of
from danqing.sampling.schedules import scheduler_for
from danqing.vocabulary import (
    DIALECT_EMPHASIS,
    DIALECT_NOISE,
    DIALECT_SCHEDULER,
    Dialect,
    find_sampler,
    find_scheduler,
    split_combined,
)

HIRES_STRENGTH = 0.7
REFINER_SWITCH = 0.8
PICTURE_SCALE = 1.5
"""What AUTOMATIC1111's page starts with: hires denoising, refiner switch, instruct-pix2pix's guidance by the
picture."""


def _size(name: str, asked: int, cell: int, notes: list[str]) -> int:
    rounded = max(round(asked / cell), 64 // cell) * cell
    if rounded != asked:
        notes.append(f"{name} {asked} is no multiple of {cell}; painting {rounded}")
    return rounded


def _sampling(
    sampler: str, scheduler: str | None, dialect: Dialect, default: str | None, notes: list[str]
) -> tuple[str, str]:
    """(sampler, scheduler) by their labels; `default` is the scheduler where neither was asked for."""
    name, combined = split_combined(sampler)
    row = find_sampler(name)
    label = find_scheduler(scheduler or combined or default or "Automatic").name
    if label == "Automatic":
        label = DIALECT_SCHEDULER[dialect] or row.scheduler
    used = scheduler_for(label, row, dialect)
    if dialect == "a1111" and used != label:
        if scheduler or combined:
            notes.append(f"scheduler '{label}' has no effect: AUTOMATIC1111's {row.name} has its own")
        label = used
    return row.name, label


def _asked_size(request: Painting, family: Family, picture: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) in pixels, before rounding: the request's, the picture's, or the family's."""
    defaults = family.defaults
    if isinstance(request, Outpaint) and picture is not None:
        # rounded up, and cut off again in the end
        cell = family.autoencoder.downscale
        sides = picture[0] + request.left + request.right, picture[1] + request.up + request.down
        return math.ceil(sides[0] / cell) * cell, math.ceil(sides[1] / cell) * cell
    part = isinstance(request, Inpaint) and request.inpaint_full_res
    tile = isinstance(request, ImageToImage) and request.sd_upscale is not None
    if picture is None or part or tile or (request.width and request.height):
        return request.width or defaults.width, request.height or defaults.height
    width, height = picture
    if request.width:  # one side keeps the picture's proportions
        return request.width, max(round(height * request.width / width), 1)
    if request.height:
        return max(round(width * request.height / height), 1), request.height
    return picture


def resolve(
    request: Painting,
    family: Family,
    checkpoint: Reference,
    vae: Reference | None = None,
    picture_size: tuple[int, int] | None = None,
    fast: Known | None = None,
) -> ResolvedRequest:
    """Fill size, steps, CFG and sampler from the family's row, draw seeds, round the size to latent cells.

    `picture_size` (width, height) is that of the picture to begin with. `fast` is a model distilled to few steps, whose
    settings then go before the family's; those that will ruin its pictures are noted. Styles and wildcards are written
    out (`expand`). Raises DanqingError where they make several requests of this one.
    """
    request, *others = expand(request)
    if others:
        raise DanqingError(f"dynamic: {len(others) + 1} requests come of this one; expand it first")
    notes: list[str] = []
    if fast is not None:
        family = replace(family, defaults=fast_defaults(fast, family.defaults, request.dialect))
    defaults = family.defaults
    cell = family.autoencoder.downscale
    own = fast is not None or (request.sampler_name is None and request.dialect in ("danqing", "a1111"))
    sampler_name, scheduler = _sampling(
        request.sampler_name or defaults.sampler,
        request.scheduler,
        request.dialect,
        defaults.scheduler if own else None,
        notes,
    )
    width, height = _asked_size(request, family, picture_size)
    changes: dict[str, Any] = {
        "width": _size("width", width, cell, notes),
        "height": _size("height", height, cell, notes),
        "steps": request.steps or defaults.steps,
        "cfg_scale": defaults.cfg_scale if request.cfg_scale is None else request.cfg_scale,
        "sampler_name": sampler_name,
        "scheduler": scheduler,
        "seed": draw_seed() if request.seed in (None, -1) else request.seed,
        "noise_source": request.noise_source or DIALECT_NOISE[request.dialect],
        "emphasis": request.emphasis or DIALECT_EMPHASIS[request.dialect],
        "clip_skip": request.clip_skip or 1,
    }
    if fast is not None:
        changes |= _fast_changes(request, changes, fast, family, notes)
    if request.quick and fast is None:
        changes |= quick_changes(request, family)
    if family.size_ids != "none":
        for side in ("width", "height"):
            changes[f"original_{side}"] = getattr(request, f"original_{side}") or changes[side]
            changes[f"target_{side}"] = getattr(request, f"target_{side}") or changes[side]
    if request.subseed_strength == 0:
        changes["subseed"] = None
    elif request.subseed in (None, -1):
        changes["subseed"] = draw_seed()
    if request.refiner_checkpoint is not None and request.refiner_switch_at is None:
        changes["refiner_switch_at"] = REFINER_SWITCH
    if isinstance(request, TextToImage) and request.enable_hr:
        if request.denoising_strength is None:
            changes["denoising_strength"] = HIRES_STRENGTH
        if request.hr_sampler_name is not None:
            default = defaults.scheduler if fast is not None else None
            changes["hr_sampler_name"], changes["hr_scheduler"] = _sampling(
                request.hr_sampler_name, request.hr_scheduler, request.dialect, default, notes
            )
        if fast is not None:
            notes += _second_advice(request, changes, fast, family)
    if isinstance(request, ImageToImage) and request.image_cfg_scale is None and family.variant == "pix2pix":
        changes["image_cfg_scale"] = PICTURE_SCALE
    resolved = request.model_copy(update=changes)
    notes += [f"{field} has no effect: {why}" for field, why in without_effect(request, resolved, family)]
    return ResolvedRequest(
        request=resolved,
        family=family.name,
        checkpoint=checkpoint,
        vae=vae,
        notes=tuple(notes),
    )


def _fast_changes(
    request: Painting, changes: dict[str, Any], fast: Known, family: Family, notes: list[str]
) -> dict[str, Any]:
    """What a fast model needs besides the defaults, and notes of what was filled in for it and of what ruins it."""
    row, sampler = fast.row, changes["sampler_name"]
    more: dict[str, Any] = {"fast": row.name}
    if sampler == row.sampler:
        if request.eta is None and row.eta is not None:
            more["eta"] = row.eta
        if request.sigma_max is None and row.first is not None:
            more["sigma_max"] = family.process.sigma_at(row.first)
    filled = {
        "sampler_name": f"{sampler}, {changes['scheduler']}",
        "steps": f"{changes['steps']} step{'s' if changes['steps'] > 1 else ''}",
        "cfg_scale": f"CFG scale {changes['cfg_scale']:g}",
    }
    shown = [words for field, words in filled.items() if getattr(request, field) is None]
    if shown and fast.by != "you":
        notes.append(f"{row.title}, by {fast.by}: painted with {', '.join(shown)}; --fast none leaves that out")
    notes += advice(fast, sampler, changes["steps"], changes["cfg_scale"], family.process.prediction)
    return more


def _second_advice(request: TextToImage, changes: dict[str, Any], fast: Known, family: Family) -> list[str]:
    """What ruins a fast model's pictures in a hires fix's pass, of the settings that it has of its own."""
    own = {
        "sampler_name": "hr_sampler_name" if request.hr_sampler_name is not None else None,
        "steps": "hr_second_pass_steps" if request.hr_second_pass_steps else None,
        "cfg_scale": "hr_cfg" if request.hr_cfg is not None else None,
    }
    lines = advice(
        fast,
        changes.get("hr_sampler_name") or changes["sampler_name"],
        request.hr_second_pass_steps or changes["steps"],
        changes["cfg_scale"] if request.hr_cfg is None else request.hr_cfg,
        family.process.prediction,
    )
    split = [line.partition(": ") for line in lines]
    return [f"{own[field]}: {told}" for field, _, told in split if own.get(field)]


_SIZE_FIELDS = ("original_width", "original_height", "crop_left", "crop_top")
_RHO = ("Karras", "Polyexponential")


_HIRES = tuple(name for name in TextToImage.model_fields if name.startswith("hr_"))


def without_effect(asked: Painting, resolved: Painting, family: Family) -> Iterator[tuple[str, str]]:
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
    if family.size_ids != "refiner" and not resolved.refiner_checkpoint:
        for field in ("aesthetic_score", "negative_aesthetic_score"):
            if _asked(asked, field):
                yield field, f"{family.title} is told no score; SDXL's refiner is"
    if family.denoiser.guidance_width:
        for field in ("negative_prompt", "guidance_rescale", "dynamic_thresholding", "guidance_start", "guidance_end"):
            if _asked(asked, field):
                yield field, "the U-Net is told the CFG scale, and guides itself without a negative prompt"
    elif resolved.cfg_scale == 1 and sampler not in NEEDS_NEGATIVE:
        for field in ("negative_prompt", "guidance_rescale", "dynamic_thresholding", "s_min_uncond"):
            if _asked(asked, field):
                yield field, "at a CFG scale of 1 the negative prompt is left out"
    if asked.tiled_diffusion is not None and not getattr(asked, "enable_hr", False):
        tiles, cell = asked.tiled_diffusion, family.autoencoder.downscale
        if tiles.tile_width * cell >= (resolved.width or 0) and tiles.tile_height * cell >= (resolved.height or 0):
            yield "tiled_diffusion", "the picture fits into one tile"
    if asked.quick and resolved.quick:
        yield "quick", "a model of few steps has none to spare"
    if asked.subseed not in (None, -1) and not resolved.subseed_strength:
        yield "subseed", "subseed_strength is 0"
    yield from patches_without_effect(asked, resolved, family)
    yield from _without_picture_effect(asked, family)


def _without_picture_effect(asked: Painting, family: Family) -> Iterator[tuple[str, str]]:
    """The same for what belongs to the kinds of requests, and to what they switch on."""
    if _asked(asked, "refiner_switch_at") and not asked.refiner_checkpoint:
        yield "refiner_switch_at", "there is no refiner_checkpoint"
    if _asked(asked, "subprompt_strength") and asked.subprompt is None:
        yield "subprompt_strength", "there is no subprompt"
    if asked.subprompt is not None and not asked.subprompt_strength:
        yield "subprompt", "subprompt_strength is 0"
    if isinstance(asked, TextToImage) and not asked.enable_hr:
        for field in (*_HIRES, "denoising_strength"):
            if _asked(asked, field):
                yield field, "the hires fix is off; enable_hr turns it on"
    if isinstance(asked, ImageToImage):
        if _asked(asked, "image_cfg_scale") and family.variant != "pix2pix":
            yield "image_cfg_scale", f"{family.title} is no instruct-pix2pix model"
        if asked.sd_upscale is not None and _asked(asked, "resize_mode"):
            yield "resize_mode", "sd_upscale paints tiles at their size"
        if asked.loops == 1 and asked.final_denoising_strength is not None:
            yield "final_denoising_strength", "there is one loop only"
    if isinstance(asked, Inpaint):
        if _asked(asked, "inpaint_full_res_padding") and not asked.inpaint_full_res:
            yield "inpaint_full_res_padding", "the whole picture is painted; inpaint_full_res cuts the masked part out"
        if _asked(asked, "mask_threshold") and asked.mask_text is None:
            yield "mask_threshold", "there is no mask_text"
    if isinstance(asked, Masked) and _asked(asked, "inpainting_mask_weight") and family.variant != "inpaint":
        yield "inpainting_mask_weight", f"{family.title} is no inpainting model"


def _asked(request: Painting, field: str) -> bool:
    return bool(getattr(request, field) != type(request).model_fields[field].default)
