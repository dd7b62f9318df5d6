"""Tiled diffusion: nothing changes where one tile is enough, little where there are two, and it is told and replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import danqing
from danqing.errors import DanqingError
from danqing.families import SD1, Model
from danqing.pipeline.run import fitting_plans
from danqing.requests import ImageToImage, Painting, TextToImage, read

SMALL = "12,12,8,2"
"""Tiles of 96 pixels."""


def paint(model: Model, said: list[str] | None = None, kind: type[Painting] = TextToImage, **fields: Any) -> np.ndarray:
    notes: list[str] = [] if said is None else said
    request = read(kind, {"prompt": "a castle", "steps": 3, "seed": 5, "width": 128, "height": 64, **fields})
    (picture,) = danqing.paint(request, model, say=notes.append)
    return np.asarray(picture.image).astype(float)


@pytest.mark.parametrize("method", ["MultiDiffusion", "mixture of diffusers"])
def test_one_tile_is_the_picture_bit_for_bit(tiny: Model, method: str) -> None:
    said: list[str] = []
    tiled = paint(tiny, said, tiled_diffusion=f"16,16,8,4,{method}")
    assert np.array_equal(tiled, paint(tiny))
    assert said == ["tiled_diffusion has no effect: the picture fits into one tile"]


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_two_tiles_change_little_and_leave_no_seam(tiny: Model, method: str) -> None:
    whole, said = paint(tiny), list[str]()
    tiled = paint(tiny, said, tiled_diffusion=f"{SMALL},{method}")
    assert said == []
    difference = np.abs(tiled - whole).mean()
    other = np.abs(paint(tiny, seed=6) - whole).mean()
    assert 0 < difference < other / 2
    steps = np.abs(np.diff(tiled, axis=1)).mean((0, 2))
    edges = [31, 32, 95, 96]  # where the tiles begin and end
    assert steps[edges].max() < 2 * steps.mean()


def test_tiles_of_one_call_are_those_of_many(tiny: Model) -> None:
    assert np.array_equal(paint(tiny, tiled_diffusion="12,12,8,1"), paint(tiny, tiled_diffusion="12,12,8,4"))


def test_second_passes_and_pictures_painted_over_in_tiles(tiny: Model) -> None:
    hires = {"enable_hr": True, "width": 64, "height": 64, "hr_scale": 2}
    assert not np.array_equal(paint(tiny, **hires), paint(tiny, **hires, tiled_diffusion=SMALL))
    image = Image.linear_gradient("L").resize((128, 64)).convert("RGB")
    over = {"kind": ImageToImage, "image": image, "width": None, "height": None}
    assert not np.array_equal(paint(tiny, **over), paint(tiny, **over, tiled_diffusion=SMALL))


def test_it_is_recorded_and_replayed(tiny: Model, tmp_path: Path) -> None:
    request = TextToImage(
        prompt="x", steps=2, seed=1, width=128, height=64, tiled_diffusion={"tile_width": 12, "overlap": 4}
    )
    (picture,) = danqing.paint(request, tiny)
    picture.save(tmp_path / "tiled.png")
    again = danqing.replay(tmp_path / "tiled.png", tiny)
    assert again.told.request.tiled_diffusion == request.tiled_diffusion
    assert again.identical


def test_memory_is_planned_by_the_tile(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a call of the whole picture does not fit, one of its tiles may."""
    monkeypatch.setattr("danqing.pipeline.run.available", lambda device: 5 * 2**30)
    large, lines = replace(tiny, family=SD1), list[str]()
    request = TextToImage(width=4096, height=4096, tiled_diffusion="64,64,8")
    fitting_plans(request, large, 2, lines.append)
    assert [line.rpartition(", ")[2] for line in lines] == ["decoded in tiles"]
    fitting_plans(request.model_copy(update={"tiled_diffusion": None}), large, 2, lines.append)
    assert "even" in lines[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tiled_diffusion": "16,16,16"}, "an overlap of 16 leaves nothing of a tile of 16 cells"),
        ({"tiled_diffusion": "16,8,8"}, "an overlap of 8 leaves nothing of a tile of 8 cells"),
        ({"tiled_diffusion": "much"}, "tiled_diffusion.tile_width: should be a valid integer"),
        ({"tiled_diffusion": "1,2,3,4,MultiDiffusion,6"}, "should be yes, no, or up to 5 settings"),
        ({"tiled_diffusion": "96,96,48,4,Magic"}, "'MultiDiffusion' or 'Mixture of Diffusers'"),
        ({"tiled_diffusion": "yes", "tiling": "x"}, "tiling: does not go with tiled_diffusion"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DanqingError, match=r"^[^\n]*$") as raised:
        read(TextToImage, fields)
    assert message in str(raised.value)
