"""FreeU: what comes up the U-Net counts more, the low frequencies of its skip connections less (Si et al. 2024).

Paper: arXiv 2309.11497, equations 3 to 6; version 1 is the constant factor that its authors released first.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Patches
from danqing.models.unet import UNetConfig
from danqing.request_parts import FreeU
from danqing.sampling.predict import PatchSource
from danqing.vocabulary import Dialect

_BOX = 1
"""Frequencies on each side of none at all that are low ones."""


def freeu_source(freeu: FreeU, config: UNetConfig, steps: int, dialect: Dialect = "danqing") -> PatchSource:
    """What `predictor(patches=...)` is given for FreeU over a run of `steps`.

    b1 and s1 hold where what comes up has four times the finest level's channels, b2 and s2 where it has twice as many
    (the authors' code, AUTOMATIC1111's extension, Forge, ComfyUI). In diffusers' dialect, and in a U-Net that does not
    widen to four times, they hold in the first and in the second up block.
    """
    wide = config.channels[0]
    stages = ((freeu.b1, freeu.s1), (freeu.b2, freeu.s2))
    if dialect == "diffusers" or config.channels[-1] != 4 * wide:
        changes = {f"up_blocks.{i}": partial(_stage, stage, freeu.version) for i, stage in enumerate(stages)}
    else:
        by_channels = {4 * wide: stages[0], 2 * wide: stages[1]}
        names = [f"up_blocks.{i}" for i in range(len(config.channels))]
        changes = {name: partial(_by_channels, by_channels, freeu.version) for name in names}
    patches = Patches(skip_scale=changes)

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        share = math.floor(at.step) / steps
        return patches if freeu.start <= share and (share < freeu.end or freeu.end == 1) else None

    return source


def _by_channels(
    stages: dict[int, tuple[float, float]], version: int, hidden: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor]:
    stage = stages.get(hidden.shape[1])
    return (hidden, skip) if stage is None else _stage(stage, version, hidden, skip)


def _stage(stage: tuple[float, float], version: int, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the channels of `hidden` (B, C, H, W) times b; the low frequencies of `skip` (B, C', H, W) times s."""
    b, s = stage
    half = hidden.shape[1] // 2
    factor = b if version == 1 else (1 + (b - 1) * _structure(hidden)).to(hidden.dtype)
    raised = torch.cat([hidden[:, :half] * factor, hidden[:, half:]], 1)
    return raised, low_frequencies(skip, s)


def _structure(hidden: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: the mean of the channels, from each picture's least to its greatest."""
    mean = hidden.float().mean(1, keepdim=True)
    least, greatest = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    return (mean - least) / (greatest - least).clamp(min=torch.finfo(torch.float32).tiny)


def low_frequencies(x: Tensor, scale: float) -> Tensor:
    """`x` (B, C, H, W) with its lowest frequencies (the 2x2 in the middle of the spectrum) times `scale`."""
    frequencies = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    rows, columns = (
        slice(max(side // 2 - _BOX, 0), side // 2 + _BOX) for side in x.shape[-2:]
    )  # a side of 1 has its only frequency there
    weights = torch.ones(x.shape[-2:], device=x.device)
    weights[rows, columns] = scale
    changed: Tensor = torch.fft.ifftshift(frequencies * weights, dim=(-2, -1))
    return torch.fft.ifftn(changed, dim=(-2, -1)).real.to(x.dtype)  # type: ignore[no-any-return]
