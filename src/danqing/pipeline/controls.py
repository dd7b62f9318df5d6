"""A request's ControlNets and T2I-Adapters: found, loaded, and shown their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from danqing.adapters.control import Mode, Resize, Unit
from danqing.adapters.preprocess import find_preprocessor, inpaint_hint, to_hint
from danqing.checkpoints.controls import load_control
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import find
from danqing.library.settings import load_settings
from danqing.models.controlnet import ControlNet
from danqing.models.t2i_adapter import T2IAdapter
from danqing.pipeline.images import fit
from danqing.pipeline.run import Networks, Studio
from danqing.requests import ControlMode, ControlUnit, ImageToImage, Inpaint, Painting

MODES: Mapping[ControlMode, Mode] = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
    "guess mode": "guess",
}
RESIZES: Mapping[str, Resize] = {"just resize": "stretch", "crop and resize": "crop", "resize and fill": "fill"}
INPAINT = "inpaint"
"""The one preprocessor that is shown a mask besides the picture."""


def control_files(request: Painting) -> list[Path]:
    """Where each of the request's controls lies. Raises DanqingError for an unknown name."""
    settings = load_settings() if request.controls else None
    return [find(unit.model, "controlnet", settings).path for unit in request.controls if settings]


def load_controls(request: Painting, model: Model) -> Networks:
    """The request's networks by their paths, each once. Raises DanqingError for one that does not fit the model."""
    return {path: load_control(path, model) for path in dict.fromkeys(control_files(request))}


def units(request: Painting, networks: Networks, pictures: Mapping[str, Image.Image]) -> tuple[Unit, ...]:
    """The controls of a resolved request, with what its preprocessors make of their pictures.

    Raises DanqingError for one without a picture, an unknown preprocessor, or settings that make no sense.
    """
    return tuple(
        _unit(index, unit, networks[path], request, pictures)
        for index, (unit, path) in enumerate(zip(request.controls, control_files(request)))
    )


def with_units(studio: Studio, request: Painting) -> Studio:
    """The studio with the controls of a resolved request besides its own."""
    if not request.controls:
        return studio
    return replace(studio, controls=(*studio.controls, *units(request, studio.networks, studio.pictures)))


def _unit(
    index: int,
    asked: ControlUnit,
    network: ControlNet | T2IAdapter,
    request: Painting,
    pictures: Mapping[str, Image.Image],
) -> Unit:
    own = pictures.get(f"controls.{index}.image")
    picture = pictures.get("image") if own is None else own
    if picture is None:
        raise DanqingError(f"controls: '{asked.model}' is shown no picture; give one by its image")
    module = asked.module.strip().lower()
    if module == INPAINT or module.startswith("inpaint_"):
        mask = pictures.get("mask")
        if mask is None:
            raise DanqingError("controls: the preprocessor inpaint is for painting over with a mask, and there is none")
        hint = inpaint_hint(picture, mask.convert("L").resize(picture.size, Image.Resampling.NEAREST))
    else:
        hint = to_hint(find_preprocessor(asked.module)(_sized(picture, asked, request)))
    tasks = () if asked.union_control_type is None else (asked.union_control_type,)
    return Unit(
        network,
        (hint,),
        weight=asked.weight,
        start=asked.guidance_start,
        end=asked.guidance_end,
        mode=MODES[asked.control_mode],
        resize=RESIZES[asked.resize_mode],
        tasks=tasks,
    )


def _sized(picture: Image.Image, asked: ControlUnit, request: Painting) -> Image.Image:
    """The picture at the painting's size, so that what is found in it is as sharp; whole where only a part is painted."""
    tiles = isinstance(request, ImageToImage) and request.sd_upscale is not None
    masked = isinstance(request, Inpaint) and request.inpaint_full_res
    if tiles or masked:
        return picture
    return fit(picture, request.width or 0, request.height or 0, asked.resize_mode)
