"""What is made of a picture before a ControlNet is shown it: functions picture -> picture, most of them by OpenCV.

Those that need weights are in `annotators`, which finds all of them by their names.

Formulas and defaults are those by which the published networks were trained or are shown pictures: lllyasviel's
ControlNet (`annotator/`) and Mikubill's sd-webui-controlnet (`processor.py`), whose names `PREPROCESSORS` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from danqing.errors import DanqingError

Preprocessor = Callable[[Image.Image], Image.Image]
Pixels = NDArray[np.float32]
"""(H, W) or (H, W, 3), from 0 to 255."""


def to_hint(picture: Image.Image) -> Tensor:
    """A picture as a network is shown it: (1, 3, H, W) float32 from 0 to 1. What is transparent is black."""
    return torch.from_numpy(pixels_of(picture) / 255).permute(2, 0, 1)[None]


def inpaint_hint(picture: Image.Image, mask: Image.Image) -> Tensor:
    """A picture for an inpainting ControlNet: as `to_hint`, but -1 wherever the mask is white (above a half).

    Raises DanqingError if the mask is of another size.
    """
    if mask.size != picture.size:
        raise DanqingError(f"mask: is {mask.width}x{mask.height}, and the picture {picture.width}x{picture.height}")
    hidden = torch.from_numpy(np.asarray(mask.convert("L")) > 127)
    return to_hint(picture).masked_fill(hidden, -1.0)


def pixels_of(picture: Image.Image) -> Pixels:
    """(H, W, 3) RGB from 0 to 255. What is transparent is black."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"), dtype=np.float32)


def grey_picture(pixels: NDArray[np.float32 | np.bool_]) -> Image.Image:
    """Grey (H, W) from 0 to 255, or bool, as an RGB picture."""
    levels = np.where(pixels, 255, 0) if pixels.dtype == np.bool_ else np.clip(pixels, 0, 255)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _gaussian(pixels: Pixels, sigma: float) -> Pixels:
    """Blurred, sigma in pixels; edges mirrored."""
    blurred: Pixels = cv2.GaussianBlur(pixels, (0, 0), sigma).reshape(pixels.shape)
    return blurred


# --- lines ------------------------------------------------------------------------------------------------------------


def canny(picture: Image.Image, low: float = 100, high: float = 200) -> Image.Image:
    """Edges, white on black (Canny 1986): those steeper than `high`, and what continues them above `low`.

    low, high: of a gradient as Sobel's 3x3 kernels measure it, |dx| + |dy|, from 0 to 2040; of the three colours the
    steepest counts. Raises DanqingError where they do not rise from 0.
    """
    if not 0 <= low <= high:
        raise DanqingError(f"canny: the thresholds {low:g} and {high:g} should rise from 0")
    return grey_picture(cv2.Canny(pixels_of(picture).astype(np.uint8), low, high) > 0)


def scribble(picture: Image.Image, threshold: float = 32) -> Image.Image:
    """Thick strokes, white on black, where a narrow and a wide blur differ (difference of Gaussians, as XDoG's)."""
    x = pixels_of(picture)
    difference = 255 - np.clip(255 - (_gaussian(x, 5.0) - _gaussian(x, 0.5)).min(-1), 0, 255)
    return grey_picture(2 * np.clip(difference, 0, 255) > threshold)


def line_art(picture: Image.Image, sigma: float = 6.0, floor: float = 8.0) -> Image.Image:
    """Lines that are darker than their neighbourhood, white on black; for drawings on light paper."""
    x = pixels_of(picture)
    dark = np.clip((_gaussian(x, sigma) - x).min(-1), 0, 255)
    lines = dark[dark > floor]
    return grey_picture(dark / max(16.0, float(np.median(lines)) if lines.size else 0.0) * 127)


def invert(picture: Image.Image) -> Image.Image:
    """Black lines on white, the other way: what networks of lines are shown of a drawing."""
    return ImageOps.invert(picture.convert("RGB"))


def threshold(picture: Image.Image, level: int | None = None) -> Image.Image:
    """Black and white by brightness: white above `level`, from 0 to 255; None finds it (Otsu 1979). For QR codes."""
    way = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if level is None else 0)
    return grey_picture(cv2.threshold(np.asarray(picture.convert("L")), level or 0, 255, way)[1] > 0)


# --- colours and places -----------------------------------------------------------------------------------------------


def brightness(picture: Image.Image) -> Image.Image:
    """Without its colours: for brightness ControlNets."""
    return picture.convert("L").convert("RGB")


def luminance(picture: Image.Image, gamma: float = 1.0) -> Image.Image:
    """The perceived lightness L* of CIELAB alone: what recolouring networks keep."""
    lightness = cv2.cvtColor(pixels_of(picture) / 255, cv2.COLOR_RGB2LAB)[..., 0] / 100
    return grey_picture(np.round(np.clip(lightness, 0, 1) ** gamma * 255))


def intensity(picture: Image.Image, gamma: float = 1.0) -> Image.Image:
    """The strongest of the three colours (HSV's value) alone."""
    return grey_picture(np.round((pixels_of(picture).max(-1) / 255) ** gamma * 255).astype(np.float32))


def blur(picture: Image.Image, sigma: float = 9.0) -> Image.Image:
    """Blurred, sigma in pixels."""
    return Image.fromarray(np.round(np.clip(_gaussian(pixels_of(picture), sigma), 0, 255)).astype(np.uint8))


def tile(picture: Image.Image, rate: float = 1.0) -> Image.Image:
    """As it is, or with the detail lost that a picture `rate` times smaller cannot hold: for the tile ControlNet.

    Raises DanqingError for a rate below 1.
    """
    if not rate >= 1:
        raise DanqingError(f"tile: a picture is made {rate:g} times smaller; the rate should be at least 1")
    picture = picture.convert("RGB")
    small = picture.resize([max(round(side / rate), 1) for side in picture.size], Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.LANCZOS)


def shuffle(picture: Image.Image, seed: int = 0, grain: int = 256) -> Image.Image:
    """Its pixels drawn about by a random flow that changes over `grain` pixels: colours and textures stay, places go."""
    x = torch.from_numpy(pixels_of(picture)).permute(2, 0, 1)[None]
    height, width = x.shape[-2:]
    generator = np.random.default_rng(seed)

    def flow() -> Tensor:
        """(H, W) from -1 to 1, smooth."""
        rows, columns = height // grain + 2, width // grain + 2
        coarse = torch.from_numpy(generator.random((1, 1, rows, columns), dtype=np.float32))
        size = height + 2 * grain, width + 2 * grain
        fine = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
        fine = fine[0, 0, grain : grain + height, grain : grain + width]
        return (fine - fine.min()) / (fine.max() - fine.min()).clamp(min=1e-6) * 2 - 1

    moved = F.grid_sample(x, torch.stack([flow(), flow()], -1)[None], align_corners=True, padding_mode="border")
    return Image.fromarray(moved[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())


PREPROCESSORS: Mapping[str, Preprocessor] = {
    "none": lambda picture: picture.convert("RGB"),
    "canny": canny,
    "scribble": scribble,
    "line art": line_art,
    "invert": invert,
    "threshold": threshold,
    "brightness": brightness,
    "luminance": luminance,
    "intensity": intensity,
    "blur": blur,
    "tile": tile,
    "shuffle": shuffle,
}
"""By name. An inpainting hint is made of a picture and a mask: `inpaint_hint`."""
