"""The pairs `ControlNet 0: "Module: canny, Model: ..."` of AUTOMATIC1111's extension, written and read.

Format: Mikubill's sd-webui-controlnet, `infotext.py`. It records no picture, so Danqing's own pair says all besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from danqing.requests import ResolvedRequest

KEY = re.compile(r"ControlNet (\d+)")
_FIELDS = {
    "Module": "module",
    "Model": "model",
    "Weight": "weight",
    "Resize Mode": "resize_mode",
    "Guidance Start": "guidance_start",
    "Guidance End": "guidance_end",
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


def control_pairs(resolved: ResolvedRequest) -> Iterator[tuple[str, str]]:
    """One pair for each control of the request."""
    for index, unit in enumerate(resolved.request.controls):
        file = resolved.others.get(f"controls.{index}")
        name = re.sub(r"\.(safetensors|pth|pt|ckpt|bin)$", "", file.name if file else unit.model)
        digest = f" [{file.sha256[:8]}]" if file and file.sha256 else ""
        values = {
            "module": unit.module,
            "model": re.sub(r"[,:]", "_", name) + digest,
            "weight": unit.weight,
            "resize_mode": _RESIZES[unit.resize_mode],
            "guidance_start": unit.guidance_start,
            "guidance_end": unit.guidance_end,
            "control_mode": _MODES[unit.control_mode],
        }
        yield f"ControlNet {index}", ", ".join(f"{key}: {values[field]}" for key, field in _FIELDS.items())


def read_controls(pairs: Mapping[str, str], notes: list[str]) -> list[dict[str, Any]]:
    """The controls that the pairs of another tool tell, without their pictures; `notes` gets what has no counterpart."""
    units: list[dict[str, Any]] = []
    for key in sorted((key for key in pairs if KEY.fullmatch(key)), key=lambda key: int(key.split()[1])):
        told = dict(part.strip().partition(": ")[::2] for part in pairs[key].split(",") if ": " in part)
        unit = {field: told[name] for name, field in _FIELDS.items() if name in told}
        if "model" not in unit or unit["model"] == "None":
            notes.append(f"'{key}: {pairs[key][:60]}' has no counterpart here and is left out")
            continue
        left = [f"{name}: {value}" for name, value in told.items() if name not in {*_FIELDS, *_HARMLESS}]
        notes += [f"{key}: '{pair[:60]}' has no counterpart here and is left out" for pair in left]
        notes.append(f"{key}: the picture that it was shown is not recorded")
        units.append(unit)
    return units
