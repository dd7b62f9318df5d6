"""AUTOMATIC1111's scripts: those that change a request (`alwayson_scripts`) and those that make many of one (`script_name`).

Titles, orders of arguments and defaults are those of AUTOMATIC1111's scripts/ and of the extensions named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from fastapi import HTTPException

from danqing.library.settings import Settings
from danqing.pipeline.axes import LABELS
from danqing.pipeline.expand import fix_seeds
from danqing.pipeline.plot import Plot, from_rows, matrix, settable, xyz
from danqing.pipeline.upscale import upscaler_names
from danqing.prompts.lines import parse_lines
from danqing.prompts.values import split_csv
from danqing.requests import ImageToImage, Inpaint, Outpaint, Painting, TextToImage, read
from danqing.serve.a1111_controlnet import Opened, units
from danqing.serve.a1111_options import Fields
from danqing.serve.a1111_requests import check_styles
from danqing.serve.accept import FILES, check_name, model_roots
from danqing.vocabulary import quoted

Values = Mapping[str, Any]
"""A script's arguments by their labels, with defaults where none were given."""


@dataclass(frozen=True)
class Arg:
    """An argument, in the order in which they are given."""

    label: str
    value: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None


@dataclass
class Work:
    """A request in the making."""

    kind: type[Painting]
    fields: Fields
    notes: list[str]
    opened: Opened
    settings: Settings


@dataclass(frozen=True)
class Layout:
    """What is answered of a plot's pictures."""

    plot: Plot
    legend: bool = True
    margin: int = 0
    sheet: bool = True
    """Whether all of them in one stand before the others."""
    sub_grids: bool = False
    lone: bool = True


@dataclass(frozen=True)
class Script:
    """A script as clients see it: exactly one of `change` and `plot` says what it does."""

    title: str
    args: tuple[Arg, ...] = ()
    tabs: tuple[type[Painting], ...] = (TextToImage, ImageToImage)
    change: Callable[[Work, Values], None] | None = None
    """Alters the request's fields."""
    plot: Callable[[Painting, Values, Settings, list[str]], Layout] | None = None
    alwayson: bool = False
    rest: bool = False
    """Takes any number of arguments, as `args`."""


def script_values(script: Script, given: Sequence[Any]) -> Values:
    """`given` by their labels. Raises HTTPException where there are too many."""
    if script.rest:
        return {"args": list(given)}
    if len(given) > len(script.args):
        raise HTTPException(422, f"Script '{script.title}' takes {len(script.args)} arguments, not {len(given)}")
    defaults = {arg.label: arg.value for arg in script.args}
    return defaults | {arg.label: value for arg, value in zip(script.args, given) if value is not None}


def find_script(name: str, kind: type[Painting], alwayson: bool) -> Script:
    """The script of that title, in any case, on txt2img or img2img. Raises HTTPException as AUTOMATIC1111 does."""
    tab = TextToImage if issubclass(kind, TextToImage) else ImageToImage
    here = [script for script in SCRIPTS if tab in script.tabs]
    folded = name.strip().casefold()
    found = next((script for script in here if script.title.casefold() == folded), None)
    if found is None and alwayson and folded.startswith("dynamic prompts v"):  # its title says its version
        found = next(script for script in here if script.title == "Dynamic Prompts")
    if found is None:
        known = ", ".join(script.title for script in here if script.alwayson == alwayson)
        raise HTTPException(422, f"Script {quoted(name)} not found; there are {known}")
    if alwayson and not found.alwayson:
        raise HTTPException(422, "Cannot have a selectable script in the always on scripts params")
    return found


def apply_alwayson(work: Work, given: Mapping[str, Any]) -> None:
    """All of `alwayson_scripts`, whose values are {"args": [...]}. Raises HTTPException."""
    for name, value in given.items():
        script = find_script(name, work.kind, True)
        args = value.get("args", []) if isinstance(value, dict) else value
        if not isinstance(args, list):
            raise HTTPException(422, f"Script '{script.title}': its args should be a list, but they are {quoted(args)}")
        apply(script, work, script_values(script, args))


def apply(script: Script, work: Work, values: Values) -> None:
    """What the script changes in the request. Raises HTTPException for arguments that it does not take."""
    if script.change is not None:
        with arguments_of(script):
            script.change(work, values)


@contextmanager
def arguments_of(script: Script) -> Iterator[None]:
    """Arguments are any JSON: those of other types than the script takes are the caller's fault."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise HTTPException(422, f"Script '{script.title}': its arguments are of other types than it takes") from None


def script_info() -> list[dict[str, Any]]:
    """What /sdapi/v1/script-info answers."""
    rows = []
    for tab in (TextToImage, ImageToImage):
        for script in SCRIPTS:
            if tab in script.tabs:
                args = [{**vars(arg), "choices": _choices(arg)} for arg in script.args]
                rows.append(
                    {
                        "name": script.title.lower(),
                        "is_alwayson": script.alwayson,
                        "is_img2img": tab is ImageToImage,
                        "args": args,
                    }
                )
    return rows


def script_names(tab: type[Painting]) -> list[str]:
    """Titles in small letters, as AUTOMATIC1111 lists them."""
    return [script.title.lower() for script in SCRIPTS if tab in script.tabs]


def _choices(arg: Arg) -> list[str] | None:
    return None if arg.choices is None else list(arg.choices)


# --- always on --------------------------------------------------------------------------------------------------------


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
            if path.is_file():
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


# --- selectable -------------------------------------------------------------------------------------------------------


def _loopback(work: Work, values: Values) -> None:
    if values["Append interrogated prompt at each iteration"] not in ("None", "", None):
        raise HTTPException(422, "Loopback: pictures are not interrogated between loops; choose None")
    work.fields |= {
        "loops": int(values["Loops"]),
        "final_denoising_strength": values["Final denoising strength"],
        "denoising_curve": str(values["Denoising strength curve"]),
    }


def _sd_upscale(work: Work, values: Values) -> None:
    upscaler = values["Upscaler"]
    if isinstance(upscaler, int):
        names = upscaler_names(work.settings)
        if not 0 <= upscaler < len(names):
            raise HTTPException(
                422, f"SD upscale: there are {len(names)} upscalers, but number {upscaler} is asked for"
            )
        upscaler = names[upscaler]
    work.fields["sd_upscale"] = {
        "overlap": int(values["Tile overlap"]),
        "upscaler": upscaler,
        "scale": values["Scale Factor"],
    }
    work.fields.pop("resize_mode", None)


def _outpainting(work: Work, values: Values) -> None:
    """Both of AUTOMATIC1111's scripts for it; Danqing's own way to fill what is new stands in for theirs."""
    pixels = int(values["Pixels to expand"])
    sides = values["Outpainting direction"]
    if not isinstance(sides, list) or not sides or set(sides) - {"left", "right", "up", "down"}:
        raise HTTPException(422, "Outpainting direction: should be a list of left, right, up and down")
    for name in ("width", "height", "resize_mode", "mask", "mask_blur_y", "inpaint_full_res", "inpaint_full_res_padding",
                 "inpainting_mask_invert"):  # fmt: skip
        work.fields.pop(name, None)
    fill = values.get("Masked content", "fill")
    work.fields |= dict.fromkeys(sides, pixels)
    work.fields |= {"mask_blur": int(values["Mask blur"]), "inpainting_fill": fill}
    work.kind = Outpaint


AXES: tuple[tuple[str, type[Painting] | None], ...] = (
    ("Nothing", None), ("Seed", None), ("Var. seed", None), ("Var. strength", None), ("Steps", None),
    ("Hires steps", TextToImage), ("CFG Scale", None), ("Image CFG Scale", ImageToImage), ("Prompt S/R", None),
    ("Prompt order", None), ("Sampler", TextToImage), ("Hires sampler", TextToImage), ("Sampler", ImageToImage),
    ("Checkpoint name", None), ("Negative Guidance minimum sigma", None), ("Sigma Churn", None), ("Sigma min", None),
    ("Sigma max", None), ("Sigma noise", None), ("Schedule type", None), ("Schedule min sigma", None),
    ("Schedule max sigma", None), ("Schedule rho", None), ("Beta schedule alpha", None), ("Beta schedule beta", None),
    ("Eta", None), ("Clip skip", None), ("Denoising", None), ("Initial noise multiplier", None), ("Extra noise", None),
    ("Hires upscaler", TextToImage), ("Cond. Image Mask Weight", ImageToImage), ("VAE", None), ("Styles", None),
    ("UniPC Order", None), ("Face restore", None), ("Token merging ratio", None), ("Token merging ratio high-res", None),
    ("Always discard next-to-last sigma", None), ("SGM noise multiplier", None), ("Refiner checkpoint", None),
    ("Refiner switch at", None), ("RNG source", None), ("FP8 mode", None), ("Size", None),
)  # fmt: skip
"""The X/Y/Z plot's axes in AUTOMATIC1111's order, and on which tab alone they are: clients name them by their numbers."""


def _axis_title(value: Any, tab: type[Painting]) -> str:
    here = [title for title, only in AXES if only in (None, tab)]
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(here):
            raise HTTPException(
                422, f"X/Y/Z plot: axis {value} is unknown; 0 to {len(here) - 1} are: {', '.join(here)}"
            )
        return here[value]
    return str(value or "Nothing")


def _xyz(request: Painting, values: Values, settings: Settings, notes: list[str]) -> Layout:
    tab = TextToImage if isinstance(request, TextToImage) else ImageToImage
    specs = []
    for letter in "XYZ":
        title = _axis_title(values[f"{letter} type"], tab)
        chosen, text = values[f"{letter} values dropdown"], values[f"{letter} values"]
        if isinstance(chosen, list) and chosen and not (text and values["Use text inputs instead of dropdowns"]):
            text = _csv(chosen)
        _check_axis(title, str(text or ""), settings)
        specs.append("" if title == "Nothing" else f"{title}={text or ''}")
    vary = "".join(letter for letter in "xyz" if values[f"Vary seeds for {letter.upper()}"])
    plot = xyz(
        request, *specs, fixed_seeds=not values["Keep -1 for seeds"], vary_seeds=vary, settings=settings
    )  # fmt: skip
    return Layout(
        plot,
        legend=bool(values["Draw legend"]),
        margin=_margin(values),
        sub_grids=bool(values["Include Sub Grids"]),
        lone=bool(values["Include Sub Images"]),
    )


def _margin(values: Values) -> int:
    return min(max(int(values["Grid margins (px)"]), 0), 500)


def _check_axis(title: str, text: str, settings: Settings) -> None:
    """Values that name files name those of the model folders. Raises DanqingError for a path out of them."""
    if title == "Styles":
        check_styles(split_csv(text))
    elif LABELS.get(title, title) in FILES:
        for name in split_csv(text):
            check_name(name, title, model_roots(settings))


def _csv(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue().strip()


def _matrix(request: Painting, values: Values, settings: Settings, notes: list[str]) -> Layout:
    plot = matrix(
        request,
        negative=values["Select prompt"] == "negative",
        at_start=bool(values["Put variable parts at start of prompt"]),
        delimiter=", " if values["Select joining char"] == "comma" else " ",
        different_seeds=bool(values["Use different seed for each picture"]),
        settings=settings,
    )
    return Layout(plot, margin=_margin(values))


def _from_text(request: Painting, values: Values, settings: Settings, notes: list[str]) -> Layout:
    where, text = values["Insert prompts at the"], values["List of prompt inputs"]
    if text == "" and where not in ("start", "end"):  # before 1.9 the list was the third argument
        where, text = "start", where
    rows, left_out = parse_lines(str(text), settable(type(request)), "List of prompt inputs")
    notes += left_out
    roots = model_roots(settings)
    for row in rows:
        for name in row.keys() & FILES:
            check_name(str(row[name]), name, roots)
        check_styles(row.get("styles", ()))
    fixed = fix_seeds(request) if values["Use same random seed for all lines"] else request
    iterates = bool(values["Iterate seed every line"])
    plot = from_rows(fixed, rows, iterate_seeds=iterates, settings=settings)
    if not request.prompt:
        return Layout(plot, sheet=False)

    def joined(cell: Painting) -> Painting:
        if cell.prompt == request.prompt:
            return cell
        parts = (cell.prompt, request.prompt) if where == "start" else (request.prompt, cell.prompt)
        return read(type(cell), {**cell.model_dump(exclude_unset=True), "prompt": " ".join(parts)})

    cells = tuple(replace(cell, requests=tuple(map(joined, cell.requests))) for cell in plot.cells)
    return Layout(replace(plot, cells=cells), sheet=False)


_IMG2IMG: tuple[type[Painting], ...] = (ImageToImage,)
_SIDES = ("left", "right", "up", "down")
SCRIPTS: tuple[Script, ...] = (
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
        _IMG2IMG,
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
    Script(
        "Prompt matrix",
        (
            Arg("Put variable parts at start of prompt", False),
            Arg("Use different seed for each picture", False),
            Arg("Select prompt", "positive", choices=("positive", "negative")),
            Arg("Select joining char", "comma", choices=("comma", "space")),
            Arg("Grid margins (px)", 0, 0, 500, 2),
        ),
        plot=_matrix,
    ),
    Script(
        "Prompts from file or textbox",
        (
            Arg("Iterate seed every line", False),
            Arg("Use same random seed for all lines", False),
            Arg("Insert prompts at the", "start", choices=("start", "end")),
            Arg("List of prompt inputs", ""),
        ),
        plot=_from_text,
    ),
    Script(
        "X/Y/Z plot",
        (
            *(
                Arg(f"{letter} {part}", value)
                for letter in "XYZ"
                for part, value in (("type", 1 if letter == "X" else 0), ("values", ""), ("values dropdown", None))
            ),
            Arg("Draw legend", True),
            Arg("Include Sub Images", False),
            Arg("Include Sub Grids", False),
            Arg("Keep -1 for seeds", False),
            *(Arg(f"Vary seeds for {letter}", False) for letter in "XYZ"),
            Arg("Grid margins (px)", 0, 0, 500, 2),
            Arg("Use text inputs instead of dropdowns", False),
        ),
        plot=_xyz,
    ),
    Script(
        "Loopback",
        (
            Arg("Loops", 2, 1, 32, 1),
            Arg("Final denoising strength", 0.5, 0, 1, 0.01),
            Arg("Denoising strength curve", "Linear", choices=("Aggressive", "Linear", "Lazy")),
            Arg("Append interrogated prompt at each iteration", "None"),
        ),
        _IMG2IMG,
        change=_loopback,
    ),
    Script(
        "SD upscale",
        (
            Arg("info", ""),
            Arg("Tile overlap", 64, 0, 256, 16),
            Arg("Upscaler", "None"),
            Arg("Scale Factor", 2.0, 1, 4, 0.05),
        ),
        _IMG2IMG,
        change=_sd_upscale,
    ),
    Script(
        "Outpainting mk2",
        (
            Arg("info", ""),
            Arg("Pixels to expand", 128, 8, 256, 8),
            Arg("Mask blur", 8, 0, 64, 1),
            Arg("Outpainting direction", list(_SIDES), choices=_SIDES),
            Arg("Fall-off exponent (lower=higher detail)", 1.0, 0, 4, 0.01),
            Arg("Color variation", 0.05, 0, 1, 0.01),
        ),
        _IMG2IMG,
        change=_outpainting,
    ),
    Script(
        "Poor man's outpainting",
        (
            Arg("Pixels to expand", 128, 8, 256, 8),
            Arg("Mask blur", 4, 0, 64, 1),
            Arg("Masked content", "fill", choices=("fill", "original", "latent noise", "latent nothing")),
            Arg("Outpainting direction", list(_SIDES), choices=_SIDES),
        ),
        _IMG2IMG,
        change=_outpainting,
    ),
)
"""In the order in which they are listed."""
