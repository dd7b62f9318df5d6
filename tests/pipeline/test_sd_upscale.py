"""Painting over in tiles: every tile once, no seam where nothing changes, a model's pictures at the size asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from danqing.pipeline.sd_upscale import repaint_tiles, sd_upscale
from tiny_model import tiny_model


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_that_stay_are_the_picture() -> None:
    image, seen = _noise(150, 90), []

    def same(part: Image.Image, number: int) -> Image.Image:
        seen.append((number, part.size))
        return part

    out = repaint_tiles(image, same, 64, 16)
    assert out.tobytes() == image.tobytes()
    assert seen == [(number, (64, 64)) for number in range(6)]


def test_a_pointwise_change_has_no_seam() -> None:
    image = _noise(150, 90)
    out = repaint_tiles(image, lambda part, _: ImageOps.invert(part), 64, 16)
    assert out.tobytes() == ImageOps.invert(image).tobytes()


def test_a_tile_of_another_size_is_brought_to_its_place() -> None:
    image = Image.new("RGB", (30, 20), (9, 99, 199))
    assert repaint_tiles(image, lambda part, _: part.resize((64, 64)), 64, 16).tobytes() == image.tobytes()


def test_tiles_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        repaint_tiles(_noise(8, 8), lambda part, _: part, 8, 8)


def test_a_model_paints_over_what_was_enlarged() -> None:
    model = tiny_model(torch.device("cpu"), torch.float32)
    fields = {"prompt": "a castle", "steps": 2, "denoising_strength": 0.5, "seed": 3}
    done: list[tuple[int, int]] = []
    notes: list[str] = []
    image = _noise(48, 40)
    out = sd_upscale(image, model, fields, tile=64, overlap=16, progress=lambda *at: done.append(at), say=notes.append)
    again = sd_upscale(image, model, fields, tile=64, overlap=16, say=notes.append)
    assert out.size == (96, 80)
    assert done == [(number, 4) for number in (1, 2, 3, 4)]
    assert out.tobytes() == again.tobytes()
    assert out.tobytes() != image.resize((96, 80), Image.Resampling.LANCZOS).tobytes()
