"""A request becomes pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from danqing.adapters.steer import Steering
from danqing.checkpoints.load import with_autoencoder
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.clip_vision import SafetyChecker
from danqing.pipeline.adapters import dress
from danqing.pipeline.controls import control_files, load_controls, module_files, with_units
from danqing.pipeline.details import with_details
from danqing.pipeline.detect import Detect
from danqing.pipeline.engines import for_calls, recorded
from danqing.pipeline.expand import expand
from danqing.pipeline.fast import fast_model
from danqing.pipeline.hires import text_to_image, upscaler_file
from danqing.pipeline.image_prompts import load_prompters, prompt_files, with_prompt_loras, with_prompts
from danqing.pipeline.images import open_pictures, with_references
from danqing.pipeline.models import Say, find_vae, hashes_later, load, print_note
from danqing.pipeline.over import image_to_image
from danqing.pipeline.picture import Picture, platform_of
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import Aside, Painter, Studio, Wrap, unseen
from danqing.pipeline.safety import flag, folder_of, load_checker
from danqing.pipeline.sd_upscale import sd_upscaled
from danqing.pipeline.upscale import upscaler_path
from danqing.prompts.encode import Cache
from danqing.request_parts import Reference
from danqing.requests import ImageToImage, Kind, Painting, ResolvedRequest, TextToImage, read
from danqing.sampling.noise import DRAWING
from danqing.sampling.samplers import PICTURE_BY_PICTURE

PAINTERS: Mapping[Kind, Callable[[ResolvedRequest, Studio], Painter]] = {
    "txt2img": text_to_image,
    "img2img": image_to_image,
    "inpaint": image_to_image,
    "outpaint": image_to_image,
}
"""How each kind of request is painted."""


@dataclass(frozen=True, eq=False)
class Progress:
    """A finished step of a batch; with its last step come the batch's pictures."""

    batch: int
    """From 0."""
    batches: int
    step: int
    """Steps done in this batch, from 1, in all its passes."""
    steps: int
    """Of this batch, as far as is known: what a detailer finds adds to them."""
    latents: Tensor
    """(B, C, H, W) float32, in the samplers' coordinates."""
    clean: Tensor
    """(B, C, H, W): what the model takes the pictures to be by now."""
    pictures: tuple[Picture, ...] = ()


def paint(request: Painting | str, model: Model | None = None, **options: Any) -> list[Picture]:
    """Paint pictures and return them all. Takes what `stream` takes."""
    return [picture for event in stream(request, model, **options) for picture in event.pictures]


def stream(
    request: Painting | str,
    model: Model | None = None,
    *,
    say: Say = print_note,
    safety_checker: bool = False,
    wrap: Wrap | None = None,
    cache: Cache | None = None,
    models: Mapping[str, Model] | None = None,
    detectors: Mapping[str, Detect] | None = None,
    units: Sequence[Steering] = (),
    aside: Aside = unseen,
    **fields: Any,
) -> Generator[Progress, None, None]:
    """Paint step by step. Closing the iterator stops after the step; what was yielded stays good.

    `request` is a `TextToImage`, `ImageToImage`, `Inpaint` or `Outpaint`, or a prompt; `fields` are the request's.
    Without a `model`, the request's own is loaded, or the bundled one. `say` is told, a line each, what is not as
    asked. `safety_checker` runs the checkpoint's own, and blackens what it flags. `wrap` puts guidance of your own
    around the denoiser (`sampling.guidance.classifier_guidance` for one). `cache` keeps encoded prompts for later
    requests to one model. `models` are loaded already, by the names that the request has for them (refiner, hires
    fix); others are loaded. `detectors` are functions that find things for detailers, by name, likewise. `units` are
    ControlNets, T2I-Adapters and image prompts besides the request's own, each with what it is shown
    (`adapters.steer.Steering`); the record does not name them. `aside` is told (what, done, of how many) of long work
    between the steps: an upscaler's tiles, an inversion.
    Raises DanqingError for a field that is wrong, a checkpoint or picture that does not fit, or memory that is too
    small.
    """
    if isinstance(request, str):
        request = read(TextToImage, {"prompt": request, **fields})
    elif fields:
        request = read(type(request), {**request.model_dump(exclude_unset=True), **fields})
    if model is None:
        model = load(request.model, vae=request.vae)
    elif request.vae and (path := find_vae(request.vae)) != model.vae_path:
        model = with_autoencoder(model, path)
    studio = Studio(
        model,
        say,
        wrap,
        {} if cache is None else cache,
        open_pictures(request),
        _others(request, model, models or {}),
        detectors or {},
        tuple(units),
        load_controls(request, model),
        load_prompters(request, model),
        aside,
    )
    return _parts(expand(request), studio, safety_checker)


def _others(request: Painting, model: Model, given: Mapping[str, Model]) -> dict[str, Model]:
    """The request's further models, by its field. Raises DanqingError for one that cannot go on with these latents."""
    others: dict[str, Model] = {}
    for field in ("refiner_checkpoint", "hr_checkpoint_name"):
        name = getattr(request, field, None)
        if name is None or (field == "hr_checkpoint_name" and not getattr(request, "enable_hr", False)):
            continue
        dtype = str(model.dtype).removeprefix("torch.")
        engine, quantize = recorded(platform_of(model).engine)
        other = given.get(name) or load(
            name, device=str(model.device), dtype=dtype, memory=model.memory, engine=engine, quantize=quantize
        )
        ours, theirs = model.family, other.family
        if ours.autoencoder != theirs.autoencoder or ours.denoiser.out_channels != theirs.denoiser.out_channels:
            raise DanqingError(f"{field}: {theirs.title} has other latents than {ours.title}; choose one of its kind")
        others[field] = other
    return others


def _parts(requests: Sequence[Painting], studio: Studio, safety_checker: bool) -> Generator[Progress, None, None]:
    """The batches of all requests that styles and wildcards made of one, counted through."""
    for index, request in enumerate(requests):
        for event in _batches(request, studio, safety_checker):
            batches = event.batches * len(requests)
            yield replace(event, batch=index * event.batches + event.batch, batches=batches)


@torch.no_grad()
def _batches(request: Painting, studio: Studio, safety_checker: bool) -> Generator[Progress, None, None]:
    notes: list[str] = []
    say, model = studio.note, studio.model

    def note(line: str) -> None:
        if line not in notes:
            notes.append(line)
            say(line)

    resolved, files = resolved_request(request, studio)
    for line in resolved.notes:
        note(line)
    asked = resolved.request
    studio = replace(studio, model=for_calls(model, (asked.steps or 0) * asked.batch_size * asked.n_iter))
    model = studio.model
    dressed = dress(resolved.request, with_prompt_loras(replace(studio, note=note), resolved.request))
    studio, files = with_units(dressed.studio, resolved.request), files | dressed.paths
    studio = with_prompts(studio, resolved.request)
    resolved = resolved.model_copy(update={"others": {**resolved.others, **dressed.references}})
    checker = load_checker(model) if safety_checker else None
    if checker is None and folder_of(model):
        note("the checkpoint brings a safety checker, which is not run unless asked for (--safety-checker)")
    hashes, platform = hashes_later(files), platform_of(model)
    in_tiles = isinstance(resolved.request, ImageToImage) and resolved.request.sd_upscale is not None
    make = sd_upscaled if in_tiles else PAINTERS[resolved.kind]
    painter = with_details(make(resolved, studio), resolved, studio)
    size, batches = resolved.request.batch_size, resolved.request.n_iter
    if resolved.request.sampler_name in PICTURE_BY_PICTURE and not DRAWING[resolved.request.dialect].batched:
        size, batches = 1, size * batches
    for batch in range(batches):
        singles = [resolved.picture(batch * size + index) for index in range(size)]
        latents = clean = torch.empty(0)
        done, told, work = 0, 0, painter.batch(singles)
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                images: list[Image.Image] = finished.value
                break
            if told < done:  # it was not the last: a detailer has added some
                yield Progress(batch, batches, done, painter.count, latents, clean)
            latents, clean, done = step.latents, step.clean, done + 1
            if done < painter.count:  # the last step is told with its pictures
                told = done
                yield Progress(batch, batches, done, painter.count, latents, clean)
        pictures = [
            Picture(_checked(image, checker, note), single.model_copy(update={"notes": tuple(notes)}), hashes, platform)
            for image, single in zip(images, singles)
        ]
        yield Progress(batch, batches, painter.count, painter.count, latents, clean, tuple(pictures))


def resolved_request(request: Painting, studio: Studio) -> tuple[ResolvedRequest, dict[str, str | None]]:
    """The request resolved for the studio's model, and the paths of the files that take part, by the record's field."""
    model = studio.model
    vae = Reference(name=Path(model.vae_path).name) if model.vae_path else None
    source = studio.pictures.get("image")
    resolved = resolve(
        request,
        model.family,
        Reference(name=model.name or "model"),
        vae,
        picture_size=source.size if source else None,
        fast=fast_model(request, model),
    )
    paths: dict[str, str | None] = {"checkpoint": model.path, "vae": model.vae_path}
    others = {field: Reference(name=other.name or "model") for field, other in studio.others.items()}
    paths |= {field: other.path for field, other in studio.others.items()}
    for field, file in upscaler_files(resolved.request).items():
        others[field] = Reference(name=file.name)
        paths[field] = str(file)
    for index, file in enumerate(control_files(resolved.request)):
        others[f"controls.{index}"] = Reference(name=file.name)
        paths[f"controls.{index}"] = str(file)
    for field, file in module_files(resolved.request).items():
        others[field] = Reference(name=file.name)
        paths[field] = str(file)
    for field, file in prompt_files(studio.prompters).items():
        others[field] = Reference(name=file.name)
        paths[field] = str(file)
    asked = with_references(resolved.request, studio.pictures)
    return resolved.model_copy(update={"request": asked, "others": others}), paths


def upscaler_files(request: Painting) -> dict[str, Path]:
    """The files of the upscalers that take part, by the record's field. Raises DanqingError for an unknown one."""
    files = {"hr_upscaler": upscaler_file(request)}
    if isinstance(request, ImageToImage) and request.sd_upscale is not None:
        files["sd_upscale"] = upscaler_path(request.sd_upscale.upscaler)
    return {field: file for field, file in files.items() if file is not None}


def _checked(image: Image.Image, checker: SafetyChecker | None, note: Say) -> Image.Image:
    if checker is None or not flag(checker, image):
        return image
    note("the safety checker flagged a picture; it is painted black")
    return Image.new("RGB", image.size)
