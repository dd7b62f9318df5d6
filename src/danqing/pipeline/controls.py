"""A request's ControlNets and T2I-Adapters: found, loaded, and shown their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from danqing.adapters.annotators import find_preprocessor, missing
from danqing.adapters.control import Mode, Network, Resize, Unit
from danqing.adapters.preprocess import inpaint_hint, to_hint
from danqing.adapters.scene import TASKS, module_of
from danqing.checkpoints.controls import load_control
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import find, known
from danqing.library.settings import Settings, load_settings
from danqing.metadata.pixels import pixels_sha256
from danqing.models.controlnet import ControlNet
from danqing.pipeline.images import fit
from danqing.pipeline.run import Networks, Studio
from danqing.request_parts import ControlMode, ControlUnit
from danqing.requests import ImageToImage, Inpaint, Painting
from danqing.vocabulary import Module, find_module

MODES: Mapping[ControlMode, Mode] = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
    "guess mode": "guess",
}
RESIZES: Mapping[str, Resize] = {"just resize": "stretch", "crop and resize": "crop", "resize and fill": "fill"}
UNION: Mapping[str, int] = {
    **dict.fromkeys(("openpose", "dw openpose"), 0),
    "depth": 1,
    **dict.fromkeys(("soft edge", "scribble"), 2),
    **dict.fromkeys(("canny", "line art", "mlsd"), 3),
    "normal": 4,
    "segmentation": 5,
    "tile": 6,
    "inpaint": 7,
}
"""What a module makes, as xinsir's ControlNet union networks number it; by the beginning of the module's name."""
INPAINT = "inpaint"
"""The one module that is shown a mask besides the picture."""


def control_files(request: Painting) -> list[Path]:
    """Where each of the request's controls lies. Raises DanqingError for an unknown name."""
    settings = load_settings() if request.controls else None
    return [find(unit.model, "controlnet", settings).path for unit in request.controls if settings]


def module_files(request: Painting) -> dict[str, Path]:
    """Where the weights of the request's preprocessors lie, by the record's field.

    Raises DanqingError for one that is missing, or a module that is unknown.
    """
    settings = load_settings() if request.controls else None
    return {
        f"controls.{index}.module.{number}": path
        for index, unit in enumerate(request.controls)
        for number, path in enumerate(_weights(unit.module, settings) if settings else ())
    }


def _weights(text: str, settings: Settings) -> list[Path]:
    module, given = find_module(text)
    if module is None:
        try:
            return [_named(text, settings)]
        except DanqingError:
            if Path(text).suffix or "/" in text:
                raise
            find_preprocessor(text)  # which says what names there are
    if module is None or not module.files:
        return []
    if given and len(module.files) > 1:
        raise DanqingError(
            f"controls: the module '{module.name}' needs {len(module.files)} files; write its name alone"
        )
    if given:
        return [_named(given, settings)]
    return [_file(module, file, settings) for file in module.files]


def _named(text: str, settings: Settings) -> Path:
    """A preprocessor's file or folder; the Hub's folders of transformers' layout are of no kind of their own."""
    try:
        return find(text, "preprocessor", settings).path
    except DanqingError as error:
        try:
            return find(text, "other", settings).path
        except DanqingError:
            raise error from None


def _file(module: Module, file: str, settings: Settings) -> Path:
    """The library's file of that published name, or its one folder of that task."""
    entries = [entry for entry in known(settings) if entry.kind in ("preprocessor", "other")]
    if file in TASKS:
        paths = [entry.path for entry in entries if entry.path.is_dir() and _task(entry.path) == file]
    else:
        names = {file.casefold(), Path(file).with_suffix(".safetensors").name.casefold()}
        paths = [entry.path for entry in entries if entry.path.name.casefold() in names]
    if file in TASKS and len(paths) > 1:
        each = ", ".join(f"'{module.name}:{entry.name}'" for entry in entries if entry.path in paths)
        raise DanqingError(f"controls: several models could serve the module '{module.name}'; write one of {each}")
    if not paths:
        raise DanqingError(missing(module, [file]))
    return paths[0]


def _task(folder: Path) -> str:
    try:
        return find_module(module_of(folder))[0].files[0]  # type: ignore[union-attr]
    except DanqingError:
        return ""


def load_controls(request: Painting, model: Model) -> Networks:
    """The request's networks by their paths, each once. Raises DanqingError for one that does not fit the model."""
    return {path: load_control(path, model) for path in dict.fromkeys(control_files(request))}


def with_units(studio: Studio, request: Painting) -> Studio:
    """The studio with the controls of a resolved request besides its own, shown what preprocessors make of pictures.

    Raises DanqingError for one without a picture, an unknown preprocessor, or settings that make no sense.
    """
    if not request.controls:
        return studio
    units = (
        _unit(index, unit, studio.networks[path], request, studio)
        for index, (unit, path) in enumerate(zip(request.controls, control_files(request)))
    )
    return replace(studio, controls=(*studio.controls, *units))


def _unit(index: int, asked: ControlUnit, network: Network, request: Painting, studio: Studio) -> Unit:
    own = studio.pictures.get(f"controls.{index}.image")
    picture = studio.pictures.get("image") if own is None else own
    if picture is None:
        raise DanqingError(f"controls: '{asked.model}' is shown no picture; give one by its image")
    if _is_inpaint(asked.module):
        mask = studio.pictures.get("mask")
        if mask is None:
            raise DanqingError("controls: the preprocessor inpaint is for painting over with a mask, and there is none")
        hint = inpaint_hint(picture, mask.convert("L").resize(picture.size, Image.Resampling.NEAREST))
    else:
        hint = to_hint(_preprocessed(index, asked, picture, request, studio))
    return Unit(
        network,
        (hint,),
        weight=asked.weight,
        start=asked.guidance_start,
        end=asked.guidance_end,
        mode=MODES[asked.control_mode],
        resize=RESIZES[asked.resize_mode],
        tasks=_tasks(asked, network),
    )


def _tasks(asked: ControlUnit, network: Network) -> tuple[int, ...]:
    """The number of the picture's kind: the one that is given; else, for a union network, the one that the module makes.

    Raises DanqingError where nothing tells it.
    """
    if asked.union_control_type is not None:
        return (asked.union_control_type,)
    if not isinstance(network, ControlNet) or not network.control.tasks:
        return ()
    module = find_module(asked.module)[0]
    kind = next((kind for name, kind in UNION.items() if module is not None and module.name.startswith(name)), None)
    if kind is None:
        kinds = ", ".join(f"{kind} {name}" for kind, name in {kind: name for name, kind in UNION.items()}.items())
        raise DanqingError(
            f"controls: '{asked.model}' is a union network, which is told what kind of picture it is shown; give "
            f"union_control_type: {kinds}"
        )
    return (kind,)


def _is_inpaint(module: str) -> bool:
    found = find_module(module)[0]
    return found is not None and found.name == INPAINT


def _preprocessed(
    index: int, asked: ControlUnit, picture: Image.Image, request: Painting, studio: Studio
) -> Image.Image:
    """What the module makes of the picture. Kept for the next batches: networks are loaded for it, and let go."""
    sized = _sized(picture, asked, request)
    numbers = asked.threshold_a, asked.threshold_b
    key = "control picture", asked.module, numbers, sized.size, pixels_sha256(sized)
    if key not in studio.cache:
        mine = f"controls.{index}.module."
        paths = [path for field, path in module_files(request).items() if field.startswith(mine)]
        preprocess = find_preprocessor(
            asked.module, paths, threshold_a=numbers[0], threshold_b=numbers[1], device=studio.model.device
        )
        studio.cache[key] = preprocess(sized)
    made: Image.Image = studio.cache[key]
    return made


def _sized(picture: Image.Image, asked: ControlUnit, request: Painting) -> Image.Image:
    """The picture at the painting's size, so that what is found in it is as sharp; whole where only a part is painted.

    With `processor_res` its shorter side is that long, and what was found is made to fit.
    """
    if asked.processor_res is not None:
        scale = asked.processor_res / min(picture.size)
        width, height = (max(round(side * scale), 1) for side in picture.size)
        return fit(picture, width, height)
    tiles = isinstance(request, ImageToImage) and request.sd_upscale is not None
    masked = isinstance(request, Inpaint) and request.inpaint_full_res
    if tiles or masked:
        return picture
    return fit(picture, request.width or 0, request.height or 0, asked.resize_mode)
