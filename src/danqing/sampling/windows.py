"""Pictures larger than a network's memory, denoised in overlapping windows (MultiDiffusion, Bar-Tal et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.request_parts import TiledMethod
from danqing.runtime.tiles import ramp, starts
from danqing.sampling.types import Predict

Window = tuple[int, int, int, int]
"""(top, left, height, width) in latent cells."""
Weight = Callable[[Window, int, int, int], Tensor]
"""(window, the picture's height and width, overlap) -> (h, w) float32: what each of the window's cells counts."""
BELL = 0.1
"""Standard deviation of `bell`, as a share of a window's side."""


def in_windows(
    predict: Predict,
    size: tuple[int, int],
    overlap: int,
    batch: int = 1,
    weight: Weight | None = None,
) -> Predict:
    """`predict` for latents (B, C, H, W) of any size, in windows of `size` = (width, height) cells that overlap.

    A branch's clean prediction is the weighted mean of its windows' (Bar-Tal et al. 2023, equation 5; for samplers that
    are linear in the prediction that is the paper's mean of next steps). Its area, channels and controls are cut to
    each window. What wraps the result, guidance and all, sees the whole picture; with guidance that is linear, as the
    classifier-free one, this is the mean of guided windows. Where one window covers the picture this is `predict`, bit
    for bit. `batch` windows are given to a call of `predict`. A window's `weight` falls across its overlaps unless
    given. Raises ValueError unless 0 <= overlap < both sides.
    """
    if not 0 <= overlap < min(size):
        raise ValueError(f"windows of {size[0]}x{size[1]} cannot overlap by {overlap}")
    weigh = weight or faded

    def predicted(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        height, width = latents.shape[-2:]
        w, h = min(size[0], width), min(size[1], height)
        if (w, h) == (width, height):
            return predict(latents, at, branches)
        places = [(y, x, h, w) for y, x in product(starts(height, h, overlap), starts(width, w, overlap))]
        total = torch.zeros(1, 1, height, width, device=latents.device)
        sums = [torch.zeros_like(latents) for _ in branches]
        for first in range(0, len(places), batch):
            windows = places[first : first + batch]
            cut = torch.cat([_cut(latents, window) for window in windows])
            parts = predict(cut, at, [_branch(branch, windows, len(latents), height, width) for branch in branches])
            for number, window in enumerate(windows):
                weights = weigh(window, height, width, overlap).to(latents.device)
                _cut(total, window).add_(weights)
                for whole, part in zip(sums, parts):
                    _cut(whole, window).add_(part.chunk(len(windows))[number].to(latents.device) * weights)
        return [whole / total for whole in sums]

    return predicted


def _cut(value: Tensor, window: Window) -> Tensor:
    top, left, height, width = window
    return value[..., top : top + height, left : left + width]


def faded(window: Window, height: int, width: int, overlap: int) -> Tensor:
    """(h, w) float32: falls towards nothing across the overlaps, but not at the picture's edge."""
    top, left, h, w = window
    return ramp(top, h, height, overlap)[:, None] * ramp(left, w, width, overlap)


def bell(window: Window, height: int, width: int, overlap: int) -> Tensor:
    """(h, w) float32: a Gaussian about the window's middle, of a tenth of its sides (Mixture of Diffusers, Jimenez
    2023)."""
    rows, columns = (torch.exp(-(((torch.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * BELL**2)) for n in window[2:])
    return rows[:, None] * columns


WEIGHTS: Mapping[TiledMethod, Weight] = {"MultiDiffusion": faded, "Mixture of Diffusers": bell}
"""What each method of tiled diffusion makes the windows count."""


def _branch(branch: Conditioning, windows: Sequence[Window], pictures: int, height: int, width: int) -> Conditioning:
    """`branch` in all `windows`, one after another: whatever of it lies on the picture's grid is cut out."""

    def parts(value: Tensor) -> Tensor:
        if value.dim() == 4 and value.shape[-2:] == (height, width):
            return torch.cat([_cut(value.expand(pictures, -1, -1, -1), window) for window in windows])
        return value if len(value) == 1 else value.repeat(len(windows), *[1] * (value.dim() - 1))

    if len(windows) > 1:
        return branch.map(parts)

    def part(value: Any) -> Any:
        return value if value is None or value.shape[-2:] != (height, width) else _cut(value, windows[0])

    controls = tuple(control.map(part) for control in branch.controls)
    return replace(branch, channels=part(branch.channels), area=part(branch.area), controls=controls)
