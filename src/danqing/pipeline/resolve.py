"""A request with gaps -> the same request with every field of the arithmetic set."""

from __future__ import annotations

import secrets
from typing import Any

from danqing.families import Family
from danqing.requests import Reference, ResolvedRequest, TextToImage
from danqing.vocabulary import (
    DIALECT_EMPHASIS,
    DIALECT_NOISE,
    DIALECT_SCHEDULER,
    find_sampler,
    find_scheduler,
    split_combined,
)


def draw_seed() -> int:
    """A seed as AUTOMATIC1111 draws one: below 2^32 - 2."""
    return secrets.randbelow(4294967294)


def _size(name: str, asked: int, cell: int, notes: list[str]) -> int:
    rounded = max(round(asked / cell), 64 // cell) * cell
    if rounded != asked:
        notes.append(f"{name} {asked} is no multiple of {cell}; painting {rounded}")
    return rounded


def resolve(
    request: TextToImage, family: Family, checkpoint: Reference, vae: Reference | None = None
) -> ResolvedRequest:
    """Fill size, steps, CFG and sampler from the family's row, draw seeds, round the size to latent cells."""
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
    if request.dialect == "diffusers" and scheduler != "Automatic":
        notes.append(f"scheduler '{scheduler}' has no effect: with the diffusers dialect the sampler brings its own")
        scheduler = "Automatic"
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
    if request.subseed_strength > 0 and request.subseed in (None, -1):
        changes["subseed"] = draw_seed()
    if request.clip_skip and request.clip_skip > 1 and not any(e.clip_skip for e in family.text_encoders):
        notes.append(f"clip skip {request.clip_skip} has no effect on {family.title}: its text layer is fixed")
    return ResolvedRequest(
        request=request.model_copy(update=changes),
        family=family.name,
        checkpoint=checkpoint,
        vae=vae,
        notes=tuple(notes),
    )
