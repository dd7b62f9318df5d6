"""Soft inpainting: how much a grey mask lets change, step by step and at the end.

AUTOMATIC1111's script of that name; differential diffusion (Levin & Fried 2023) with its threshold made gradual.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from danqing.request_parts import SoftInpainting

_RADIUS, _DEVIATION = 2, 1.5
"""Of the neighbourhood over which changes are evened out, in latent cells."""


def blend(settings: SoftInpainting, old: Tensor, new: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """`old` and `new` (B, C, H, W) mixed at noise level `sigma`; `mask` (1, 1, H, W) in [0, 1], 1 is all new.

    The new one's share is mask ^ (strength * sigma ^ bias). A mixture of vectors is shorter than they are: its length
    is brought to the power mean of theirs, whose exponent is the contrast boost.
    """
    share = mask.double() ** (sigma**settings.schedule_bias * settings.preservation_strength)
    mixed = old * (1 - share).to(old) + new * share.to(new)
    power = settings.transition_contrast_boost
    lengths = [x.norm(dim=1, keepdim=True).double() ** power for x in (old, new)]
    wanted = (lengths[0] * (1 - share) + lengths[1] * share) ** (1 / power)
    factor: Tensor = wanted / (mixed.norm(dim=1, keepdim=True).double() + 1e-5)
    blended: Tensor = mixed * factor.to(mixed)
    return blended


def overlay(settings: SoftInpainting, old: Tensor, new: Tensor, mask: Tensor, size: tuple[int, int]) -> Image.Image:
    """The mask (L, of `size` = width, height) by which the new picture is laid over: 255 where it has changed enough.

    `old` and `new` are (1, C, h, w), `mask` (1, 1, h, w) in [0, 1].
    """
    given = 1 - mask[0, 0].double().clamp(0, 1).cpu().numpy() ** (settings.preservation_strength / 2)
    tolerance = 0.5 * (1 - settings.mask_influence) + given * settings.mask_influence
    half = settings.difference_threshold * tolerance / (1.00001 - tolerance)
    change = (new - old).norm(dim=1)[0].double().cpu().numpy()
    change = _weighted_mean(_weighted_mean(change, 0.9, 1.0), 0.25, 0.75)
    ratio = np.divide(change, half, out=np.full_like(change, np.inf), where=half > 0)
    kept = 1 / (1 + np.where(change > 0, ratio, 0) ** settings.difference_contrast)
    kept = kept**3 * (kept * (6 * kept - 15) + 10)
    small = Image.fromarray((255 * (1 - kept)).astype(np.uint8))
    return small.resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(4))


def _weighted_mean(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Each value's neighbourhood in order, weighted by nearness: the mean between two quantiles, at least 1 wide.

    `low` and `high` are shares of the neighbourhood's weight. (0.9, 1) is a soft maximum, (0.25, 0.75) a soft median.
    """
    offsets = torch.arange(-_RADIUS, _RADIUS + 1).double()
    kernel = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / _DEVIATION**2)
    rim = float(np.exp(-((_RADIUS + 1) ** 2) / _DEVIATION**2))
    kernel = ((kernel - rim) / (1 - rim)).clamp(min=0).flatten()

    def windows(x: Tensor) -> Tensor:
        size = 2 * _RADIUS + 1
        return torch.nn.functional.unfold(x[None, None], size, padding=_RADIUS)[0].T

    picture = torch.from_numpy(np.ascontiguousarray(values)).double()
    inside = windows(torch.ones_like(picture)) * kernel
    ordered, order = windows(picture).sort(dim=1)
    weights = inside.gather(1, order)
    upper = weights.cumsum(1)
    total = upper[:, -1:]
    first, last = total * low, total * high
    centre, narrow = (first + last) / 2, (last - first) < 1
    first, last = torch.where(narrow, centre - 0.5, first), torch.where(narrow, centre + 0.5, last)
    over = (last - total).clamp(min=0)
    first, last = first - over, last - over
    under = (-first).clamp(min=0)
    first, last = first + under, last + under
    share = (torch.minimum(upper, last) - torch.maximum(upper - weights, first)).clamp(min=0)
    return ((ordered * share).sum(1) / share.sum(1).clamp(min=1e-12)).view(picture.shape).numpy()
