"""What is made of a picture before a ControlNet is shown it: functions picture -> picture, which need no weights.

Soft edges alone do: HED's file is read by `load_preprocessor`.

Formulas and defaults are those by which the published networks were trained or are shown pictures: lllyasviel's
ControlNet (`annotator/`) and Mikubill's sd-webui-controlnet (`processor.py`), whose names `PREPROCESSORS` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from danqing.checkpoints.checkpoint import problems
from danqing.checkpoints.files import open_file
from danqing.checkpoints.load import assign
from danqing.errors import DanqingError
from danqing.models.hed import HED
from danqing.runtime.blank import without_weights

Preprocessor = Callable[[Image.Image], Image.Image]
Pixels = NDArray[np.float32]
"""(H, W) or (H, W, 3), from 0 to 255."""


def to_hint(picture: Image.Image) -> Tensor:
    """A picture as a network is shown it: (1, 3, H, W) float32 from 0 to 1. What is transparent is black."""
    return torch.from_numpy(_pixels(picture) / 255).permute(2, 0, 1)[None]


def inpaint_hint(picture: Image.Image, mask: Image.Image) -> Tensor:
    """A picture for an inpainting ControlNet: as `to_hint`, but -1 wherever the mask is white (above a half).

    Raises DanqingError if the mask is of another size.
    """
    if mask.size != picture.size:
        raise DanqingError(f"mask: is {mask.width}x{mask.height}, and the picture {picture.width}x{picture.height}")
    hidden = torch.from_numpy(np.asarray(mask.convert("L")) > 127)
    return to_hint(picture).masked_fill(hidden, -1.0)


def _pixels(picture: Image.Image) -> Pixels:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"), dtype=np.float32)


def _picture(pixels: NDArray[np.float32 | np.bool_]) -> Image.Image:
    """Grey (H, W) from 0 to 255, or bool, as an RGB picture."""
    levels = np.where(pixels, 255, 0) if pixels.dtype == np.bool_ else np.clip(pixels, 0, 255)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _gaussian(pixels: Pixels, sigma: float) -> Pixels:
    """Blurred (Gaussian out to four sigma, edges mirrored); (H, W, C) -> (H, W, C)."""
    reach = max(math.ceil(4 * sigma), 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    x = torch.from_numpy(pixels).permute(2, 0, 1)[:, None]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        pad = (0, 0, reach, reach) if shape[2] == -1 else (reach, reach, 0, 0)
        x = F.conv2d(_mirrored(x, pad), kernel.view(shape))
    return x[:, 0].permute(1, 2, 0).numpy()


def _mirrored(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Mirrored at the edges, which are not doubled; a picture smaller than `pad` is mirrored again and again."""
    for axis, (before, after) in ((-1, pad[:2]), (-2, pad[2:])):
        length = x.shape[axis]
        place = torch.arange(-before, length + after).abs() % max(2 * length - 2, 1)
        x = x.index_select(axis, torch.minimum(place, (2 * length - 2 - place).abs()) if length > 1 else place * 0)
    return x


# --- lines ------------------------------------------------------------------------------------------------------------


def canny(picture: Image.Image, low: float = 100, high: float = 200) -> Image.Image:
    """Edges, white on black (Canny 1986): those steeper than `high`, and what continues them above `low`.

    low, high: of a gradient as Sobel's 3x3 kernels measure it, |dx| + |dy|, from 0 to 2040. The same pixels as OpenCV's
    `Canny`; of the three colours the steepest counts.
    """
    if not 0 <= low <= high:
        raise DanqingError(f"canny: the thresholds {low:g} and {high:g} should rise from 0")
    x = np.pad(_pixels(picture).astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    dx = _smooth(x[:, 2:] - x[:, :-2], 0)
    dy = _smooth(x[2:] - x[:-2], 1)
    best = (np.abs(dx) + np.abs(dy)).argmax(-1)[..., None]
    dx, dy = (np.take_along_axis(d, best, -1)[..., 0] for d in (dx, dy))
    steep = np.abs(dx) + np.abs(dy)
    around = np.pad(steep, 1)

    def near(down: int, right: int) -> NDArray[np.int32]:
        return around[1 + down : around.shape[0] - 1 + down, 1 + right : around.shape[1] - 1 + right]

    across = np.abs(dx).astype(np.int64)
    rise, flat = np.abs(dy).astype(np.int64) << 15, across * 13573  # the tangent of 22.5 degrees in 15 bits
    level, upright = rise < flat, rise > flat + (across << 16)
    falls = (dx ^ dy) < 0
    ridge = np.where(
        level,
        (steep > near(0, -1)) & (steep >= near(0, 1)),
        np.where(
            upright,
            (steep > near(-1, 0)) & (steep >= near(1, 0)),
            np.where(
                falls, (steep > near(-1, 1)) & (steep > near(1, -1)), (steep > near(-1, -1)) & (steep > near(1, 1))
            ),
        ),
    )
    ridge &= steep > math.floor(low)
    return _picture(_connected(ridge & (steep > math.floor(high)), ridge))


def _smooth(x: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    """Sobel's 1, 2, 1 along `axis`, two shorter."""
    first, middle, last = (np.take(x, range(i, x.shape[axis] - 2 + i), axis) for i in range(3))
    return first + 2 * middle + last


def _connected(seeds: NDArray[np.bool_], area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of `area` hangs together with `seeds`, over corners too."""
    found = seeds
    while True:
        grown = torch.from_numpy(found)[None, None].float()
        more = (F.max_pool2d(grown, 3, stride=1, padding=1)[0, 0] > 0).numpy() & area
        if (more == found).all():
            return found
        found = more


def scribble(picture: Image.Image, threshold: float = 32) -> Image.Image:
    """Thick strokes, white on black, where a narrow and a wide blur differ (difference of Gaussians, as XDoG's)."""
    x = _pixels(picture)
    difference = 255 - np.clip(255 - (_gaussian(x, 5.0) - _gaussian(x, 0.5)).min(-1), 0, 255)
    return _picture(2 * np.clip(difference, 0, 255) > threshold)


def line_art(picture: Image.Image, sigma: float = 6.0, floor: float = 8.0) -> Image.Image:
    """Lines that are darker than their neighbourhood, white on black; for drawings on light paper."""
    x = _pixels(picture)
    dark = np.clip((_gaussian(x, sigma) - x).min(-1), 0, 255)
    lines = dark[dark > floor]
    return _picture(dark / max(16.0, float(np.median(lines)) if lines.size else 0.0) * 127)


def invert(picture: Image.Image) -> Image.Image:
    """Black lines on white, the other way: what networks of lines are shown of a drawing."""
    return ImageOps.invert(picture.convert("RGB"))


def threshold(picture: Image.Image, level: int | None = None) -> Image.Image:
    """Black and white by brightness: white above `level`, from 0 to 255; None finds it (Otsu 1979). For QR codes."""
    grey = np.asarray(picture.convert("L"))
    return _picture(grey > (_otsu(grey) if level is None else level))


def _otsu(grey: NDArray[np.uint8]) -> int:
    """The level that parts the brightnesses into two groups of the least variance within."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.nan_to_num(apart).argmax())


# --- colours and places -----------------------------------------------------------------------------------------------


def brightness(picture: Image.Image) -> Image.Image:
    """Without its colours: for brightness ControlNets."""
    return picture.convert("L").convert("RGB")


def luminance(picture: Image.Image, gamma: float = 1.0) -> Image.Image:
    """The perceived lightness L* of CIELAB alone: what recolouring networks keep."""
    linear = _pixels(picture) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.212671, 0.715160, 0.072169], dtype=np.float32)
    lightness = np.where(y > (6 / 29) ** 3, 1.16 * np.cbrt(y) - 0.16, y * 9.03296296)
    return _picture(np.round(np.clip(lightness, 0, 1) ** gamma * 255).astype(np.float32))


def intensity(picture: Image.Image, gamma: float = 1.0) -> Image.Image:
    """The strongest of the three colours (HSV's value) alone."""
    return _picture(np.round((_pixels(picture).max(-1) / 255) ** gamma * 255).astype(np.float32))


def blur(picture: Image.Image, sigma: float = 9.0) -> Image.Image:
    """Blurred, sigma in pixels."""
    return Image.fromarray(np.round(np.clip(_gaussian(_pixels(picture), sigma), 0, 255)).astype(np.uint8))


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
    x = torch.from_numpy(_pixels(picture)).permute(2, 0, 1)[None]
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
_ALIASES = {
    "scribble_xdog": "scribble",
    "lineart_standard": "line art",
    "lineart_standard (from white bg & black line)": "line art",
    "invert (from white bg & black line)": "invert",
    "recolor_luminance": "luminance",
    "recolor_intensity": "intensity",
    "blur_gaussian": "blur",
    "tile_resample": "tile",
}
"""sd-webui-controlnet's names."""


def soft_edges(network: HED) -> Preprocessor:
    """Edges as HED sees them, white on black, the surer the brighter."""

    def preprocess(picture: Image.Image) -> Image.Image:
        weight = network.norm
        x = torch.from_numpy(_pixels(picture)).permute(2, 0, 1)[None].to(weight)
        height, width = x.shape[-2:]
        smallest = F.pad(x, (0, max(16 - width, 0), 0, max(16 - height, 0)), mode="replicate")
        with torch.no_grad():
            edges = network(smallest)[0, 0, :height, :width]
        return _picture(edges.float().cpu().numpy() * 255)

    return preprocess


def load_preprocessor(path: Path, device: torch.device | str = "cpu") -> Preprocessor:
    """The preprocessor whose weights a file holds: HED's, ControlNetHED.pth of lllyasviel/Annotators.

    Raises DanqingError for a damaged file, or another one.
    """
    file = open_file(path)
    if "block1.projection.weight" not in file.entries or "norm" not in file.entries:
        raise DanqingError(f"{path}: is no preprocessor that Danqing knows; it reads HED's ControlNetHED.pth")
    with without_weights():
        network = HED()
    trouble = problems({"weights": dict(file.entries)}, {"weights": network}, ())
    if str(trouble):
        raise DanqingError(f"{path}: is not a whole HED: {trouble}")
    assign(network, file.entries, device, torch.float32)
    return soft_edges(network)


def find_preprocessor(name: str) -> Preprocessor:
    """The preprocessor of that name, Danqing's or sd-webui-controlnet's, or of that file.

    Raises DanqingError for an unknown one.
    """
    plain = name.strip().lower()
    found = PREPROCESSORS.get(_ALIASES.get(plain, plain))
    if found is None and Path(name).suffix in (".pth", ".safetensors", ".pt", ".bin"):
        return load_preprocessor(Path(name))
    if found is None:
        raise DanqingError(f"control: no preprocessor is called '{name}'; choose of {', '.join(PREPROCESSORS)}")
    return found
