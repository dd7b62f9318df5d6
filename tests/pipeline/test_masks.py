"""Masks from pictures, as AUTOMATIC1111 reads and blurs them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from danqing.pipeline.masks import blur, read_mask

GREY = Image.linear_gradient("L").resize((64, 64))


@pytest.mark.parametrize("binary", [True, False])
def test_brightness_stays_grey(binary: bool) -> None:
    assert read_mask(GREY.convert("RGB"), binary).tobytes() == GREY.tobytes()
    opaque = GREY.convert("RGB").convert("RGBA")
    assert read_mask(opaque, binary).tobytes() == GREY.tobytes(), "an opaque alpha channel says nothing"


def test_opacity_goes_before_brightness_and_is_cut() -> None:
    picture = Image.new("RGBA", GREY.size, "white")
    picture.putalpha(GREY)
    assert read_mask(picture, False).tobytes() == GREY.tobytes()
    cut = np.asarray(read_mask(picture, True))
    assert np.array_equal(cut, np.where(np.asarray(GREY) > 128, 255, 0))


@pytest.mark.parametrize(("x", "y"), [(4, 4), (0, 6), (9, 0)])
def test_a_blur_is_that_of_a_gaussian(x: int, y: int) -> None:
    """Pillow's approximates it by boxes, within a few levels; a flat mask stays flat, and a mirrored one mirrored."""
    mask = Image.new("L", (96, 96))
    mask.paste(255, (24, 24, 72, 72))
    ours = np.asarray(blur(mask, x, y), dtype=int)
    theirs = np.asarray(mask.filter(ImageFilter.GaussianBlur((x, y))), dtype=int)
    assert np.abs(ours - theirs).max() <= 8
    assert np.array_equal(ours, ours[::-1, ::-1])
    assert blur(Image.new("L", (5, 3), 77), x, y).tobytes() == bytes([77] * 15)
