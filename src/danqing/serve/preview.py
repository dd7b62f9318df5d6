"""Latents -> small pictures: each cell's colour is a linear function of its channels, or a TAESD paints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from danqing.checkpoints.tiny_decoder import load_tiny_decoder
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import known
from danqing.library.settings import Settings
from danqing.models.autoencoder import Autoencoder
from danqing.models.tiny_decoder import TinyDecoder
from danqing.pipeline.picture import grid

Look = Callable[[Tensor], Image.Image]
"""Latents (B, C, h, w) in model space -> one picture of all of them."""

SIDE = 256
"""Pixels of a preview's longer side."""

FACTORS: Mapping[str, Sequence[Sequence[float]]] = {
    # Keturn, "Decoding latents to RGB without upscaling" (discuss.huggingface.co, 2022), which most tools use
    "sd1": (
        (0.298, 0.207, 0.208),
        (0.187, 0.286, 0.173),
        (-0.158, 0.189, 0.264),
        (-0.184, -0.271, -0.473),
        (0.0, 0.0, 0.0),
    ),
    # ComfyUI's table for SDXL (comfy/latent_formats.py, `latent_rgb_factors` and their bias)
    "sdxl": (
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
        (0.1084, -0.0175, -0.0011),
    ),
}
"""By the autoencoder's kind: a row for each channel of the latents, and one that is added; colours in [-1, 1]."""
_SCALES = {0.18215: "sd1", 0.13025: "sdxl"}
"""The latents' scale tells which of the two an autoencoder of four channels is."""
_DECODERS: Mapping[str, tuple[str, ...]] = {"sd1": ("taesd_decoder", "taesd"), "sdxl": ("taesdxl_decoder", "taesdxl")}
"""How the small decoders of each kind are called: single files, and the Hub's folders."""
_FITTED_CELLS = 32


def look_of(model: Model, settings: Settings, note: Callable[[str], None]) -> Look:
    """How previews of this model are made: by a TAESD that is in the model folders, else linearly."""
    for name in _DECODERS.get(kind_of(model.autoencoder) or "", ()):
        for entry in known(settings):
            if entry.kind in ("other", "unknown", "vae") and _stem(entry.path, entry.name) == name:
                try:
                    return partial(decoded, load_tiny_decoder(entry.path).to(model.device))
                except DanqingError as error:
                    note(str(error))
    return partial(preview, factors=colours(model.autoencoder))


def _stem(path: Path, name: str) -> str:
    last = name.rpartition("/")[2].casefold()
    return last.rpartition(".")[0] if path.is_file() and "." in last else last


def kind_of(autoencoder: Autoencoder) -> str | None:
    """`sd1` or `sdxl` by the latents' scale; None for any other."""
    config = autoencoder.config
    return _SCALES.get(config.scale) if config.latent_channels == 4 and not config.mean else None


@torch.no_grad()
def decoded(decoder: TinyDecoder, clean: Tensor) -> Image.Image:
    """What a small decoder makes of latents, as `preview` does; larger ones are made smaller first, to take no time."""
    weight = next(decoder.parameters())
    latents = clean.detach().to(weight.device, weight.dtype)
    cells = SIDE // decoder.upscale
    if max(latents.shape[-2:]) > cells:
        factor = cells / max(latents.shape[-2:])
        latents = torch.nn.functional.interpolate(latents, scale_factor=factor, mode="area")
    return _sheet(decoder(latents).float().cpu().permute(0, 2, 3, 1))


@torch.no_grad()
def colours(autoencoder: Autoencoder) -> Tensor:
    """(C + 1, 3) float32: the published table, or for other autoencoders one fitted to its own encoder.

    The fit is least squares over the cells of one picture of coloured squares and slopes; it takes one small encode.
    """
    config = autoencoder.config
    kind = kind_of(autoencoder)
    if kind is not None:
        return torch.tensor(FACTORS[kind])
    weight = next(autoencoder.parameters())
    pixels = _test_card(config.downscale).to(weight.device)
    latents = autoencoder.encode(pixels).mode().float().cpu()[0]  # (C, h, w)
    seen = torch.nn.functional.avg_pool2d(pixels.cpu(), config.downscale)[0]  # (3, h, w)
    cells = latents.flatten(1).T
    rows = torch.cat([cells, torch.ones(len(cells), 1)], 1).double()
    ridge = torch.eye(rows.shape[1], dtype=torch.float64) * 1e-3
    fitted: Tensor = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ seen.flatten(1).T.double())
    return fitted.float()


def preview(clean: Tensor, factors: Tensor) -> Image.Image:
    """Latents (B, C, h, w) in model space -> one picture of all of them, its longer side at most `SIDE` pixels."""
    latents = clean.detach().float().cpu()
    mixed = torch.einsum("bchw,cr->bhwr", latents, factors[:-1]) + factors[-1]
    return _sheet(mixed / 2 + 0.5)


def _sheet(colours: Tensor) -> Image.Image:
    """(B, h, w, 3) in [0, 1] -> one picture, its longer side `SIDE` pixels."""
    values = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    sheet = grid([Image.fromarray(each) for each in values])
    factor = SIDE / max(sheet.size)
    size = max(round(sheet.width * factor), 1), max(round(sheet.height * factor), 1)
    return sheet.resize(size, Image.Resampling.BICUBIC)


def _test_card(cell: int) -> Tensor:
    """(1, 3, H, W) in [-1, 1]: squares of four cells of random colours above, slopes between colours below."""
    generator = torch.Generator().manual_seed(0)
    side = _FITTED_CELLS // 4
    squares = torch.rand(1, 3, side // 2, side, generator=generator) * 2 - 1
    corners = torch.rand(1, 3, 3, 4, generator=generator) * 2 - 1
    height, width = _FITTED_CELLS * cell // 2, _FITTED_CELLS * cell
    flat = torch.nn.functional.interpolate(squares, (height, width), mode="nearest")
    slopes = torch.nn.functional.interpolate(corners, (height, width), mode="bilinear", align_corners=True)
    return torch.cat([flat, slopes], 2)
