"""A request's image prompts: their files found and loaded, their pictures looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from danqing.adapters.apply import Use, apply
from danqing.adapters.control import Unit
from danqing.adapters.identity import Identity, draw_keypoints, identity, require_trigger
from danqing.adapters.image_prompt import picture_prompt
from danqing.adapters.lora import read_opened
from danqing.adapters.preprocess import to_hint
from danqing.adapters.reference import ReferencePicture
from danqing.adapters.steer import Steering
from danqing.checkpoints.controls import load_control
from danqing.checkpoints.files import open_file
from danqing.checkpoints.image_prompts import (
    TOWERS,
    ip_adapter_config,
    load_faces,
    load_image_prompt,
    load_tower,
    lora_part,
    tower_widths,
)
from danqing.checkpoints.recognise import kind_of
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import find, known
from danqing.library.settings import Settings, load_settings
from danqing.models.controlnet import ControlNet
from danqing.models.ip_adapter import IPAdapter, IPAdapterConfig
from danqing.models.photomaker import PhotoMaker
from danqing.paths import path_of
from danqing.pipeline.adapters import stamps
from danqing.pipeline.images import flatten, mask_pixels
from danqing.pipeline.run import Prompter, Studio
from danqing.request_parts import REFERENCE, ImagePrompt
from danqing.requests import Painting, TextToImage

_ALWAYS = {"model", "guidance_start", "guidance_end"}
_WEIGHED = _ALWAYS | {"weight", "weight_type", "combine", "mask"}
_FIELDS: Mapping[str, set[str]] = {
    REFERENCE: _ALWAYS | {"images", "weight", "style_fidelity"},
    "an IP-Adapter of pictures": _WEIGHED | {"images", "encoder"},
    "an adapter of faces": _WEIGHED | {"faces"},
    "an adapter of faces with an identity_net": _WEIGHED
    | {"faces", "images", "identity_net", "keypoints", "identity_weight"},
    "an adapter of faces and pictures": _WEIGHED | {"faces", "images", "encoder"},
    "PhotoMaker v1": _ALWAYS | {"images"},
    "PhotoMaker v2": _ALWAYS | {"images", "faces"},
}
"""Which settings have an effect with what."""


def load_prompters(request: Painting, model: Model) -> tuple[Prompter, ...]:
    """What the request's image prompts are made with, in their order, each file loaded once.

    An image tower that is not named is the first of the library's that fits. Raises DanqingError for an unknown name, a
    file that does not fit the model, or where no tower fits.
    """
    loaded: dict[Path, Any] = {}

    def once(path: Path | None, load: Callable[[Path, Model], Any]) -> Any:
        if path is not None and path not in loaded:
            loaded[path] = load(path, model)
        return None if path is None else loaded[path]

    return tuple(
        Prompter(
            once(files.get("model"), load_image_prompt),
            once(files.get("encoder"), load_tower),
            once(files.get("identity_net"), _load_identity_net),
            files,
        )
        for files in adapter_files(request)
    )


def adapter_files(request: Painting) -> list[dict[str, Path]]:
    """`Prompter.files` of each of the request's image prompts. Raises DanqingError for an unknown name, or where no image
    tower fits."""
    settings = load_settings() if request.image_prompts else None
    return [
        {} if settings is None or _is_reference(asked) else _files(asked, settings) for asked in request.image_prompts
    ]


def _files(asked: ImagePrompt, settings: Settings) -> dict[str, Path]:
    """`Prompter.files`."""
    path = find(asked.model, "ip_adapter", settings).path
    files = {"model": path}
    if asked.identity_net is not None:
        files["identity_net"] = find(asked.identity_net, "controlnet", settings).path
    if asked.faces is not None:
        files["faces"] = path_of(asked.faces)
    file = open_file(path)
    if kind_of(file.shapes).name == "ip-adapter" and (config := ip_adapter_config(file)).look != "face":
        files["encoder"] = _tower(path, config, asked.encoder, settings)
    elif asked.encoder is not None:
        raise DanqingError(f"image_prompts: encoder has no effect with '{asked.model}'; leave it out")
    return files


def _load_identity_net(path: Path, model: Model) -> ControlNet:
    network = load_control(path, model)
    if not isinstance(network, ControlNet):
        raise DanqingError(f"{path}: is a T2I-Adapter; InstantID's identity_net is a ControlNet")
    return network


def prompt_files(prompters: Sequence[Prompter]) -> dict[str, Path]:
    """The files of image prompts by the record's field: `image_prompts.0.model` ..."""
    return {
        f"image_prompts.{index}.{name}": path
        for index, prompter in enumerate(prompters)
        for name, path in prompter.files.items()
    }


def with_prompt_loras(studio: Studio, request: Painting) -> Studio:
    """The studio whose model, and that of a hires fix's second pass, wear what PhotoMaker's and FaceID's files bring
    for its weights, each file once. One at weight 0 brings nothing.

    Raises DanqingError for a LoRA that does not fit, or a hires checkpoint of another family.
    """
    other = studio.others.get("hr_checkpoint_name")
    if request.image_prompts and other is not None and other.family.denoiser != studio.model.family.denoiser:
        raise DanqingError("image_prompts: the hires checkpoint is of another family, and they do not fit both")
    asked = zip(request.image_prompts, studio.prompters)
    paths = dict.fromkeys(prompter.files["model"] for each, prompter in asked if each.weight and prompter.files)
    parts = {path: part for path in paths if (part := lora_part(path, studio.model))}
    if not parts:
        return studio

    def wear(model: Model) -> Model:
        uses = [Use(read_opened(part, model.family, path.stem)) for path, part in parts.items()]
        return apply(model, uses, studio.note)

    others = {**studio.others, **({} if other is None else {"hr_checkpoint_name": wear(other)})}
    cache = studio.cache.setdefault(("prompters", *map(stamps, parts)), {})
    return replace(studio, model=wear(studio.model), others=others, cache=cache)


def with_prompts(studio: Studio, request: Painting) -> Studio:
    """The studio with the image prompts of a resolved request besides what steers it already.

    One at weight 0 is told, and is not there. Raises DanqingError for one without what it looks at, or with a setting
    that has no effect, for several PhotoMakers, and for a prompt that does not have PhotoMaker's word.
    """
    steering = list(studio.controls)
    for index, (asked, prompter) in enumerate(zip(request.image_prompts, studio.prompters)):
        by_points = asked.identity_net is not None and asked.identity_weight
        if not asked.weight:
            what = "acts by its identity_net alone" if by_points else "changes nothing"
            studio.note(f"image_prompts: '{asked.model}' {what}: its weight is 0")
        if asked.weight or by_points:
            steering += _prompt(index, asked, request, studio, prompter)
    shown = sum(isinstance(unit, Identity) for unit in steering)
    if shown > 1:
        raise DanqingError("image_prompts: one PhotoMaker at a time; give it all photographs")
    hires = (request.hr_prompt if isinstance(request, TextToImage) and request.enable_hr else "") or request.prompt
    for text in (request.prompt, hires) if shown else ():
        require_trigger(text)
    return replace(studio, controls=tuple(steering))


def _prompt(index: int, asked: ImagePrompt, request: Painting, studio: Studio, by: Prompter) -> list[Steering]:
    key = f"image_prompts.{index}"
    shown = [studio.pictures[f"{key}.images.{number}"] for number in range(len(asked.images))]
    if not shown and "image" in studio.pictures:
        shown = [studio.pictures["image"]]
    pixels = [to_hint(flatten(picture)) for picture in shown]
    start, end = asked.guidance_start, asked.guidance_end
    if _is_reference(asked):
        _require_effects(asked, REFERENCE)
        if not pixels:
            raise DanqingError("image_prompts: reference only is shown no picture; give one by its images")
        return [ReferencePicture(each, asked.weight, start, end, asked.style_fidelity) for each in pixels]
    network = by.network
    faces = load_faces(by.files["faces"]) if "faces" in by.files else None
    if isinstance(network, PhotoMaker):
        _require_effects(asked, "PhotoMaker v2" if network.photomaker.faces else "PhotoMaker v1")
        return [identity(network, pixels, faces, start, end)]
    assert isinstance(network, IPAdapter)
    look = network.config.look
    title = {"face": "an adapter of faces", "face and patches": "an adapter of faces and pictures"}.get(look)
    if look == "face" and asked.identity_net is not None:
        title = "an adapter of faces with an identity_net"
    _require_effects(asked, title or "an IP-Adapter of pictures")
    several = len(faces) if faces is not None else len(pixels)
    if asked.combine != "concat" and several < 2:
        raise DanqingError("image_prompts: combine has no effect on a single picture; leave it out")
    if look != "face" and not pixels:
        raise DanqingError(f"image_prompts: '{asked.model}' is shown no picture; give one by its images")
    mask = studio.pictures.get(f"{key}.mask")
    prompt = picture_prompt(
        network,
        studio.model.family.denoiser,
        tower=by.tower,
        pixels=pixels if look != "face" else (),
        faces=faces,
        combine=asked.combine,
        kind=asked.weight_type,
        weight=asked.weight,
        start=start,
        end=end,
        mask=None if mask is None else mask_pixels(mask),
    )
    if by.identity_net is None:
        return [prompt]
    hint = _keypoints(asked, _canvas_size(request, studio), pixels if asked.images else [])
    return [prompt, Unit(by.identity_net, (hint,), weight=asked.identity_weight, start=start, end=end, listens=prompt)]


def _canvas_size(request: Painting, studio: Studio) -> tuple[int, int]:
    """(width, height) of the picture in which points are given: the painting, or the whole of which parts are
    painted."""
    parts = getattr(request, "inpaint_full_res", False) or getattr(request, "sd_upscale", None) is not None
    return studio.pictures["image"].size if parts else (request.width or 0, request.height or 0)


def _keypoints(asked: ImagePrompt, size: tuple[int, int], pixels: list[Tensor]) -> Tensor:
    """The face's points as InstantID's network is shown them, in a picture of `size` = (width, height)."""
    if asked.keypoints and pixels:
        raise DanqingError("image_prompts: images has no effect beside keypoints, which are drawn; leave one out")
    if asked.keypoints:
        points = list(zip(asked.keypoints[::2], asked.keypoints[1::2]))
        return to_hint(draw_keypoints(points, size))
    if len(pixels) != 1:
        raise DanqingError("image_prompts: InstantID wants the face's keypoints, or one picture of them")
    return pixels[0]


def _is_reference(asked: ImagePrompt) -> bool:
    return asked.model.strip().casefold().replace("_", " ").replace("-", " ") == REFERENCE


def _require_effects(asked: ImagePrompt, title: str) -> None:
    for name, info in ImagePrompt.model_fields.items():
        if name not in _FIELDS[title] and getattr(asked, name) != info.default:
            raise DanqingError(f"image_prompts: {name} has no effect with {title}; leave it out")


def _tower(path: Path, config: IPAdapterConfig, name: str | None, settings: Settings) -> Path:
    """The image tower that an adapter looks through."""
    answer = "vector" if config.look == "vector" else "patches"
    wanted = TOWERS.get((answer, config.feature_width), f"whose {answer} have {config.feature_width} numbers")
    if name is not None:
        tower = find(name, "clip_vision", settings).path
        width = tower_widths(tower)[answer]
        if width != config.feature_width:
            other = TOWERS.get((answer, width), f"whose {answer} have {width} numbers")
            raise DanqingError(f"{tower}: is the image tower {other}; '{path.name}' looks through {wanted}")
        return tower
    for entry in known(settings):
        if entry.kind == "clip_vision" and _widths(entry.path).get(answer) == config.feature_width:
            return entry.path
    raise DanqingError(
        f"{path}: looks at pictures through CLIP's image tower {wanted}; give its file by encoder, or put it into the "
        "folder clip_vision"
    )


def _widths(path: Path) -> dict[str, int]:
    try:
        return tower_widths(path)
    except DanqingError:
        return {}
