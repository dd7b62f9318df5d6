"""The texts of a request become branches: prompt, negative prompt, variation prompt, regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from danqing.adapters.hypernetwork import TAG
from danqing.adapters.identity import Identity, with_identity
from danqing.adapters.lora import TAGS
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.conditioning import Conditioning
from danqing.pipeline.images import mask_pixels
from danqing.pipeline.models import Say
from danqing.prompts.encode import Cache, Sizes, conditionings
from danqing.prompts.grammar import Prompt, understand
from danqing.request_parts import LoraRegion, Region
from danqing.requests import Painting
from danqing.vocabulary import find_sampler

Branches = tuple[Conditioning, ...]
_HINT = "; lora_regions says where in the picture one of those holds"


def encode(
    request: Painting,
    model: Model,
    note: Say,
    cache: Cache,
    *,
    first_pass_steps: int | None = None,
    pictures: Mapping[str, Image.Image] | None = None,
    identity: Identity | None = None,
    held: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Branches, Branches]:
    """The positive and the negative branches of a resolved request.

    `first_pass_steps` is set in the second pass of a hires fix; `pictures` are the masks of regions, by field.
    `identity` is whom a PhotoMaker puts into the prompt, at `At.step` in the half-open range `held`.
    Raises DanqingError where a variation prompt has another structure than the prompt.
    """
    r = request
    calls = 2 if find_sampler(r.sampler_name or "").second_order else 1
    sizes = None
    if model.family.size_ids != "none":
        sizes = Sizes(
            original=(r.original_height or 0, r.original_width or 0),
            crop=(r.crop_top, r.crop_left),
            target=(r.target_height or 0, r.target_width or 0),
            aesthetic=r.aesthetic_score,
            negative_aesthetic=r.negative_aesthetic_score,
        )

    def with_subprompt(branches: Branches) -> Branches:
        return between(branches, subprompt, r.subprompt_strength) if subprompt else branches

    def side(text: str, negative: bool = False, dressed: bool = False, hint: str = "") -> Branches:
        prompt = understand(
            text,
            r.steps or 1,
            dialect=r.dialect,
            calls_per_step=calls,
            first_pass_steps=first_pass_steps,
            negative=negative,
        )
        for tag in prompt.networks:
            if not (dressed and tag.kind in (*TAGS, TAG)):
                ours = f"only the prompt's own count{hint if tag.kind in TAGS else ''}"
                why = ours if tag.kind in (*TAGS, TAG) else "there is no such kind of network"
                note(f"<{tag.kind}:{':'.join(tag.positional)}> is left out: {why}")
        emphasis = r.emphasis or "original"

        def encoded(prompt: Prompt) -> Branches:
            return conditionings(
                model,
                prompt,
                emphasis=emphasis,
                clip_skip=r.clip_skip,
                dialect=r.dialect,
                sizes=sizes,
                negative=negative,
                cache=cache,
                say=note,
            )

        if not dressed:
            return encoded(prompt)
        if identity is None:
            return with_subprompt(encoded(prompt))
        return with_identity(
            identity, prompt, model, encoded, held=held, dialect=r.dialect, emphasis=emphasis, finish=with_subprompt
        )

    subprompt = side(r.subprompt) if r.subprompt is not None and r.subprompt_strength > 0 else ()
    positive = side(r.prompt, dressed=True)
    if r.regions:
        cell = model.family.autoencoder.downscale
        cells = ((r.width or 0) // cell, (r.height or 0) // cell)
        masks = pictures or {}
        areas = [area(region, cells, masks.get(f"regions.{i}.mask")) for i, region in enumerate(r.regions)]
        positive = by_area(positive, [side(region.prompt, hint=_HINT) for region in r.regions], areas)
    return positive, side(r.negative_prompt, negative=True)


def between(first: Sequence[Conditioning], second: Sequence[Conditioning], part: float) -> Branches:
    """`part` in [0, 1] of the way from one prompt's branches to the other's, vector by vector.

    Contexts of different lengths: the shorter repeats its last vector. Prompts that change over the steps must change
    at the same ones. Raises DanqingError where they do not, or where one has more AND parts.
    """
    if [branch.steps for branch in first] != [branch.steps for branch in second]:
        raise DanqingError("subprompt: should have as many AND parts as the prompt, and change at the same steps")

    def mixed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.lerp(a, b, part)

    out = []
    for a, b in zip(first, second):
        length = max(a.context.shape[1], b.context.shape[1])
        contexts = [
            torch.cat([c.context, c.context[:, -1:].expand(-1, length - c.context.shape[1], -1)], 1) for c in (a, b)
        ]
        strength = a.strength + (b.strength - a.strength) * part
        mixture = torch.lerp(contexts[0], contexts[1], part)
        out.append(replace(a, context=mixture, pooled=mixed(a.pooled, b.pooled), strength=strength))
    return tuple(out)


def area(region: Region | LoraRegion, cells: tuple[int, int], mask: Image.Image | None = None) -> Tensor:
    """(1, 1, h, w) in [0, 1]: where `region` holds, times its strength; `cells` = (w, h) of the latents.

    A cell that a rectangle covers in part counts in that part. Raises DanqingError for a region without any area.
    """
    if mask is not None:
        held = mask_pixels(mask.resize(cells, Image.Resampling.BOX))
    else:
        sides = [
            torch.tensor([_overlap(i / n, (i + 1) / n, start, start + size) * n for i in range(n)])
            for n, start, size in ((cells[1], region.y, region.height), (cells[0], region.x, region.width))
        ]
        held = (sides[0][:, None] * sides[1][None, :])[None, None]
    if not bool(held.any()):
        field = "regions" if isinstance(region, Region) else "lora_regions"
        raise DanqingError(f"{field}: one of them covers nothing of the picture; see its x, y, width, height or mask")
    return held * region.strength


def _overlap(low: float, high: float, start: float, end: float) -> float:
    return max(min(high, end) - max(low, start), 0.0)


def by_area(whole: Branches, regions: Sequence[Branches], areas: Sequence[Tensor]) -> Branches:
    """The branches of the whole and of its regions as one side: a region takes the whole's place in its area.

    A region of strength 0.5 leaves the whole half of it; several on one place share it by their strengths.
    """
    rest = (1 - torch.stack(list(areas)).sum(0)).clamp(min=0)
    out = [replace(branch, area=rest) for branch in whole] if bool((rest > 1e-6).any()) else []
    for branches, held in zip(regions, areas):
        out += [replace(branch, area=held) for branch in branches]
    return tuple(out)
