"""Scripts that change a request whenever they are named in `alwayson_scripts`: AUTOMATIC1111's own and of its extensions.

Titles, orders of arguments and defaults are theirs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from fastapi import HTTPException

from danqing.library.settings import Settings
from danqing.requests import ImageToImage, Inpaint
from danqing.serve.a1111_controlnet import units
from danqing.serve.a1111_options import Fields
from danqing.serve.a1111_script import Arg, Script, Values, Work
from danqing.vocabulary import quoted


def _controlnet(work: Work, values: Values) -> None:
    found = units(values["args"], work.opened, work.notes)
    for name, rows in found.items():
        work.fields[name] = [*work.fields.get(name, ()), *rows]


_DETAILED = {
    "ad_prompt": "prompt",
    "ad_negative_prompt": "negative_prompt",
    "ad_confidence": "confidence",
    "ad_mask_k_largest": "largest",
    "ad_mask_k": "largest",
    "ad_dilate_erode": "dilate",
    "ad_mask_blur": "mask_blur",
    "ad_denoising_strength": "denoising_strength",
    "ad_inpaint_only_masked_padding": "padding",
}
_DETAILER_SWITCHES = {
    "ad_use_inpaint_width_height": {"ad_inpaint_width": "width", "ad_inpaint_height": "height"},
    "ad_use_steps": {"ad_steps": "steps"},
}
_DETAILER_QUIET = {"ad_model", "ad_model_classes", "ad_tab_enable", "is_api", *_DETAILED, *_DETAILER_SWITCHES,
                   *(name for names in _DETAILER_SWITCHES.values() for name in names)}  # fmt: skip
_DETAILER_DEFAULTS: Mapping[str, Any] = {
    "ad_mask_min_ratio": 0.0, "ad_mask_max_ratio": 1.0, "ad_x_offset": 0, "ad_y_offset": 0,
    "ad_mask_merge_invert": "None", "ad_inpaint_only_masked": True, "ad_use_cfg_scale": False,
    "ad_use_checkpoint": False, "ad_use_vae": False, "ad_use_sampler": False, "ad_use_noise_multiplier": False,
    "ad_use_clip_skip": False, "ad_restore_face": False, "ad_controlnet_model": "None",
    "ad_mask_filter_method": "Area",
}  # fmt: skip
"""What ADetailer has besides; at these values it has no effect."""


def _adetailer(work: Work, values: Values) -> None:
    switches = [value for value in values["args"] if isinstance(value, bool)]
    if switches[:1] == [False]:
        return
    for unit in values["args"]:
        if not isinstance(unit, dict) or unit.get("ad_tab_enable") is False:
            continue
        if unit.get("ad_model") in (None, "", "None"):
            continue
        fields: Fields = {"detector": _detector(str(unit["ad_model"]), work.settings)}
        fields |= {to: unit[name] for name, to in _DETAILED.items() if name in unit}
        if "largest" in fields:
            fields["largest"] = int(fields["largest"])
        for switch, names in _DETAILER_SWITCHES.items():
            if unit.get(switch):
                fields |= {to: unit[name] for name, to in names.items() if name in unit}
        classes = str(unit.get("ad_model_classes") or "").strip()
        if classes:
            if not all(part.strip().isdecimal() for part in classes.split(",")):
                raise HTTPException(422, "ADetailer: ad_model_classes are numbers here, such as 0,2")
            fields["classes"] = [int(part) for part in classes.split(",")]
        for name, value in unit.items():
            default = _DETAILER_DEFAULTS.get(name, value if name.endswith(_UNUSED) else None)
            if name not in _DETAILER_QUIET and value != default:
                work.notes.append(f"ADetailer: {name} has no counterpart here and is left out")
        work.fields["detailers"] = [*work.fields.get("detailers", ()), fields]


def _detector(name: str, settings: Settings) -> str:
    """The ONNX file of that name, whatever its suffix is called, in a folder `adetailer` or `detectors` of the models."""
    stem = PurePath(name).stem
    for root in (settings.models_dir, *settings.folders):
        for folder in ("adetailer", "detectors", "models/adetailer"):
            path = root / folder / f"{stem}.onnx"
            if os.path.isfile(path):  # which says no to a name that is too long
                return str(path)
    raise HTTPException(422, f"ADetailer: no {quoted(stem + '.onnx')} in a folder adetailer of the model folders")


_UNUSED = ("_cfg_scale", "_checkpoint", "_vae", "_sampler", "_scheduler", "_noise_multiplier", "_clip_skip", "_module",
           "_weight", "_guidance_start", "_guidance_end")  # fmt: skip
"""Ends of names that act only beside a switch of their own."""


def _sag(work: Work, values: Values) -> None:
    if values["Enabled"]:
        work.fields["sag"] = {"scale": values["Scale"], "threshold": values["Mask Threshold"]}


def _soft_inpainting(work: Work, values: Values) -> None:
    if values["Soft inpainting"] and work.kind is Inpaint:
        names = ("schedule_bias", "preservation_strength", "transition_contrast_boost", "mask_influence",
                 "difference_threshold", "difference_contrast")  # fmt: skip
        work.fields["soft_inpainting"] = dict(zip(names, list(values.values())[1:]))


def _refiner(work: Work, values: Values) -> None:
    if values["Refiner"] and values["Checkpoint"] not in ("", "None", "none"):
        work.fields |= {"refiner_checkpoint": values["Checkpoint"], "refiner_switch_at": values["Switch at"]}


def _seed(work: Work, values: Values) -> None:
    if values["Seed"] is not None:
        work.fields["seed"] = values["Seed"]
    if values["Extra"] and values["Variation strength"]:
        work.fields |= {"subseed": values["Variation seed"], "subseed_strength": values["Variation strength"]}
    if values["Extra"] and values["Resize seed from width"] and values["Resize seed from height"]:
        work.fields["seed_resize_from_w"] = values["Resize seed from width"]
        work.fields["seed_resize_from_h"] = values["Resize seed from height"]


def _sampler(work: Work, values: Values) -> None:
    names = {"Sampling steps": "steps", "Sampling method": "sampler_name", "Schedule type": "scheduler"}
    work.fields |= {to: values[name] for name, to in names.items() if values[name] is not None}


def _thresholding(work: Work, values: Values) -> None:
    if values["Enabled"]:
        fields = {"mimic_scale": values["Mimic CFG Scale"], "percentile": values["Top percentile"]}
        work.fields["dynamic_thresholding"] = fields
        plain = {"Mimic Scale Scheduler": "Constant", "CFG Scheduler": "Constant"}
        work.notes += [
            f"Dynamic Thresholding: {name} is always {only} here"
            for name, only in plain.items()
            if values[name] != only
        ]


def _freeu(work: Work, values: Values) -> None:
    if values["Enabled"]:
        names = {"B1": "b1", "B2": "b2", "S1": "s1", "S2": "s2", "Start": "start", "End": "end"}
        work.fields["freeu"] = {to: values[name] for name, to in names.items()}


def _pag(work: Work, values: Values) -> None:
    if values["Enabled"]:
        work.fields["pag"] = {"scale": values["Scale"]}


def _tiled_diffusion(work: Work, values: Values) -> None:
    if values["Enabled"]:
        names = {"Method": "method", "Tile width": "tile_width", "Tile height": "tile_height",
                 "Tile overlap": "overlap", "Tile batch size": "batch_size"}  # fmt: skip
        work.fields["tiled_diffusion"] = {to: values[name] for name, to in names.items()}


def _dynamic_prompts(work: Work, values: Values) -> None:
    flags = [*values["args"], False, False][:2]
    if flags[0]:
        work.fields["dynamic"] = "all" if flags[1] else "random"


def _nothing(work: Work, values: Values) -> None:
    """A script whose work is done without it."""


ALWAYS_ON: tuple[Script, ...] = (
    Script("ControlNet", rest=True, alwayson=True, change=_controlnet),
    Script("ADetailer", rest=True, alwayson=True, change=_adetailer),
    Script(
        "Self Attention Guidance",
        (Arg("Enabled", False), Arg("Scale", 0.75, -2, 5, 0.01), Arg("Mask Threshold", 1.0, 0, 2, 0.01)),
        alwayson=True,
        change=_sag,
    ),
    Script(
        "Soft Inpainting",
        (
            Arg("Soft inpainting", False),
            Arg("Schedule bias", 1.0, 0, 8, 0.1),
            Arg("Preservation strength", 0.5, 0, 8, 0.05),
            Arg("Transition contrast boost", 4.0, 1, 32, 0.5),
            Arg("Mask influence", 0.0, 0, 1, 0.05),
            Arg("Difference threshold", 0.5, 0, 8, 0.25),
            Arg("Difference contrast", 2.0, 0, 8, 0.25),
        ),
        (ImageToImage,),
        alwayson=True,
        change=_soft_inpainting,
    ),
    Script(
        "Refiner",
        (Arg("Refiner", False), Arg("Checkpoint", ""), Arg("Switch at", 0.8, 0.01, 1, 0.01)),
        alwayson=True,
        change=_refiner,
    ),
    Script(
        "Seed",
        (
            Arg("Seed"),
            Arg("Extra", False),
            Arg("Variation seed", -1),
            Arg("Variation strength", 0, 0, 1, 0.01),
            Arg("Resize seed from width", 0, 0, 2048, 8),
            Arg("Resize seed from height", 0, 0, 2048, 8),
        ),
        alwayson=True,
        change=_seed,
    ),
    Script(
        "Sampler",
        (Arg("Sampling steps", None, 1, 150, 1), Arg("Sampling method"), Arg("Schedule type")),
        alwayson=True,
        change=_sampler,
    ),
    Script(
        "Dynamic Thresholding (CFG Scale Fix)",
        (
            Arg("Enabled", False),
            Arg("Mimic CFG Scale", 7.0, 0, 30, 0.5),
            Arg("Top percentile", 1.0, 0.9, 1, 0.001),
            Arg("Mimic Scale Scheduler", "Constant"),
            Arg("Minimum value of the Mimic Scale Scheduler", 0.0),
            Arg("CFG Scheduler", "Constant"),
            Arg("Minimum value of the CFG Scale Scheduler", 0.0),
            Arg("Scheduler Value", 1.0),
            Arg("Separate Feature Channels", "enable"),
            Arg("Scaling Startpoint", "MEAN"),
            Arg("Variability Measure", "AD"),
            Arg("Interpolate Phi", 1.0),
        ),
        alwayson=True,
        change=_thresholding,
    ),
    Script(
        "FreeU Integrated",
        (
            Arg("Enabled", False),
            Arg("B1", 1.01, 0, 2, 0.01),
            Arg("B2", 1.02, 0, 2, 0.01),
            Arg("S1", 0.99, 0, 4, 0.01),
            Arg("S2", 0.95, 0, 4, 0.01),
            Arg("Start", 0.0, 0, 1, 0.01),
            Arg("End", 1.0, 0, 1, 0.01),
        ),
        alwayson=True,
        change=_freeu,
    ),
    Script(
        "PerturbedAttentionGuidance Integrated",
        (Arg("Enabled", False), Arg("Scale", 3.0, 0, 100, 0.1)),
        alwayson=True,
        change=_pag,
    ),
    Script(
        "Tiled Diffusion",
        (
            Arg("Enabled", False),
            Arg("Method", "MultiDiffusion", choices=("MultiDiffusion", "Mixture of Diffusers")),
            Arg("Overwrite image size", False),
            Arg("Keep input image size", True),
            Arg("Image width", 1024),
            Arg("Image height", 1024),
            Arg("Tile width", 96, 16, 256, 16),
            Arg("Tile height", 96, 16, 256, 16),
            Arg("Tile overlap", 48, 0, 256, 4),
            Arg("Tile batch size", 4, 1, 8, 1),
        ),
        alwayson=True,
        change=_tiled_diffusion,
    ),
    Script("Dynamic Prompts", rest=True, alwayson=True, change=_dynamic_prompts),
    *(Script(title, rest=True, alwayson=True, change=_nothing) for title in ("Comments", "Extra options", "Hypertile")),
)
"""In the order in which they are listed."""
