"""Scripts that are chosen by `script_name`: those that make many requests of one, and those that change one.

Titles, orders of arguments and defaults are those of AUTOMATIC1111's scripts/.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import HTTPException

from danqing.library.settings import Settings
from danqing.pipeline.expand import fix_seeds
from danqing.pipeline.plot import from_rows, matrix, settable, xyz
from danqing.pipeline.upscale import upscaler_names
from danqing.prompts.lines import parse_lines
from danqing.requests import ImageToImage, Outpaint, Painting, TextToImage, read
from danqing.serve.a1111_script import Arg, Layout, Script, Values, Work
from danqing.serve.compare import check_axes, check_rows


def _loopback(work: Work, values: Values) -> None:
    if values["Append interrogated prompt at each iteration"] not in ("None", "", None):
        raise HTTPException(422, "Loopback: pictures are not interrogated between loops; choose None")
    work.fields |= {
        "loops": int(values["Loops"]),
        "final_denoising_strength": values["Final denoising strength"],
        "denoising_curve": str(values["Denoising strength curve"]),
    }


def _movie(work: Work, values: Values) -> None:
    """The extension's script for videos is listed, for by its name clients know that ControlNet is there at all.

    webuiapi would send the units of one request with all later ones.
    """
    raise HTTPException(422, "ControlNet m2m: videos are not painted; send their pictures one by one")


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
        specs.append("" if title == "Nothing" else f"{title}={text or ''}")
    check_axes(specs, request, settings)
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
    check_rows(rows, request, settings)
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
SELECTABLE: tuple[Script, ...] = (
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
    Script("ControlNet m2m", rest=True, change=_movie),
)
"""In the order in which they are listed."""
