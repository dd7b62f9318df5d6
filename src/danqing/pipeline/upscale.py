"""Pictures made larger: by resampling, or by a network in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.errors import DanqingError
from danqing.library.names import find, known
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.ldsr import LatentUpscaler, is_latent_upscaler, load_latent_upscaler
from danqing.pipeline.models import Say, print_note
from danqing.pipeline.networks import load_network
from danqing.runtime.devices import pick_device, pick_dtype
from danqing.runtime.memory import out_of_memory
from danqing.runtime.tiles import starts, tiled
from danqing.vocabulary import nearest

RESAMPLERS: Mapping[str, Image.Resampling] = {
    "None": Image.Resampling.LANCZOS,  # as AUTOMATIC1111 resizes where no upscaler is chosen
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
    "Bicubic": Image.Resampling.BICUBIC,
    "Bilinear": Image.Resampling.BILINEAR,
    "Hamming": Image.Resampling.HAMMING,
    "Box": Image.Resampling.BOX,
}
TILE, OVERLAP = 512, 32
"""Pixels of the picture that goes in, along each side."""
SMALLEST_TILE = 64
MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 30

Shown = Callable[[int, int], None]
"""Told (tiles done, tiles in all)."""


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A way to make pictures larger, ready to use."""

    name: str
    resampling: Image.Resampling = Image.Resampling.LANCZOS
    """All there is to it without a network; else what brings the network's picture to the exact size."""
    network: Any = None
    """spandrel's ImageModelDescriptor, or a `LatentUpscaler`."""
    path: Path | None = None

    @property
    def factor(self) -> int:
        """By how much one run of the network enlarges."""
        return 1 if self.network is None else int(self.network.scale)

    @property
    def diffuses(self) -> bool:
        """Whether it is LDSR, which takes steps."""
        return isinstance(self.network, LatentUpscaler)


def upscaler_names(settings: Settings | None = None) -> list[str]:
    """What can be asked for by name: the resamplers, and the library's upscalers."""
    return [*RESAMPLERS, *(entry.name for entry in known(settings or load_settings()) if entry.kind == "upscaler")]


def upscaler_path(name: str | Path, settings: Settings | None = None) -> Path | None:
    """Where the upscaler of that name is; None for a resampler. Raises DanqingError for an unknown one."""
    text = str(name).strip()
    if text.casefold() in map(str.casefold, RESAMPLERS):
        return None
    try:
        return find(text, "upscaler", settings or load_settings()).path
    except DanqingError as error:
        near = nearest(text, RESAMPLERS)
        raise DanqingError(f"{error}; or is it {' or '.join(near)}?" if near else str(error)) from None


def load_upscaler(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    steps: int | None = None,
) -> Upscaler:
    """The upscaler of that name: a resampler's, in any case, or a network's by path or by its name in the library.

    A network is one that spandrel knows, or latent-diffusion super-resolution (LDSR), in a file or diffusers' folder.
    `dtype` is float32 unless given; not every network runs in less. `steps` are LDSR's, 100 unless given.
    Raises DanqingError for an unknown name, a file that holds no upscaler, or spandrel missing.
    """
    settings = settings or load_settings()
    path = upscaler_path(name, settings)
    if path is None:
        known_name = next(each for each in RESAMPLERS if each.casefold() == str(name).strip().casefold())
        return Upscaler(known_name, RESAMPLERS[known_name])
    target = pick_device(device or settings.device)
    precision = pick_dtype(dtype or "float32", target)
    if is_latent_upscaler(path):
        return Upscaler(path.stem, network=load_latent_upscaler(path, target, precision, steps), path=path)
    network = load_network(path, target, precision)
    if network.purpose == "FaceSR":
        raise DanqingError(f"{path}: {network.architecture.name} restores faces only; give it by --face-restorer")
    return Upscaler(path.stem, network=network, path=path)


def upscale(
    image: Image.Image,
    upscaler: str | Path | Upscaler,
    scale: float | tuple[int, int],
    *,
    tile: int = TILE,
    device: str | None = None,
    dtype: str | None = None,
    progress: Shown = lambda done, total: None,
    say: Say = print_note,
) -> Image.Image:
    """`image` at `scale` times its size, or at exactly `scale` = (width, height); its mode is L, LA, RGB or RGBA.

    A network runs as often as the size asks for, at least once, and Lanczos brings its picture to the exact size, as
    in AUTOMATIC1111. It sees tiles of `tile` pixels that overlap and are blended (smaller ones where memory does not
    suffice, which `say` is told), grey as three equal channels, and no alpha: that is resampled. A grey picture stays
    grey, a transparent one transparent.
    Raises DanqingError for an unknown upscaler, a size that is none, or memory that is too small.
    """
    if not isinstance(upscaler, Upscaler):
        upscaler = load_upscaler(upscaler, device=device, dtype=dtype)
    image = plain(image)
    size = target_size(image.size, scale)
    if upscaler.network is not None:
        image = _through(image, upscaler, size, tile, progress, say)
    else:
        progress(1, 1)
    return image if image.size == size else image.resize(size, upscaler.resampling)


def target_size(size: tuple[int, int], scale: float | tuple[int, int]) -> tuple[int, int]:
    """(width, height) that `scale` asks for: times as large, to the nearest pixel, or given. Raises DanqingError."""
    if isinstance(scale, tuple):
        width, height = scale
    elif math.isfinite(scale) and 0 < scale <= MAX_SIDE:
        width, height = (max(round(side * scale), 1) for side in size)
    else:
        raise DanqingError(f"scale: should be more than 0, but it is {scale:g}")
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DanqingError(f"size: {width}x{height} is no size for a picture; ask for a smaller scale")
    return width, height


def covering(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The least size of `size`'s proportions that covers `box`."""
    scale = max(box[0] / size[0], box[1] / size[1])
    return max(round(size[0] * scale), box[0]), max(round(size[1] * scale), box[1])


def centre_crop(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The middle of `image`, (width, height) = `box`."""
    left, top = ((have - want) // 2 for have, want in zip(image.size, box))
    return image.crop((left, top, left + box[0], top + box[1]))


def blended(first: Image.Image, second: Image.Image, visibility: float) -> Image.Image:
    """`visibility` (0 to 1) of `second` over `first`, pictures of one size and mode."""
    return first if visibility == 0 else Image.blend(first, second, visibility)


def plain(image: Image.Image) -> Image.Image:
    """`image` as L, LA, RGB or RGBA, whatever holds it: palettes, bits, 16 bits, CMYK, premultiplied alpha."""
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    transparent = "transparency" in image.info or image.mode in ("PA", "RGBa", "La")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if transparent else "RGB")


@torch.no_grad()
def _through(
    image: Image.Image, upscaler: Upscaler, size: tuple[int, int], tile: int, progress: Shown, say: Say
) -> Image.Image:
    """`image` through the network until it is at least as large as `size`."""
    factor = upscaler.factor
    alpha = image.getchannel("A") if "A" in image.mode else None
    grey = image.mode in ("L", "LA")
    pixels = _pixels(image, upscaler)
    need = max(size[0] / image.width, size[1] / image.height)
    runs = 1 if factor == 1 else max(math.ceil(math.log(need, factor) - 1e-9), 1)
    done = 0
    for run in range(runs):
        height, width = pixels.shape[-2:]
        if width * height * factor**2 > MAX_PIXELS:
            raise DanqingError(f"size: {upscaler.name} would make {width * factor}x{height * factor}; ask for less")
        ahead = sum(_tiles(width * factor**n, height * factor**n, tile) for n in range(1, runs - run))

        def shown(count: int, total: int, done: int = done, ahead: int = ahead) -> None:
            progress(done + count, done + total + ahead)

        pixels, tile = _run(pixels, upscaler, tile, shown, say)
        done += _tiles(width, height, tile)
    out = _image(pixels, grey)
    if alpha is None:
        return out.convert(out.mode.replace("A", ""))
    if "A" not in out.mode:
        out.putalpha(alpha.resize(out.size, Image.Resampling.LANCZOS))
    return out


def _tiles(width: int, height: int, tile: int) -> int:
    return len(starts(width, tile, _overlap(tile))) * len(starts(height, tile, _overlap(tile)))


def _overlap(tile: int) -> int:
    return min(OVERLAP, tile // 4)


def _run(pixels: Tensor, upscaler: Upscaler, tile: int, shown: Shown, say: Say) -> tuple[Tensor, int]:
    """One run of the network in tiles: pixels (N, C, H, W) in [0, 1] -> enlarged, and the size of tile that did fit."""
    network = upscaler.network
    if network.tiling.name == "INTERNAL":  # it needs the whole picture, and cuts it up itself
        tile = max(tile, *pixels.shape[-2:])

    def fn(part: Tensor) -> Tensor:
        part = part.to(network.device, network.dtype)
        return torch.cat([network(picture[None]) for picture in part]).float().cpu()

    while True:
        overlap = _overlap(tile)
        try:
            return tiled(fn, pixels, tile, overlap, (upscaler.factor, 1), overlap // 4, shown), tile
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if tile <= SMALLEST_TILE or network.tiling.name == "INTERNAL":
            raise DanqingError(f"{upscaler.name}: out of memory even with tiles of {tile}; ask for a smaller scale")
        tile = max(tile // 2, SMALLEST_TILE)
        say(f"out of memory; {upscaler.name} goes on with tiles of {tile} pixels")


def _pixels(image: Image.Image, upscaler: Upscaler) -> Tensor:
    """The picture as the network takes it, (N, C, H, W) in [0, 1]: one that takes grey gets each colour apart."""
    channels = upscaler.network.input_channels
    if channels not in (1, 3, 4) or upscaler.network.output_channels != channels:
        raise DanqingError(f"{upscaler.path}: takes {channels} channels, and gives {upscaler.network.output_channels}")
    mode = {3: "RGB", 4: "RGBA"}.get(channels, "L" if image.mode in ("L", "LA") else "RGB")
    values = torch.from_numpy(np.array(image.convert(mode), dtype=np.float32) / 255)
    values = values.view(image.height, image.width, -1).permute(2, 0, 1)  # (C, H, W)
    return values[:, None] if channels == 1 else values[None]


def _image(pixels: Tensor, grey: bool) -> Image.Image:
    """Pixels (1, C, H, W) or (C, 1, H, W) in [0, 1] -> a picture: RGB, RGBA, or with `grey` L or LA."""
    values = pixels.reshape(-1, *pixels.shape[-2:]).clamp(0, 1)
    if grey:
        values = torch.cat([values[:3].mean(0, keepdim=True), values[3:]])
    array = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
