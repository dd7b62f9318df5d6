"""Pictures larger than a network's memory, denoised in overlapping windows (MultiDiffusion, Bar-Tal et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.runtime.tiles import ramp, starts
from danqing.sampling.types import Predict

Window = tuple[int, int, int, int]
"""(top, left, height, width) in latent cells."""


def in_windows(predict: Predict, side: int, overlap: int) -> Predict:
    """`predict` for latents (B, C, H, W) of any size, in windows of `side` cells that overlap by `overlap`.

    A branch's clean prediction is the weighted mean of its windows' (Bar-Tal et al. 2023, equation 5; for samplers that
    are linear in the prediction that is the paper's mean of next steps). Its area and channels are cut to each window.
    What wraps the result, guidance and all, sees the whole picture; with guidance that is linear, as the classifier-free
    one, this is the mean of guided windows. Where one window covers the picture this is `predict`, bit for bit.
    Raises ValueError unless 0 <= overlap < side.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"windows of {side} cannot overlap by {overlap}")

    def predicted(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        height, width = latents.shape[-2:]
        if max(height, width) <= side:
            return predict(latents, at, branches)
        total = torch.zeros(1, 1, height, width, device=latents.device)
        sums = [torch.zeros_like(latents) for _ in branches]
        for top, left in product(starts(height, side, overlap), starts(width, side, overlap)):
            window = (top, left, min(side, height), min(side, width))
            weight = _weight(window, height, width, overlap).to(latents.device)
            parts = predict(_cut(latents, window), at, [_branch(branch, window, height, width) for branch in branches])
            _cut(total, window).add_(weight)
            for whole, part in zip(sums, parts):
                _cut(whole, window).add_(part.to(latents.device) * weight)
        return [whole / total for whole in sums]

    return predicted


def _cut(value: Tensor, window: Window) -> Tensor:
    top, left, height, width = window
    return value[..., top : top + height, left : left + width]


def _weight(window: Window, height: int, width: int, overlap: int) -> Tensor:
    """(h, w) float32: falls towards nothing across the overlaps, but not at the picture's edge."""
    top, left, h, w = window
    return ramp(top, h, height, overlap)[:, None] * ramp(left, w, width, overlap)


def _branch(branch: Conditioning, window: Window, height: int, width: int) -> Conditioning:
    """`branch` in a window: whatever of it lies on the picture's grid is cut out."""

    def part(value: Tensor | None) -> Tensor | None:
        return value if value is None or value.shape[-2:] != (height, width) else _cut(value, window)

    return replace(branch, channels=part(branch.channels), area=part(branch.area))
