"""The pairs `ControlNet 0: "Module: canny, Model: ..."` of AUTOMATIC1111's extension, written and read.

It holds image prompts for ControlNets too: their modules are `ip-adapter-auto` and kin, and `reference_only`.

Format: Mikubill's sd-webui-controlnet, `infotext.py`. It records no picture, so Danqing's own pair says all besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from danqing.request_parts import REFERENCE, ImagePrompt, Reference
from danqing.requests import ResolvedRequest
from danqing.vocabulary import find_module

KEY = re.compile(r"ControlNet (\d+)")
_FIELDS = {
    "Module": "module",
    "Model": "model",
    "Weight": "weight",
    "Resize Mode": "resize_mode",
    "Processor Res": "processor_res",
    "Threshold A": "threshold_a",
    "Threshold B": "threshold_b",
    "Guidance Start": "guidance_start",
    "Guidance End": "guidance_end",
    "Pixel Perfect": "pixel_perfect",
    "Control Mode": "control_mode",
}
_MODES = {
    "balanced": "Balanced",
    "my prompt is more important": "My prompt is more important",
    "controlnet is more important": "ControlNet is more important",
    "guess mode": "Guess mode",
}
_RESIZES = {
    "just resize": "Just Resize",
    "crop and resize": "Crop and Resize",
    "resize and fill": "Resize and Fill",
}
_HARMLESS = {"Pixel Perfect", "Processor Res", "Hr Option", "Low Vram", "Save Detected Map", "Batch Images"}
"""What the extension writes besides and has no say in how Danqing shows a picture."""


_PROMPT_MODULE = re.compile(r"ip-adapter|ipadapter|instantid|reference_only", re.IGNORECASE)
_PROMPT_FIELDS = {
    "Model": "model",
    "Weight": "weight",
    "Guidance Start": "guidance_start",
    "Guidance End": "guidance_end",
}


def control_pairs(resolved: ResolvedRequest) -> Iterator[tuple[str, str]]:
    """One pair for each control of the request, then one for each image prompt."""
    controls = resolved.request.controls
    for index, unit in enumerate(controls):
        values = {
            "module": re.sub(r",|: +", "_", unit.module),
            "model": _named(resolved.others.get(f"controls.{index}"), unit.model),
            "weight": unit.weight,
            "resize_mode": _RESIZES[unit.resize_mode],
            "processor_res": unit.processor_res,
            "threshold_a": unit.threshold_a,
            "threshold_b": unit.threshold_b,
            "guidance_start": unit.guidance_start,
            "guidance_end": unit.guidance_end,
            "pixel_perfect": unit.processor_res is None,
            "control_mode": _MODES[unit.control_mode],
        }
        told = {key: values[field] for key, field in _FIELDS.items() if values[field] is not None}
        yield f"ControlNet {index}", ", ".join(f"{key}: {value}" for key, value in told.items())
    for index, asked in enumerate(resolved.request.image_prompts):
        file = resolved.others.get(f"image_prompts.{index}.model")
        yield (
            f"ControlNet {len(controls) + index}",
            ", ".join(f"{k}: {v}" for k, v in _prompt_pairs(asked, file).items()),
        )


def _prompt_pairs(asked: ImagePrompt, file: Reference | None) -> dict[str, object]:
    pairs: dict[str, object] = {
        "Module": "reference_only" if file is None else "ip-adapter-auto",
        "Model": "None" if file is None else _named(file, asked.model),
        "Weight": asked.weight,
        "Guidance Start": asked.guidance_start,
        "Guidance End": asked.guidance_end,
    }
    return pairs | ({"Threshold A": asked.style_fidelity} if file is None else {})


def _named(file: Reference | None, asked: str) -> str:
    name = re.sub(r"\.(safetensors|pth|pt|ckpt|bin)$", "", file.name if file else asked)
    digest = f" [{file.sha256[:8]}]" if file and file.sha256 else ""
    return re.sub(r"[,:]", "_", name) + digest


def read_controls(pairs: Mapping[str, str], notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """`controls` and `image_prompts` that the pairs of another tool tell, without their pictures; `notes` gets what has
    no counterpart."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key in sorted((key for key in pairs if KEY.fullmatch(key)), key=lambda key: int(key.split()[1])):
        told = dict(part.strip().partition(": ")[::2] for part in pairs[key].split(",") if ": " in part)
        is_prompt = bool(_PROMPT_MODULE.search(told.get("Module", "")))
        fields, reference = (_PROMPT_FIELDS if is_prompt else _FIELDS), told.get("Module") == "reference_only"
        unit = {field: told[name] for name, field in fields.items() if name in told}
        if not is_prompt:
            unit = _as_taken(unit)
        if reference:
            unit["model"] = REFERENCE
            fields = fields | {"Threshold A": "style_fidelity"}
            unit |= {"style_fidelity": told["Threshold A"]} if "Threshold A" in told else {}
            if re.fullmatch(r"\d+(\.\d*)?", weight := told.get("Weight", "")) and float(weight) > 1:
                unit["weight"] = "1"  # there it is a share of the layers too, and all are not more than all
                notes.append(f"{key}: reference_only at a weight of {weight} is as at 1, which is taken")
        if "model" not in unit or unit["model"] == "None":
            notes.append(f"'{key}: {pairs[key][:60]}' has no counterpart here and is left out")
            continue
        harmless = _HARMLESS | ({"Module", "Resize Mode", "Control Mode", "Threshold B"} if is_prompt else set())
        left = [f"{name}: {value}" for name, value in told.items() if name not in {*fields, *harmless}]
        notes += [f"{key}: '{pair[:60]}' has no counterpart here and is left out" for pair in left]
        notes.append(f"{key}: the picture that it was shown is not recorded")
        found.setdefault("image_prompts" if is_prompt else "controls", []).append(unit)
    return found


def _as_taken(unit: Mapping[str, str]) -> dict[str, Any]:
    """Without the numbers that the module does not look at: the extension writes down its hidden sliders too."""
    module = find_module(unit.get("module", "none"))[0]
    count = 2 if module is None else len(module.thresholds)
    idle = {"pixel_perfect", *("threshold_a", "threshold_b")[count:]}
    if unit.get("pixel_perfect") == "True" or (module is not None and not module.sized):
        idle.add("processor_res")
    return {field: value for field, value in unit.items() if field not in idle}
