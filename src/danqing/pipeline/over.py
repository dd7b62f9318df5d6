"""Painting over a picture: image to image, inpainting, outpainting. One loop; what differs is the canvas."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from danqing.adapters.steer import parts_of
from danqing.pipeline.canvas import Canvas, canvas_of
from danqing.pipeline.colors import match_colors
from danqing.pipeline.images import fit, flatten, mask_pixels, to_pixels
from danqing.pipeline.invert import between, inverted
from danqing.pipeline.masks import latent_mask
from danqing.pipeline.run import Painter, Run, Studio, prepare
from danqing.pipeline.soft import overlay
from danqing.pipeline.start import Start, joined
from danqing.request_parts import DenoisingCurve
from danqing.requests import MAX_SEED, ImageToImage, Masked, ResolvedRequest
from danqing.sampling.types import Noise, Step

_CURVES: Mapping[DenoisingCurve, Callable[[float], float]] = {
    "aggressive": lambda share: math.sin(share * math.pi / 2),
    "linear": lambda share: share,
    "lazy": lambda share: 1 - math.cos(share * math.pi / 2),
}


def strengths(request: ImageToImage) -> list[float]:
    """The denoising strength of each loop, after AUTOMATIC1111's loopback script."""
    first, last = request.denoising_strength, request.final_denoising_strength
    if request.loops == 1 or last is None:
        return [first] * request.loops
    curve = _CURVES[request.denoising_curve]
    return [first + (last - first) * curve(loop / (request.loops - 1)) for loop in range(request.loops)]


def image_to_image(resolved: ResolvedRequest, studio: Studio) -> Painter:
    """The painter of an ImageToImage, Inpaint or Outpaint. Loop i of a loopback has each picture's seed + i.

    Raises DanqingError for a mask that covers nothing, or a strength that leaves no step.
    """
    request = resolved.request
    assert isinstance(request, ImageToImage)
    source = studio.pictures["image"]
    canvas = canvas_of(source, request, studio)
    controls = studio.controls
    if canvas.box is not None:
        controls = parts_of(controls, source.size, canvas.box)
    runs = [
        prepare(
            resolved,
            studio.model,
            studio.note,
            studio.wrap,
            studio.cache,
            strength=strength,
            exact=request.exact_steps,
            pictures=studio.pictures,
            refiner=studio.others.get("refiner_checkpoint"),
            controls=controls,
        )
        for strength in strengths(request)
    ]
    encoded: list[_Ready] = []

    def first_ready(noise: Noise) -> _Ready:
        """The first loop's pictures all begin with one canvas: encoded once, unless diffusers draws for it."""
        if request.dialect == "diffusers" or not encoded:
            encoded[:] = [_encoded(runs[0], canvas, request, noise, studio)]
        return encoded[0]

    def batch(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
        canvases = [canvas] * len(singles)
        images: list[Image.Image] = []
        for loop, run in enumerate(runs):
            these = [later(single, loop) for single in singles]
            noise = run.noise(these)
            if loop:
                canvases = [
                    replace(canvas_of(image, request, studio, canvas), colors=canvas.colors) for image in images
                ]
                parts = [_encoded(run, each, request, noise, studio) for each in canvases]
            else:
                parts = [first_ready(noise)] * len(these)
            start = _start(run, parts, request, noise)
            latents = yield from run.paint(these, start)
            images = [
                _finished(run, row[None], each, part, request) for row, each, part in zip(latents, canvases, parts)
            ]
        return images

    return Painter(sum(run.count for run in runs), batch)


def later(single: ResolvedRequest, loop: int) -> ResolvedRequest:
    """The request of a later loop or tile: with the seed that many higher; the highest is followed by 0."""
    if loop == 0:
        return single
    seed = ((single.request.seed or 0) + loop) % (MAX_SEED + 1)
    return single.model_copy(update={"request": single.request.model_copy(update={"seed": seed})})


@dataclass(frozen=True, eq=False)
class _Ready:
    """One canvas as the model sees it."""

    latents: Tensor
    mask: Tensor | None
    channels: Tensor | None
    noised: Tensor | None


def _draws(run: Run, request: ImageToImage) -> dict[str, int]:
    """diffusers' draws in their order: for the picture, the start, the masked picture; and where the sampler's begin.

    Its pipelines draw from the autoencoder's distribution with the picture's own generator.
    """
    if request.dialect != "diffusers" or run.model.family.variant == "pix2pix":
        return {"start": 0, "later": 1}
    if not isinstance(request, Masked):
        return {"picture": 0, "start": 1, "later": 2}
    if run.model.family.variant == "inpaint" and _from_noise(run, request):
        return {"start": 0, "masked": 1, "later": 2}
    return {"picture": 0, "start": 1, "masked": 2, "later": 3}


def _from_noise(run: Run, request: ImageToImage) -> bool:
    """Whether diffusers begins with noise alone."""
    special = isinstance(request, Masked) or run.model.family.variant == "pix2pix"
    return request.dialect == "diffusers" and special and request.denoising_strength == 1


def _encoded(run: Run, canvas: Canvas, request: ImageToImage, noise: Noise, studio: Studio) -> _Ready:
    draws = _draws(run, request)

    def drawn(name: str) -> Tensor | None:
        return noise(draws[name])[:1] if name in draws else None

    width, height = run.cells
    pixels = to_pixels(canvas.image)
    latents = _fitted(run.latents(pixels, drawn("picture")), width, height)
    mask = channels = noised = None
    if canvas.mask is not None and isinstance(request, Masked):
        rounded = request.mask_round and request.soft_inpainting is None
        mask = latent_mask(canvas.mask, run.cells, rounded, request.dialect)
        if request.inpainting_fill == "latent nothing":
            latents = latents * (1 - mask).to(latents)
    variant = run.model.family.variant
    if variant == "pix2pix":
        # this kind of model is told the autoencoder's own latents, without their scale
        channels = _fitted(run.latents(pixels), width, height) / run.model.family.autoencoder.scale
    elif variant == "inpaint" and canvas.mask is not None and isinstance(request, Masked):
        hidden = mask_pixels(canvas.mask)
        if request.dialect == "diffusers" or (request.mask_round and request.soft_inpainting is None):
            hidden = (hidden >= 0.5).float()
        seen = run.latents(pixels * (1 - hidden * request.inpainting_mask_weight), drawn("masked"))
        channels = torch.cat([interpolate(hidden, size=(height, width)).to(seen), seen], 1)
    if request.inversion:
        noised = inverted(run, latents, request, canvas.image, studio.aside)
        if "subimage" in studio.pictures and request.subimage_strength > 0:
            other = fit(flatten(studio.pictures["subimage"], request.background_color), *canvas.image.size)
            begin = _fitted(run.latents(to_pixels(other)), width, height)
            second = inverted(run, begin, request, other, studio.aside)
            noised = between(noised, second, request.subimage_strength)
    return _Ready(latents, mask, channels, noised)


def _fitted(latents: Tensor, width: int, height: int) -> Tensor:
    """Latents (1, C, h, w) of a picture of another size (the resize mode `latent upscale`) at the painting's."""
    if latents.shape[-2:] == (height, width):
        return latents
    return interpolate(latents, size=(height, width), mode="bilinear")


def _start(run: Run, parts: Sequence[_Ready], request: ImageToImage, noise: Noise) -> Start:
    def together(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else joined(tensors)

    draws = _draws(run, request)
    latents, mask = joined([part.latents for part in parts]), together("mask")
    settings = request if isinstance(request, Masked) else None
    if settings is not None and mask is not None and settings.inpainting_fill == "latent noise":
        unit = noise(draws["start"]).to(latents)
        latents = latents * (1 - mask.to(latents)) + unit * mask.to(latents)
    return Start(
        latents,
        mask,
        None if settings is None else settings.soft_inpainting,
        together("channels"),
        together("noised"),
        from_noise=_from_noise(run, request),
        keeps=not (request.dialect == "diffusers" and run.model.family.variant == "inpaint"),
        noise_multiplier=request.initial_noise_multiplier,
        extra_noise=request.extra_noise,
        draws=(draws["start"], draws["later"]),
    )


def _finished(run: Run, latents: Tensor, canvas: Canvas, part: _Ready, request: ImageToImage) -> Image.Image:
    """The painted picture: colours corrected, what was not painted as it was."""
    image = run.picture(latents)
    if request.color_correction:
        image = match_colors(image, canvas.colors)
    cover = None
    if isinstance(request, Masked) and request.soft_inpainting is not None and part.mask is not None:
        cover = overlay(request.soft_inpainting, part.latents.to(latents), latents, part.mask.to(latents), image.size)
    return canvas.finish(image, cover)
