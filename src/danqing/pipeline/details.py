"""Detailers: find things in a painted picture, mask each, and paint it again, larger, in its place."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageDraw

from danqing.pipeline import masks
from danqing.pipeline.detect import Detect, Found, load_detector
from danqing.pipeline.over import image_to_image
from danqing.pipeline.run import Painter, Studio
from danqing.request_parts import Detailer, Reference
from danqing.requests import Inpaint, Painting, ResolvedRequest
from danqing.sampling.types import Step


def with_details(painter: Painter, resolved: ResolvedRequest, studio: Studio) -> Painter:
    """`painter`, and then the request's detailers one after another on each of its pictures.

    Raises DanqingError for a detector that cannot be loaded.
    """
    detailers = resolved.request.detailers
    if not detailers:
        return painter
    detectors = [studio.detectors.get(each.detector) or load_detector(each.detector) for each in detailers]

    def batch(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
        images = yield from painter.batch(singles)
        finished = []
        for image, single in zip(images, singles):
            for detailer, detect in zip(detailers, detectors):
                image = yield from detailed(image, single, detailer, detect, studio)
            finished.append(image)
        return finished

    return Painter(painter.count, batch)


def detailed(
    image: Image.Image, single: ResolvedRequest, detailer: Detailer, detect: Detect, studio: Studio
) -> Generator[Step, None, Image.Image]:
    """`image` with each thing that `detect` finds painted again, by inpainting with only its surroundings.

    `single` is the resolved request of this one picture: prompts, sampler and seed are its unless the detailer's.
    """
    found = chosen(detect(image), detailer)
    if not found:
        studio.note(f"the detailer found nothing with {detailer.detector}")
    for thing in found:
        mask = _mask(thing, image.size, detailer)
        if mask.getbbox() is None:  # it was shrunk to nothing
            continue
        there = replace(studio, pictures={"image": image, "mask": mask}, others={})
        again = single.model_copy(update={"kind": "inpaint", "request": inpainting(single.request, detailer)})
        (image,) = yield from image_to_image(again, there).batch([again])
    return image


def chosen(found: Sequence[Found], detailer: Detailer) -> list[Found]:
    """What a detailer repaints: sure enough, of its classes, the largest, from left to right."""
    kept = [
        thing
        for thing in found
        if thing.confidence >= detailer.confidence and (not detailer.classes or thing.label in detailer.classes)
    ]
    if detailer.largest:
        kept = sorted(kept, key=lambda thing: thing.area, reverse=True)[: detailer.largest]
    return sorted(kept, key=lambda thing: thing.box[0])


def inpainting(request: Painting, detailer: Detailer) -> Inpaint:
    """The inpainting by which a detailer repaints what it found in the picture of a resolved `request`."""
    shared = {name: getattr(request, name) for name in Painting.model_fields}
    shared |= {"detailers": (), "regions": (), "refiner_checkpoint": None, "refiner_switch_at": None}
    own: dict[str, Any] = {
        "prompt": detailer.prompt or request.prompt,
        "negative_prompt": detailer.negative_prompt or request.negative_prompt,
        "width": detailer.width or request.width,
        "height": detailer.height or request.height,
        "steps": detailer.steps or request.steps,
    }
    return Inpaint(
        **{**shared, **own},
        image=Reference(name="picture"),
        mask=Reference(name="mask"),
        mask_blur=detailer.mask_blur,
        denoising_strength=detailer.denoising_strength,
        inpaint_full_res=True,
        inpaint_full_res_padding=detailer.padding,
    )


def _mask(thing: Found, size: tuple[int, int], detailer: Detailer) -> Image.Image:
    """White where `thing` is, grown or shrunk as the detailer says."""
    mask = thing.mask
    if mask is None:
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rectangle([round(side) for side in thing.box], fill=255)
    return masks.dilate(mask, detailer.dilate)
