"""Bodies of AUTOMATIC1111's txt2img and img2img -> fields of Danqing's requests. Names and defaults are its processing.py's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from danqing.errors import DanqingError
from danqing.library.names import find
from danqing.library.settings import Settings
from danqing.metadata.infotext import read_infotext
from danqing.metadata.told import UNRECORDED
from danqing.requests import ImageToImage, Inpaint, Painting, TextToImage
from danqing.serve.a1111_bodies import Img2Img, Painted, Txt2Img
from danqing.serve.a1111_options import Fields, request_fields
from danqing.serve.a1111_studio import Fetch, data_url
from danqing.vocabulary import (
    SAMPLERS,
    SCHEDULERS,
    Sampler,
    Scheduler,
    find_sampler,
    find_scheduler,
    quoted,
    split_combined,
)

_AS_THEY_ARE = (
    "prompt", "negative_prompt", "seed", "batch_size", "n_iter", "steps", "cfg_scale", "width", "height", "eta",
    "s_min_uncond", "s_churn", "s_tmin", "s_noise", "scheduler",
)  # fmt: skip
_HIRES = (
    "denoising_strength", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y",
    "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
)  # fmt: skip
_NETWORK_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>")


@dataclass(frozen=True)
class Asked:
    """A body that was understood: the kind of request and its fields, and what was left out, a line each."""

    kind: type[Painting]
    fields: Fields
    images: tuple[str, ...] = ()
    """Data URLs of the pictures to begin with; each is a request of its own."""
    notes: tuple[str, ...] = ()


def txt2img(body: Txt2Img, options: Mapping[str, Any], settings: Settings) -> Asked:
    """What a body of txt2img asks for. Raises HTTPException or DanqingError for what is unknown or makes no sense."""
    fields, notes = _common(body, options, TextToImage, settings)
    if body.enable_hr:
        fields["enable_hr"] = True
        fields |= {name: value for name in _HIRES if (value := getattr(body, name)) not in (None, "")}
        fields.setdefault("hr_upscaler", "Latent")
        _check_sampling(fields.get("hr_sampler_name"), fields.get("hr_scheduler"))
        if body.firstphase_width or body.firstphase_height:  # AUTOMATIC1111's old way to say the sizes
            fields |= {"hr_resize_x": body.width or 0, "hr_resize_y": body.height or 0}
            fields |= {"width": body.firstphase_width or body.width, "height": body.firstphase_height or body.height}
    return Asked(TextToImage, fields, notes=notes)


def img2img(body: Img2Img, options: Mapping[str, Any], settings: Settings, fetch: Fetch) -> Asked:
    """The same of img2img. Without pictures it is a 404, as in AUTOMATIC1111."""
    if not body.init_images:
        raise HTTPException(404, "Init image not found")
    if body.latent_mask:
        raise HTTPException(400, "latent_mask: has no counterpart here; give the mask by mask")
    kind = Inpaint if body.mask else ImageToImage
    fields, notes = _common(body, options, kind, settings)
    images = tuple(data_url(image, fetch) for image in body.init_images)
    for name in ("resize_mode", "denoising_strength", "image_cfg_scale", "initial_noise_multiplier"):
        if getattr(body, name) is not None:
            fields[name] = getattr(body, name)
    if body.mask:
        blur_x, blur_y = (body.mask_blur_x, body.mask_blur_y) if body.mask_blur is None else (body.mask_blur,) * 2
        fields |= {
            "mask": data_url(body.mask, fetch),
            "mask_blur": 4 if blur_x is None else blur_x,
            "mask_round": body.mask_round is not False,
            "inpainting_fill": body.inpainting_fill or 0,
            "inpaint_full_res": bool(body.inpaint_full_res),
            "inpainting_mask_invert": bool(body.inpainting_mask_invert),
        }
        if blur_y != blur_x:
            fields["mask_blur_y"] = blur_y
        if body.inpaint_full_res:
            fields["inpaint_full_res_padding"] = body.inpaint_full_res_padding or 0
    return Asked(kind, fields, images, notes)


def _common(
    body: Painted, options: Mapping[str, Any], kind: type[Painting], settings: Settings
) -> tuple[Fields, tuple[str, ...]]:
    known = kind.model_fields
    fields: Fields = {"dialect": "a1111", **request_fields(options, known)}
    notes = [f"field {quoted(name)} is unknown and left out" for name in body.model_extra or {} if name not in _TAKEN]
    if body.firstpass_image:
        notes.append("firstpass_image has no counterpart here and is left out")
    if body.infotext:
        fields |= _told(body, kind, settings, notes)
    given = body.model_fields_set
    for name in _AS_THEY_ARE:
        value = getattr(body, name)
        if value is not None and (name in given or name not in fields):
            fields[name] = value
    sampler = body.sampler_name or body.sampler_index
    if sampler:
        fields["sampler_name"] = sampler
    if not fields.get("scheduler"):
        fields.pop("scheduler", None)
    _check_sampling(fields.get("sampler_name"), fields.get("scheduler"))
    if body.styles:
        check_styles(body.styles)
        fields["styles"] = [style for style in body.styles if style and style != "None"]
    if body.tiling is not None:
        fields["tiling"] = "both" if body.tiling else "none"
    if body.s_tmax:  # 0 is no bound
        fields["s_tmax"] = body.s_tmax
    if body.seed_enable_extras is not False:
        fields |= _varied(body)
    if body.refiner_checkpoint not in (None, "", "None", "none"):
        fields["refiner_checkpoint"] = body.refiner_checkpoint
        if body.refiner_switch_at is not None:
            fields["refiner_switch_at"] = body.refiner_switch_at
    if "eta" not in fields:
        name = "eta_ddim" if str(fields.get("sampler_name")).upper().startswith("DDIM") else "eta_ancestral"
        if options[name] != (0.0 if name == "eta_ddim" else 1.0):
            fields["eta"] = options[name]
    if body.disable_extra_networks:
        for name in ("prompt", "negative_prompt"):
            fields[name] = _NETWORK_TAG.sub("", fields.get(name, ""))
    return fields, tuple(notes)


_TAKEN = ("controlnet_units", *(f"controlnet_{part}" for part in (
    "image", "mask", "module", "model", "weight", "resize_mode", "low_vram", "processor_res", "threshold_a",
    "threshold_b", "guidance")), "guess_mode", "hr_upscale")  # fmt: skip
"""Fields beyond AUTOMATIC1111's that ControlNet's routes know what to do with."""


def _varied(body: Painted) -> Fields:
    fields: Fields = {}
    if body.subseed_strength and body.subseed_strength > 0:
        fields |= {"subseed_strength": body.subseed_strength, "subseed": -1 if body.subseed is None else body.subseed}
    width, height = body.seed_resize_from_w or 0, body.seed_resize_from_h or 0
    if width > 0 and height > 0:
        fields |= {"seed_resize_from_w": width, "seed_resize_from_h": height}
    return fields


def _told(body: Painted, kind: type[Painting], settings: Settings, notes: list[str]) -> Fields:
    """The fields that the body's infotext says."""
    told = read_infotext(body.infotext or "")
    notes += told.notes
    said = told.request.model_dump(exclude_unset=True)
    fields = {name: value for name, value in said.items() if name in kind.model_fields}
    for name in ("image", "mask"):
        if fields.get(name) == UNRECORDED.model_dump():
            del fields[name]
    if told.checkpoint is not None and told.checkpoint.name:
        tag = f" [{told.checkpoint.sha256[:10]}]" if told.checkpoint.sha256 else ""
        try:
            find(told.checkpoint.name + tag, "checkpoint", settings)
            fields["model"] = told.checkpoint.name + tag
        except DanqingError as error:
            notes.append(f"infotext: {error}")
    return fields


def check_styles(names: Iterable[str]) -> None:
    """Raises HTTPException for a style by its file, `FILE.csv:NAME`: requests name styles, never files."""
    for name in names:
        if re.search(r"\.(csv|json)\s*:", name, re.IGNORECASE):
            raise HTTPException(400, f"styles: {quoted(name)} names a file; give a style's name")


def _check_sampling(sampler: str | None, scheduler: str | None) -> None:
    """Raises HTTPException, with all the choices, where either is unknown."""
    if sampler is not None and not sampler.casefold().startswith("use same "):
        try:
            find_sampler(split_combined(sampler)[0])
        except DanqingError:
            raise HTTPException(400, _choices("Sampler", sampler, SAMPLERS)) from None
    if scheduler is not None and not scheduler.casefold().startswith("use same "):
        try:
            find_scheduler(scheduler)
        except DanqingError:
            raise HTTPException(400, _choices("Scheduler", scheduler, SCHEDULERS)) from None


def _choices(what: str, name: str, rows: tuple[Sampler, ...] | tuple[Scheduler, ...]) -> str:
    return f"{what} not found: {quoted(name)}; choose one of: {', '.join(row.name for row in rows)}"
