"""Painting over pictures: strength, masks, what stays as it was, loops, hires fix, detailers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import danqing
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.detect import Found
from danqing.pipeline.levels import levels
from danqing.pipeline.over import strengths
from danqing.pipeline.resolve import resolve
from danqing.request_parts import Reference
from danqing.requests import ImageToImage, Inpaint, Outpaint, Painting, TextToImage


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def hole(width: int = 96, height: int = 64) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    return mask


def paint(kind: type[Painting], model: Model, said: list[str] | None = None, **fields: Any) -> list[np.ndarray]:
    notes: list[str] = [] if said is None else said
    request = kind(**{"prompt": "x", "steps": 2, "seed": 5, **fields})
    return [np.asarray(picture.image) for picture in danqing.paint(request, model, say=notes.append)]


@pytest.mark.parametrize(
    ("sampler", "dialect", "exact", "strength", "done"),
    [
        ("Euler", "danqing", False, 0.75, 16),
        ("Euler", "danqing", False, 1.0, 20),
        ("DDIM", "a1111", False, 0.75, 15),
        ("Euler", "danqing", True, 0.4, 20),
        ("Euler", "comfyui", False, 0.5, 20),
        ("Euler", "diffusers", False, 0.75, 15),
    ],
)
def test_strength_and_steps(tiny: Model, sampler: str, dialect: Any, exact: bool, strength: float, done: int) -> None:
    asked = ImageToImage(image="x.png", steps=20, sampler_name=sampler, scheduler="Automatic", dialect=dialect)
    request = resolve(asked, tiny.family, Reference(name="m"), picture_size=(64, 64)).request
    assert len(levels(request, tiny, strength, exact)) == done + 1


def test_a_strength_of_nothing_is_one_line(tiny: Model) -> None:
    with pytest.raises(DanqingError, match="denoising_strength: 0 leaves the picture"):
        paint(ImageToImage, tiny, image=photograph(), denoising_strength=0)


def test_a_picture_painted_over_does_not_depend_on_its_batch(tiny: Model) -> None:
    (alone,) = paint(ImageToImage, tiny, image=photograph())
    batch = paint(ImageToImage, tiny, image=photograph(), seed=4, batch_size=2)
    assert np.array_equal(alone, batch[1])
    assert not np.array_equal(batch[0], batch[1])


def test_little_strength_stays_nearer(tiny: Model) -> None:
    start = paint(ImageToImage, tiny, image=photograph(), steps=20, denoising_strength=0.01)[0].astype(float)
    near = paint(ImageToImage, tiny, image=photograph(), steps=20, denoising_strength=0.1)[0]
    far = paint(ImageToImage, tiny, image=photograph(), steps=20, denoising_strength=0.9)[0]
    assert np.abs(near - start).mean() < np.abs(far - start).mean()


def test_only_masked_leaves_the_rest_bit_for_bit(tiny: Model) -> None:
    said: list[str] = []
    fields = {"image": photograph(), "inpaint_full_res": True, "width": 64, "height": 64, "mask_blur": 4}
    (painted,) = paint(Inpaint, tiny, said, mask=hole().resize((48, 32), Image.Resampling.NEAREST), **fields)
    changed = (painted != np.asarray(photograph())).any(-1)
    rows, columns = np.where(changed)
    assert painted.shape == (64, 96, 3)
    assert changed[16:32, 24:40].any()
    assert (columns.min() >= 6, columns.max() <= 58, rows.max() <= 50) == (True, True, True)
    assert any("the mask is 48x32 and the picture 96x64" in line for line in said)


def test_a_mask_from_what_is_transparent_and_inverted(tiny: Model) -> None:
    picture = photograph().convert("RGBA")
    picture.putalpha(hole().point(lambda value: 255 - value))
    (one,) = paint(Inpaint, tiny, image=picture, mask_blur=0, background_color="#000000")
    flat = np.asarray(photograph())
    assert np.array_equal(one[:, 56:], flat[:, 56:])
    (other,) = paint(Inpaint, tiny, image=photograph(), mask=hole(), inpainting_mask_invert=True, mask_blur=0)
    assert np.array_equal(other[16:32, 24:40], flat[16:32, 24:40])


@pytest.mark.parametrize("fields", [{"mask": Image.new("L", (96, 64))}, {}])
def test_nothing_to_paint_is_one_line(tiny: Model, fields: dict[str, Any]) -> None:
    with pytest.raises(DanqingError, match=r"^mask: "):
        paint(Inpaint, tiny, image=photograph(), **fields)


def test_colours_are_corrected_to_the_first_picture_and_what_stands_under_the_mask(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims: list[Image.Image] = []

    def noted(image: Image.Image, like: Image.Image) -> Image.Image:
        aims.append(like)
        return image

    monkeypatch.setattr("danqing.pipeline.over.match_colors", noted)
    paint(ImageToImage, tiny, image=photograph(), color_correction=True, loops=3)
    assert [aim.tobytes() for aim in aims] == [photograph().tobytes()] * 3, "each loop aims at the first picture"
    paint(Inpaint, tiny, image=photograph(), mask=hole(), color_correction=True, inpainting_fill="fill")
    assert aims[-1].tobytes() != photograph().tobytes(), "filled before the colours are taken"


def test_fills_and_soft_inpainting_differ(tiny: Model) -> None:
    fields = {"image": photograph(), "mask": hole()}
    made = [paint(Inpaint, tiny, **fields, inpainting_fill=number)[0] for number in range(4)]
    made.append(paint(Inpaint, tiny, **fields, soft_inpainting="yes", mask_blur=8)[0])
    assert len({picture.tobytes() for picture in made}) == 5


@pytest.mark.parametrize("side", ["left", "right", "up", "down"])
def test_one_side_is_outpainted(side: str, tiny: Model) -> None:
    (painted,) = paint(Outpaint, tiny, image=photograph(), mask_blur=4, **{side: 8})
    photo = np.asarray(photograph())
    down, across = 8 * (side in ("up", "down")), 8 * (side in ("left", "right"))
    assert painted.shape == (photo.shape[0] + down, photo.shape[1] + across, 3)
    top, left = 8 * (side == "up"), 8 * (side == "left")
    kept = painted[top : top + photo.shape[0], left : left + photo.shape[1]]
    assert np.array_equal(kept[8:-8, 8:-8], photo[8:-8, 8:-8])


def test_outpainting_keeps_the_picture(tiny: Model) -> None:
    (painted,) = paint(Outpaint, tiny, image=photograph(), left=13, up=5, mask_blur=8)
    assert painted.shape == (69, 109, 3)
    assert np.array_equal(painted[13:, 21:], np.asarray(photograph())[8:, 8:])


def test_loopback_curves() -> None:
    def of(curve: str) -> list[float]:
        fields = {"denoising_strength": 0.2, "final_denoising_strength": 0.8, "loops": 3, "denoising_curve": curve}
        return strengths(ImageToImage(image="x.png", **fields))

    assert of("linear") == pytest.approx([0.2, 0.5, 0.8])
    assert of("lazy")[1] < 0.5 < of("aggressive")[1]
    assert of("lazy")[2] == pytest.approx(0.8)


def test_hires_fix_paints_larger(tiny: Model) -> None:
    fields = {"width": 64, "height": 64, "enable_hr": True, "hr_second_pass_steps": 1}
    assert paint(TextToImage, tiny, **fields, hr_scale=1.5)[0].shape == (96, 96, 3)
    assert paint(TextToImage, tiny, **fields, hr_resize_x=96, hr_resize_y=64, hr_upscaler="Lanczos")[0].shape == (
        64,
        96,
        3,
    )


def test_a_detailer_repaints_what_it_finds(tiny: Model) -> None:
    fields: dict[str, Any] = {"prompt": "x", "steps": 2, "seed": 1, "width": 64, "height": 64}
    (plain,) = danqing.paint(TextToImage(**fields), tiny, say=print)
    finders = {"f": lambda image: [Found((8, 8, 30, 40), 0.9), Found((50, 50, 60, 60), 0.1)]}
    (made,) = danqing.paint(TextToImage(**fields, detailers="f"), tiny, say=print, detectors=finders)
    changed = (np.asarray(plain.image) != np.asarray(made.image)).any(-1)
    assert changed[10:38, 10:28].any()
    assert not changed[:, 48:].any()
