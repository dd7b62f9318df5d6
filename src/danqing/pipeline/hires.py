"""Text to image, and the hires fix: the picture enlarged, as latents or as pixels, and painted over.

Sizes, steps and latent modes are AUTOMATIC1111's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from danqing.pipeline.images import fit, to_pixels
from danqing.pipeline.run import Aside, Painter, Run, Studio, prepare
from danqing.pipeline.start import Start
from danqing.pipeline.upscale import Upscaler, load_upscaler, upscale, upscaler_path
from danqing.requests import Painting, ResolvedRequest, TextToImage
from danqing.sampling.types import Step

LATENT_MODES: Mapping[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""AUTOMATIC1111's ways to enlarge latents: torch's interpolation mode, and whether it is antialiased."""


@dataclass(frozen=True)
class Target:
    """Sizes in pixels, multiples of a latent cell: what the picture is enlarged to, and what is cut out of that."""

    enlarged: tuple[int, int]
    size: tuple[int, int]


def target(request: TextToImage, cell: int) -> Target:
    """The second pass's size: `hr_resize_x` and `_y` (one alone keeps the proportions, both cut) or `hr_scale`."""
    width, height = request.width or 0, request.height or 0
    x, y = request.hr_resize_x, request.hr_resize_y
    if not x and not y:
        x, y = int(width * request.hr_scale), int(height * request.hr_scale)
        enlarged = x, y
    elif x and y:
        wider = width * y < x * height
        enlarged = (x, x * height // width) if wider else (y * width // height, y)
    else:
        x, y = x or y * width // height, y or x * height // width
        enlarged = x, y
    size = _cells((x, y), cell)
    width, height = _cells(enlarged, cell)
    return Target((max(width, size[0]), max(height, size[1])), size)


def _cells(size: tuple[int, int], cell: int) -> tuple[int, int]:
    width, height = (max(side // cell, 1) * cell for side in size)
    return width, height


def text_to_image(resolved: ResolvedRequest, studio: Studio) -> Painter:
    """The painter of a TextToImage. Raises DanqingError for an unknown upscaler."""
    request = resolved.request
    assert isinstance(request, TextToImage)
    refiner = studio.others.get("refiner_checkpoint")
    first = _pass(resolved, studio, refiner=None if request.enable_hr else refiner)

    if not request.enable_hr:

        def once(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
            latents = yield from first.paint(singles)
            return [first.picture(row[None]) for row in latents]

        return Painter(first.count, once)

    sizes = target(request, first.model.family.autoencoder.downscale)
    enlarge = _enlarger(first, request, sizes, studio.aside)
    again = second_request(request, sizes)
    model = studio.others.get("hr_checkpoint_name", studio.model)
    second = prepare(
        resolved.model_copy(update={"request": again}),
        model,
        studio.note,
        studio.wrap,
        studio.cache if model is studio.model else None,
        strength=request.denoising_strength,
        exact=True,
        first_pass_steps=request.steps,
        pictures=studio.pictures,
        refiner=refiner,
        controls=studio.controls,
    )

    def twice(singles: Sequence[ResolvedRequest]) -> Generator[Step, None, list[Image.Image]]:
        small = yield from first.paint(singles)
        start = Start(torch.cat([enlarge(row[None], second) for row in small]))
        latents = yield from second.paint(singles, start)
        return [second.picture(row[None]) for row in latents]

    return Painter(first.count + second.count, twice)


def _pass(resolved: ResolvedRequest, studio: Studio, **options: Any) -> Run:
    given = {"pictures": studio.pictures, "controls": studio.controls, **options}
    return prepare(resolved, studio.model, studio.note, studio.wrap, studio.cache, **given)


def second_request(request: TextToImage, sizes: Target) -> TextToImage:
    """The request of the second pass alone."""
    width, height = sizes.size
    changes: dict[str, Any] = {
        "width": width,
        "height": height,
        "steps": request.hr_second_pass_steps or request.steps,
        "sampler_name": request.hr_sampler_name or request.sampler_name,
        "scheduler": request.hr_scheduler or request.scheduler,
        "cfg_scale": request.cfg_scale if request.hr_cfg is None else request.hr_cfg,
        "prompt": request.hr_prompt or request.prompt,
        "negative_prompt": request.hr_negative_prompt or request.negative_prompt,
    }
    if request.token_merging is not None and request.token_merging.hr_ratio is not None:
        merging = request.token_merging
        changes["token_merging"] = merging.model_copy(update={"ratio": merging.hr_ratio})
    if request.hypertile is not None:
        changes["hypertile"] = request.hypertile.model_copy(update={"hires_only": False})
    # what SDXL is told of the size goes along, unless it was told another from the start
    for name in ("original", "target"):
        for side, new in (("width", width), ("height", height)):
            if getattr(request, f"{name}_{side}") == getattr(request, side):
                changes[f"{name}_{side}"] = new
    return request.model_copy(update=changes)


def latent_mode(name: str | None) -> str | None:
    """The latent mode of that name, in any case; None where it is a pixel upscaler's. Unset is `Latent`."""
    wanted = (name or "Latent").strip().casefold()
    return next((mode for mode in LATENT_MODES if mode.casefold() == wanted), None)


def upscaler_file(request: Painting) -> Path | None:
    """The file of the upscaler that a request's hires fix uses. Raises DanqingError for an unknown one."""
    if not isinstance(request, TextToImage) or not request.enable_hr or latent_mode(request.hr_upscaler) is not None:
        return None
    return upscaler_path(request.hr_upscaler or "")


def _enlarger(first: Run, request: TextToImage, sizes: Target, aside: Aside) -> Callable[[Tensor, Run], Tensor]:
    """(first latents (1, C, h, w), second pass) -> its latents: enlarged, and cut in the middle."""
    mode = latent_mode(request.hr_upscaler)
    if mode is not None:
        return lambda latents, second: enlarge_latents(latents, mode, sizes, first.model.family.autoencoder.downscale)
    upscaler: Upscaler = load_upscaler(request.hr_upscaler or "", device=str(first.model.device))
    told = partial(aside, upscaler.name)

    def through_pixels(latents: Tensor, second: Run) -> Tensor:
        image = upscale(first.picture(latents), upscaler, sizes.enlarged, progress=told, say=first.note)
        return second.latents(to_pixels(fit(image, *sizes.size, "crop and resize")))

    return through_pixels


def enlarge_latents(latents: Tensor, mode: str, sizes: Target, cell: int) -> Tensor:
    """Latents (B, C, h, w) interpolated to `sizes.enlarged` and cut to `sizes.size` about their middle."""
    method, antialias = LATENT_MODES[mode]
    width, height = (side // cell for side in sizes.enlarged)
    out = interpolate(latents, size=(height, width), mode=method, antialias=antialias)
    x, y = ((a - b) // cell for a, b in zip(sizes.enlarged, sizes.size))
    return out[:, :, y // 2 : height - (y + 1) // 2, x // 2 : width - (x + 1) // 2]
