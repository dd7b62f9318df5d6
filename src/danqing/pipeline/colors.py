"""Colour correction: a painted picture gets the colours of the one it was made from."""

from __future__ import annotations

import numpy as np
from PIL import Image

_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
"""sRGB's primaries under D65 (IEC 61966-2-1)."""
_WHITE = _TO_XYZ.sum(axis=1)
_LIGHTNESS = np.array([0.3, 0.59, 0.11])
"""The weights of PDF's non-separable blend modes (ISO 32000-1, 11.3.5.3)."""


def match_colors(image: Image.Image, like: Image.Image) -> Image.Image:
    """`image` with the distribution of colours of `like`, and its own lightness; both RGB.

    As AUTOMATIC1111 does it: histograms matched in CIE L*a*b*, then PDF's luminosity blend of the original over it.
    """
    source, target = _lab(image), _lab(like)
    matched = np.stack([_matched(source[..., i], target[..., i]) for i in range(3)], axis=-1)
    rgb = _luminosity(_rgb(matched), np.asarray(image, dtype=np.float64) / 255)
    return Image.fromarray((rgb.clip(0, 1) * 255).round().astype(np.uint8))


def _matched(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`values` mapped, in their order, onto the quantiles of `like`."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    wanted, amounts = np.unique(like, return_counts=True)
    quantiles = np.interp(np.cumsum(counts) / values.size, np.cumsum(amounts) / like.size, wanted)
    return np.asarray(quantiles[where.ravel()].reshape(values.shape))


def _lab(image: Image.Image) -> np.ndarray:
    """(H, W, 3): L* in [0, 100], a* and b*, in 256 levels as OpenCV's 8-bit pictures have them."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    f = linear @ _TO_XYZ.T / _WHITE
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    lightness = np.where(f[..., 1] > 0, 116 * f[..., 1] - 16, 0)
    a, b = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.stack([(lightness * 2.55).round() / 2.55, a.round(), b.round()], axis=-1)


def _rgb(lab: np.ndarray) -> np.ndarray:
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * _WHITE
    linear = (xyz @ np.linalg.inv(_TO_XYZ).T).clip(0, 1)
    return np.asarray(np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear))


def _luminosity(color: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The colour of one with the lightness of the other, each (H, W, 3) in [0, 1]: SetLum of ISO 32000-1, 11.3.5.3."""
    wanted = light @ _LIGHTNESS
    moved = color + (wanted - color @ _LIGHTNESS)[..., None]
    lightness = (moved @ _LIGHTNESS)[..., None]
    low, high = moved.min(-1, keepdims=True), moved.max(-1, keepdims=True)
    span = np.where(low < 0, lightness - low, 1)
    moved = np.where(low < 0, lightness + (moved - lightness) * lightness / np.where(span == 0, 1, span), moved)
    span = np.where(high > 1, high - lightness, 1)
    return np.asarray(
        np.where(high > 1, lightness + (moved - lightness) * (1 - lightness) / np.where(span == 0, 1, span), moved)
    )
