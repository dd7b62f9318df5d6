"""Latents -> small pictures, in next to no time: each cell's colour is a linear function of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from danqing.models.autoencoder import Autoencoder
from danqing.pipeline.picture import grid

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
_FITTED_CELLS = 32


@torch.no_grad()
def colours(autoencoder: Autoencoder) -> Tensor:
    """(C + 1, 3) float32: the published table, or for other autoencoders one fitted to its own encoder.

    The fit is least squares over the cells of one picture of coloured squares and slopes; it takes one small encode.
    """
    config = autoencoder.config
    kind = _SCALES.get(config.scale) if config.latent_channels == 4 and not config.mean else None
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
    values = ((mixed / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
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
