"""Where each field of a request stands on its tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from pydantic import BaseModel

from danqing.requests import Painting
from danqing.serve.page_controls import Control, Field, controls_of, fields_of
from danqing.serve.page_studio import TEXTS, Studio

GROUPS: Mapping[str, tuple[str, ...]] = {
    # what is named nowhere is under `more`
    "picture": ("image",),
    "images": ("images",),
    "strength": ("denoising_strength", "resize_mode"),
    "main": ("model", "width", "height", "steps", "cfg_scale", "sampler_name", "scheduler", "seed", "batch_size",
             "n_iter", "styles"),
    "mask": ("mask_blur", "inpainting_fill", "inpaint_full_res_padding", "inpaint_full_res", "inpainting_mask_invert"),
    "outpaint": ("left", "right", "up", "down"),
    "upscale": ("upscaler", "scale", "width", "height", "crop", "upscaler_2", "upscaler_2_visibility", "tile",
                "ldsr_steps"),
    "faces": ("face_restorer", "face_visibility", "fidelity", "face_detector", "faces_first"),
    "hires": ("enable_hr", "hr_scale", "hr_upscaler", "denoising_strength", "hr_second_pass_steps", "hr_resize_x",
              "hr_resize_y", "hr_sampler_name", "hr_scheduler", "hr_cfg", "hr_prompt", "hr_negative_prompt",
              "hr_checkpoint_name"),
    "masking": ("mask", "mask_text", "mask_model", "mask_threshold", "mask_blur_x", "mask_blur_y",
                "inpainting_mask_weight", "mask_round", "soft_inpainting"),
    "over": ("color_correction", "image_cfg_scale", "loops", "final_denoising_strength", "denoising_curve",
             "exact_steps", "initial_noise_multiplier", "extra_noise", "background_color", "inversion",
             "inversion_prompt", "subimage", "subimage_strength", "sd_upscale"),
    "control": ("controls", "image_prompts"),
    "detail": ("detailers",),
    "lora": ("lora_mode", "lora_switch_every", "lora_regions", "regions"),
    "seeds": ("subseed", "subseed_strength", "subprompt", "subprompt_strength", "seed_resize_from_w",
              "seed_resize_from_h", "eta_noise_seed_delta", "noise_source", "tiling"),
    "reading": ("dynamic", "clip_skip", "emphasis", "dialect", "vae", "fast"),
    "guidance": ("guidance_rescale", "guidance_start", "guidance_end", "s_min_uncond", "dynamic_thresholding",
                 "mimic_scale", "percentile", "pag", "sag", "freeu"),
    "details": ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "sigma_min", "sigma_max", "rho",
                "discard_penultimate"),
    "refiner": ("refiner_checkpoint", "refiner_switch_at"),
    "speed": ("quick", "step_cache", "tgate", "tiled_diffusion", "token_merging", "hypertile"),
    "sdxl": ("original_width", "original_height", "crop_left", "crop_top", "target_width", "target_height",
             "aesthetic_score", "negative_aesthetic_score"),
}  # fmt: skip
_PLAIN = frozenset({"picture", "images", "strength", "main", "upscale"})
"""What needs no title, and is always open."""
_OPEN = frozenset({"mask", "outpaint", "faces"})


def grouped(
    studio: Studio,
    kinds: Sequence[type[BaseModel]],
    first: Sequence[str],
    apart: Sequence[str] = (),
    *,
    rest: bool = True,
) -> tuple[list[Control], dict[str, Any]]:
    """Draw the controls of all fields of `kinds`: the groups of `first`, then the others (`rest`) but those of `apart`.

    Returns them, and each group's place on the page.
    """
    every: dict[str, Field] = {}
    for each in (each for kind in kinds for each in fields_of(kind)):
        every.setdefault(each.name, each)  # defaults are those of the first kind, which is chosen at first
    for name in (*TEXTS, *(name for group in apart for name in GROUPS[group])):
        every.pop(name, None)
    controls: list[Control] = []
    places: dict[str, Any] = {}
    others = [group for group in GROUPS if group not in first and all(issubclass(kind, Painting) for kind in kinds)]
    for group in [*first, *(others if rest else ())]:
        names = [name for name in GROUPS[group] if name in every]
        if names:
            controls += drawn(studio, group, [every.pop(name) for name in names], places)
    if every and rest:
        controls += drawn(studio, "more", list(every.values()), places)
    return controls, places


def drawn(studio: Studio, group: str, fields: Sequence[Field], places: dict[str, Any]) -> list[Control]:
    """Draw a group; its place is put into `places`."""
    controls: list[Control] = []
    library = studio.engine.models.settings
    visible = group not in ("mask", "masking", "outpaint")
    if group in _PLAIN:
        places[group] = gr.Column(elem_classes=["dq-panel", f"dq-g-{group}"], visible=visible)
    else:
        title = studio.say(f"group_{group}")
        places[group] = gr.Accordion(title, open=group in _OPEN, visible=visible, elem_classes="dq-group")
    with places[group], gr.Row(elem_classes="dq-controls"):
        for each in fields:
            controls += controls_of(each, studio.language, library)
    return controls
