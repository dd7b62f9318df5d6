"""Painting over in tiles: every tile once, no seam where nothing changes, a model's pictures at the size asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import danqing
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.sd_upscale import cut, joined, places
from danqing.requests import MAX_SEED, ImageToImage, Inpaint, Painting, read


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _paint(model: Model, said: list[str] | None = None, **fields: Any) -> list[danqing.Picture]:
    notes: list[str] = [] if said is None else said
    settings = {"prompt": "x", "steps": 2, "seed": 3, "denoising_strength": 0.5, "width": 64, "height": 64, **fields}
    return danqing.paint(read(ImageToImage, settings), model, say=notes.append)


@pytest.mark.parametrize(("tile", "count"), [((64, 64), 6), ((64, 80), 6), ((150, 90), 1), ((200, 50), 3)])
def test_tiles_that_stay_are_the_picture(tile: tuple[int, int], count: int) -> None:
    image = _noise(150, 90)
    parts = cut(image, tile, 16)
    assert len(parts) == count
    assert {part.size for part in parts} == {(min(tile[0], 150), min(tile[1], 90))}
    assert joined(parts, image.size, tile, 16).tobytes() == image.tobytes()


def test_tiles_stand_at_even_distances_and_fade_in_from_left_and_above() -> None:
    assert places(1000, 512, 64) == [0, 244, 488]
    assert places(960, 512, 64) == [0, 448]
    assert places(512, 512, 64) == places(90, 512, 64) == [0]
    grey = [Image.new("RGB", (64, 64), (value,) * 3) for value in (0, 100, 40, 200)]
    out = np.asarray(joined(grey, (96, 96), (64, 64), 16), dtype=int)[..., 0]
    assert out[0, [0, 32, 40, 48, 95]].tolist() == [0, 0, 50, 100, 100]
    assert out[[31, 40, 48], 0].tolist() == [0, 20, 40]
    assert out[95, 95] == 200


def test_a_pointwise_change_has_no_seam() -> None:
    image = _noise(150, 90)
    parts = [ImageOps.invert(part) for part in cut(image, (64, 64), 16)]
    assert joined(parts, image.size, (64, 64), 16).tobytes() == ImageOps.invert(image).tobytes()


def test_a_tile_of_another_size_is_brought_to_its_place() -> None:
    image = Image.new("RGB", (30, 20), (9, 99, 199))
    parts = [part.resize((64, 64)) for part in cut(image, (64, 64), 16)]
    assert joined(parts, image.size, (64, 64), 16).tobytes() == image.tobytes()


def test_a_model_paints_over_what_was_enlarged(tiny: Model) -> None:
    image = _noise(48, 40)
    events = list(
        danqing.stream(
            ImageToImage(image=image, steps=2, seed=3, denoising_strength=0.5, width=64, height=64, sd_upscale="2,16"),
            tiny,
            say=lambda line: None,
        )
    )
    (picture,) = events[-1].pictures
    enlarged = image.resize((96, 80), Image.Resampling.LANCZOS)
    assert picture.image.size == (96, 80)
    assert picture.image.tobytes() != enlarged.tobytes()
    assert {event.steps for event in events} == {4 * 2}, "two steps in each of four tiles"
    assert [event.step for event in events] == [*range(1, 9)]


def test_a_tile_is_what_image_to_image_makes_of_it(tiny: Model) -> None:
    """The first tile has the picture's seed, the next one more; the corners lie in one tile each."""
    image = _noise(96, 64)
    (whole,) = _paint(tiny, image=image, sd_upscale="2,16,none")
    for left, seed in ((0, 3), (32, 4)):
        (alone,) = _paint(tiny, image=image.crop((left, 0, left + 64, 64)), seed=seed)
        outer = (0, 0, 32, 64) if left == 0 else (48, 0, 64, 64)
        place = tuple(side + shift for side, shift in zip(outer, (left, 0, left, 0)))
        assert whole.image.crop(place).tobytes() == alone.image.crop(outer).tobytes()


def test_pictures_of_a_batch_are_those_alone(tiny: Model) -> None:
    batch = _paint(tiny, image=_noise(48, 40), sd_upscale="2,16", batch_size=2)
    (second,) = _paint(tiny, image=_noise(48, 40), sd_upscale="2,16", seed=4)
    assert batch[1].image.tobytes() == second.image.tobytes()
    assert batch[0].image.tobytes() != second.image.tobytes()


def test_after_the_highest_seed_comes_nought(tiny: Model) -> None:
    (picture,) = _paint(tiny, image=_noise(48, 40), sd_upscale="2,16", seed=MAX_SEED)
    assert picture.resolved.request.seed == MAX_SEED


def test_it_is_recorded_and_replayed(tiny: Model, tmp_path: Path) -> None:
    _noise(48, 40).save(tmp_path / "small.png")
    (picture,) = _paint(tiny, image=str(tmp_path / "small.png"), sd_upscale="1.5,16,Bicubic")
    picture.save(tmp_path / "large.png")
    assert "Size: 64x64" in picture.infotext
    assert "SD upscale overlap: 16, SD upscale upscaler: Bicubic, SD upscale scale: 1.5" in picture.infotext
    again = danqing.replay(tmp_path / "large.png", tiny)
    assert again.identical
    assert again.picture.image.size == (72, 60)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ImageToImage, {"sd_upscale": "2,64"}, "sd_upscale: tiles of 64x64 cannot overlap by 64"),
        (ImageToImage, {"sd_upscale": "2,16,No Such.pth"}, "No Such.pth"),
        (ImageToImage, {"sd_upscale": "0.5"}, "sd_upscale.scale: should be greater than or equal to 1"),
        (ImageToImage, {"sd_upscale": "yes", "inversion": True, "subimage": "b.png"}, "subimage: does not go with"),
        (Inpaint, {"sd_upscale": "yes"}, "sd_upscale: paints whole pictures over"),
    ],
)
def test_what_cannot_be_is_one_line(tiny: Model, kind: type[Painting], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DanqingError, match=r"^[^\n]*$") as raised:
        danqing.paint(read(kind, {"image": _noise(48, 40), "width": 64, "height": 64, "steps": 1, **fields}), tiny)
    assert message in str(raised.value)
