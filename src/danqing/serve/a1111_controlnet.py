"""The extension ControlNet as AUTOMATIC1111's API knows it: units of a request, and lists of modules and models.

Names, aliases and defaults are those of sd-webui-controlnet's scripts/api.py and internal_controlnet/args.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from PIL import Image

from danqing.adapters.annotators import find_preprocessor
from danqing.adapters.pose import PARTS, Person, Point, Posing, draw
from danqing.checkpoints.hashes import legacy_hash
from danqing.errors import DanqingError
from danqing.library.folders import Entry
from danqing.library.settings import Settings
from danqing.pipeline.controls import INPAINT, module_files
from danqing.request_parts import REFERENCE
from danqing.requests import TextToImage, read
from danqing.serve.a1111_bodies import Pose
from danqing.serve.a1111_library import entries
from danqing.serve.a1111_options import Fields
from danqing.vocabulary import MODULES, Module, find_module, quoted

Opened = Callable[[str], str]
"""A picture as a body gives it -> its data URL."""

_OLD_NAMES = {
    "input_image": "image",
    "mask_image": "mask",
    "guidance": "guidance_end",
    "lowvram": "low_vram",
    "preprocessor": "module",
    "is_enabled": "enabled",
}
_RESIZES = {
    "inner fit (scale to fit)": "crop and resize",
    "scale to fit (inner fit)": "crop and resize",
    "outer fit (shrink to fit)": "resize and fill",
    "envelope (outer fit)": "resize and fill",
}
_UNION = ("OpenPose", "Depth", "hed/pidi/scribble/ted", "canny/lineart/anime_lineart/mlsd", "Normal Map",
          "Segmentation", "Tile", "Inpaint")  # fmt: skip
"""The kinds of pictures that a union network is told, by their numbers."""
_HARMLESS = ("enabled", "low_vram", "pixel_perfect", "save_detected_map", "batch_images", "input_mode", "loopback",
             "use_preview_as_input", "batch_modifiers", "batch_image_files", "batch_input_gallery", "generated_image",
             "use_mask", "ipadapter_input", "pulid_mode")  # fmt: skip
_KNOWN = ("image", "mask", "module", "model", "weight", "resize_mode", "processor_res", "threshold_a", "threshold_b",
          "guidance_start", "guidance_end", "control_mode", "union_control_type", "effective_region_mask", "hr_option",
          "advanced_weighting", "inpaint_crop_input_image")  # fmt: skip
_PROMPTS = re.compile(r"ip-adapter|instant_id|photomaker|reference", re.IGNORECASE)
MAX_PIXELS = 64_000_000
"""Of a picture that a module is shown."""
REFERENCES = ("reference_only",)
"""Modules that need no model."""


def units(args: list[Any], opened: Opened, notes: list[str]) -> Fields:
    """The fields `controls` and `image_prompts` that a list of units asks for; those that are off are left out.

    Raises HTTPException for a unit without a model, or a module that is unknown.
    """
    controls: list[Fields] = []
    prompts: list[Fields] = []
    for number, unit in enumerate(args):
        if not isinstance(unit, dict):
            if unit not in (None, False):
                raise HTTPException(422, f"ControlNet: unit {number} should be an object, but it is {quoted(unit)}")
            continue
        values: Fields = {_OLD_NAMES.get(str(name), str(name)): value for name, value in unit.items()}
        if values.get("enabled", True) in (False, None) or not _asks(values):
            continue
        notes += [f"ControlNet unit {number}: {note}" for note in _left_out(values)]
        module = str(values.get("module") or "none").strip()
        target = prompts if _PROMPTS.search(module) else controls
        target.append(_prompt(values, module, opened) if target is prompts else _control(values, module, opened))
    return {name: found for name, found in (("controls", controls), ("image_prompts", prompts)) if found}


def old_units(extra: Fields) -> list[Any]:
    """The units of a body for the extension's first routes: `controlnet_units`, or one unit's fields for themselves."""
    units = extra.get("controlnet_units")
    if isinstance(units, list):
        return units
    prefix = "controlnet_"
    unit = {name.removeprefix(prefix): value for name, value in extra.items() if name.startswith(prefix)}
    if not unit:
        return []
    for name in ("image", "mask"):
        if isinstance(unit.get(name), list):
            unit[name] = next(iter(unit[name]), None)
    if extra.get("guess_mode"):
        unit["control_mode"] = "ControlNet is more important"
    return [unit]


def module_named(name: str) -> Module:
    """The module of that name. Raises HTTPException: files are named by who runs the studio, not by requests."""
    module, file = find_module(name)
    if module is None or file:
        raise HTTPException(422, f"Module not available: {quoted(name)}; choose one of: {', '.join(module_names())}")
    return module


def module_names() -> list[str]:
    """The modules as the extension calls them."""
    return [*(_label(module) for module in MODULES), *REFERENCES]


def module_detail() -> dict[str, Any]:
    """What each of them takes, in the extension's form."""
    size = {"name": "Preprocessor Resolution", "value": 512, "min": 64, "max": 2048, "step": 8}
    details: dict[str, Any] = {}
    for module in MODULES:
        sliders: list[dict[str, Any] | None] = [size if module.sized else None]
        for told in module.thresholds:
            value = told.low if told.default is None else told.default
            sliders.append({"name": told.name, "value": value, "min": told.low, "max": told.high, "step": 0.01})
        details[_label(module)] = {"model_free": False, "sliders": sliders if any(sliders) else []}
    fidelity = {"name": "Style Fidelity", "value": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}
    return details | {name: {"model_free": True, "sliders": [None, fidelity]} for name in REFERENCES}


def model_names(library: Settings) -> list[str]:
    """Titles of ControlNets and image adapters, `name [8 digits]`, by which a unit names its model."""
    return [_title(entry) for entry in entries(library, "controlnet", "ip_adapter")]


CONTROL_TYPES: Mapping[str, tuple[str, ...]] = {
    "Canny": ("canny",),
    "Depth": ("depth",),
    "IP-Adapter": ("ip-adapter", "ip_adapter"),
    "Inpaint": ("inpaint",),
    "Lineart": ("lineart", "line art"),
    "MLSD": ("mlsd",),
    "NormalMap": ("normal",),
    "OpenPose": ("openpose", "pose"),
    "Recolor": ("recolor", "luminance", "intensity"),
    "Reference": ("reference",),
    "Scribble": ("scribble",),
    "Segmentation": ("seg",),
    "Shuffle": ("shuffle",),
    "SoftEdge": ("softedge", "hed", "pidi"),
    "Tile": ("tile", "blur"),
}
"""The extension's types, and by which parts of their names modules and models are of them."""


def control_types(library: Settings) -> dict[str, Any]:
    """Modules and models of each type; `All` has all of them."""
    names, models = module_names(), model_names(library)
    everything = {"module_list": names, "model_list": ["None", *models]}
    types: dict[str, Any] = {"All": {**everything, "default_option": "none", "default_model": "None"}}
    for kind, marks in CONTROL_TYPES.items():
        modules = [name for name in names if any(mark in name for mark in marks)]
        fit = [name for name in models if any(mark in name.lower() for mark in marks)]
        types[kind] = {
            "module_list": ["none", *modules],
            "model_list": ["None", *fit],
            "default_option": modules[0] if modules else "none",
            "default_model": fit[0] if fit else "None",
        }
    return types


def _label(module: Module) -> str:
    return module.aliases[0] if module.aliases else module.name.replace(" ", "_")


def _title(entry: Entry) -> str:
    stem = entry.name.rpartition(".")[0] if entry.path.is_file() else entry.name
    try:
        return f"{stem} [{legacy_hash(entry.path)}]" if entry.path.is_file() else stem
    except (OSError, DanqingError):
        return stem


def _asks(values: Fields) -> bool:
    """Whether the unit is more than its defaults."""
    return values.get("model") not in (None, "", "None") or str(values.get("module") or "none").lower() != "none"


def _left_out(values: Fields) -> list[str]:
    notes = [f"{quoted(name)} is unknown and left out" for name in values if name not in (*_KNOWN, *_HARMLESS)]
    if str(values.get("hr_option") or "Both").casefold() != "both":
        notes.append("hr_option has no counterpart here: it acts in both passes")
    if values.get("advanced_weighting"):
        notes.append("advanced_weighting has no counterpart here and is left out")
    return notes


def _control(values: Fields, name: str, opened: Opened) -> Fields:
    module = module_named(name)
    model = _model(values.get("model"), name)
    image, _ = _images(values, opened)
    if values.get("effective_region_mask"):
        raise HTTPException(422, "ControlNet: effective_region_mask is for image prompts alone")
    fields: Fields = {
        "model": model,
        "image": image[0] if image else None,
        "module": module.name,
        "weight": values.get("weight", 1.0),
        "guidance_start": values.get("guidance_start", 0.0),
        "guidance_end": values.get("guidance_end", 1.0),
        "control_mode": values.get("control_mode", "Balanced"),
        "resize_mode": _resize(values.get("resize_mode", "Crop and Resize")),
        "union_control_type": _union(values.get("union_control_type")),
    }
    size = values.get("processor_res")
    if module.sized and not values.get("pixel_perfect") and isinstance(size, int | float) and size > 0:
        fields["processor_res"] = round(size)
    return {**{name: value for name, value in fields.items() if value is not None}, **_thresholds(values, module)}


def _model(name: Any, module: str) -> str:
    if not isinstance(name, str) or name in ("", "None"):
        raise HTTPException(
            422, f"ControlNet: the module {quoted(module)} needs a model; /controlnet/model_list has them"
        )
    return name


def _thresholds(values: Fields, module: Module) -> Fields:
    """As in the extension, a number beyond its slider's range stands for the default."""
    kept: Fields = {}
    for told, name in zip(module.thresholds, ("threshold_a", "threshold_b")):
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and told.low <= value <= told.high:
            kept[name] = value
    return kept


def _prompt(values: Fields, name: str, opened: Opened) -> Fields:
    reference = name.lower().startswith("reference")
    if reference and name.lower() not in REFERENCES:
        raise HTTPException(422, f"Module not available: {quoted(name)}; of its kind there is reference_only")
    model = REFERENCE if reference else _model(values.get("model"), name)
    images, _ = _images(values, opened)
    fields: Fields = {
        "model": model,
        "images": images,
        "weight": values.get("weight", 1.0),
        "guidance_start": values.get("guidance_start", 0.0),
        "guidance_end": values.get("guidance_end", 1.0),
    }
    if values.get("effective_region_mask"):
        fields["mask"] = opened(values["effective_region_mask"])
    fidelity = values.get("threshold_a", -1)
    if reference and isinstance(fidelity, int | float) and 0 <= fidelity <= 1:
        fields["style_fidelity"] = fidelity
    return fields


def _images(values: Fields, opened: Opened) -> tuple[list[str], list[str]]:
    """(pictures, masks) of `image` in each of its forms: text, {image, mask}, [image, mask], a list of {image, mask}."""
    given, mask = values.get("image"), values.get("mask")
    if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
        given = {"image": given[0], "mask": given[1] if len(given) > 1 else None}
    rows = given if isinstance(given, list) else [given]
    images: list[str] = []
    masks: list[str] = []
    for row in rows:
        pair = row if isinstance(row, dict) else {"image": row}
        for part, found in (("image", images), ("mask", masks)):
            text = pair.get(part)
            if text not in (None, ""):
                if not isinstance(text, str):
                    raise HTTPException(422, f"ControlNet: {part} should be base64, but it is {quoted(text)}")
                found.append(opened(text))
    if isinstance(mask, str) and mask:
        masks.append(opened(mask))
    return images, masks


def _resize(value: Any) -> Any:
    return _RESIZES.get(value.strip().casefold(), value) if isinstance(value, str) else value


def _union(value: Any) -> int | None:
    if value in (None, "", "Unknown"):
        return None
    known = {name.casefold(): number for number, name in enumerate(_UNION)}
    number = value if isinstance(value, int) else known.get(str(value).casefold())
    if number is None:
        raise HTTPException(422, f"ControlNet: union_control_type {quoted(value)} is unknown; {', '.join(_UNION)} are")
    return number


def detected(
    module: Module, picture: Image.Image, size: int | None, threshold_a: Any, threshold_b: Any
) -> tuple[Image.Image, Fields | None]:
    """What a module makes of a picture, its shorter side first brought to `size`; and the people that it found.

    These are as OpenPose writes them, None where the module looks for none. Raises DanqingError: missing weights.
    """
    if module.name in ("none", INPAINT):
        return picture.convert("RGB"), None
    if module.sized and size and size > 0:
        scale = size / min(picture.size)
        width, height = (max(round(side * scale), 1) for side in picture.size)
        if width * height > MAX_PIXELS:
            raise DanqingError(f"controls: processor_res {size} makes {width}x{height} of the picture; lower it")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    # the pipeline finds weights for units of requests
    request = read(TextToImage, {"controls": [{"model": "none", "module": module.name}]})
    numbers = _thresholds({"threshold_a": threshold_a, "threshold_b": threshold_b}, module)
    made = find_preprocessor(module.name, [*module_files(request).values()], **numbers)
    if not isinstance(made, Posing):
        return made(picture), None
    people = made.people(picture)
    return draw(people, picture.size), _posed(people, picture.size)


def _posed(people: Sequence[Person], size: tuple[int, int]) -> Fields:
    """People as OpenPose writes them, in pixels; what `render` draws."""
    rows = []
    for person in people:
        left, right = (*person.hands, (), ())[:2]
        parts = {"pose": person.body, "face": person.face, "hand_left": left, "hand_right": right}
        rows.append({f"{name}_keypoints_2d": _numbers(points) for name, points in parts.items()})
    return {"people": rows, "canvas_height": size[1], "canvas_width": size[0]}


def _numbers(points: Sequence[Point]) -> list[float] | None:
    """X, Y and 1 of each point, 0, 0 and 0 of one that is not there; None where there are no points."""
    return [number for point in points for number in ((*point, 1.0) if point else (0.0, 0.0, 0.0))] or None


def render(pose: Pose) -> Image.Image:
    """The people drawn as OpenPose's ControlNets are shown them."""
    size = pose.canvas_width, pose.canvas_height
    people = []
    for person in pose.people:
        body = _points(person.pose_keypoints_2d, size)
        hands = (_points(person.hand_left_keypoints_2d, size), _points(person.hand_right_keypoints_2d, size))
        missing: tuple[Point, ...] = (None,) * (PARTS - len(body))
        whole = tuple(hand for hand in hands if len(hand) == 21)
        people.append(Person((*body, *missing) if body else (), whole, _points(person.face_keypoints_2d, size)))
    return draw(people, size)


def _points(numbers: list[float] | None, size: tuple[int, int]) -> tuple[Point, ...]:
    """In pixels, also where all are given as shares of the canvas; None where a point is not there."""
    rows = [*zip(*[iter(numbers or ())] * 3)]
    there = [(x, y) for x, y, sure in rows if sure >= 1]
    scale = size if there and all(0 <= x <= 1 and 0 <= y <= 1 for x, y in there) else (1, 1)

    def inside(x: float, y: float) -> bool:
        return abs(x) < 1 << 15 and abs(y) < 1 << 15

    return tuple(
        (x * scale[0], y * scale[1]) if sure >= 1 and inside(x * scale[0], y * scale[1]) else None
        for x, y, sure in rows
    )
