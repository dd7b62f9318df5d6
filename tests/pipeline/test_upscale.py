"""Pictures made larger: every mode, any size, tiles, and too little memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.paint import paint
from danqing.pipeline.upscale import Upscaler, plain, upscale
from danqing.requests import ImageToImage, TextToImage


def _twice(channels: int = 3, fits: int = 1 << 20, **changes: Any) -> Upscaler:
    """A network of nearest neighbours that doubles; parts larger than `fits` do not fit into memory."""

    def network(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[:2] == (1, channels)
        if max(x.shape) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    fields = {
        "scale": 2,
        "input_channels": channels,
        "output_channels": channels,
        "device": "cpu",
        "dtype": torch.float32,
        "tiling": SimpleNamespace(name="SUPPORTED"),
    }

    class Descriptor(SimpleNamespace):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return network(x)

    return Upscaler("twice", network=Descriptor(**{**fields, **changes}))


def _picture(mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    image = Image.radial_gradient("L").resize(size).convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_are_kept_and_tiles_have_no_seam(mode: str, channels: int) -> None:
    image = _picture(mode)
    out = upscale(image, _twice(channels), 2, tile=64)
    assert (out.mode, out.size) == (mode, (180, 140))
    expected = image.resize((180, 140), Image.Resampling.NEAREST)
    for band in "LRGB":
        if band in out.getbands():
            assert out.getchannel(band).tobytes() == expected.getchannel(band).tobytes()


@pytest.mark.parametrize(("scale", "size"), [(3.3, (297, 231)), (1, (90, 70)), ((50, 333), (50, 333)), (0.01, (1, 1))])
def test_any_size(scale: Any, size: tuple[int, int]) -> None:
    for upscaler in ("Lanczos", _twice()):
        assert upscale(_picture(), upscaler, scale).size == size


def test_an_opaque_picture_stays_opaque() -> None:
    image = _picture("RGB").convert("RGBA")
    assert upscale(image, _twice(), 3).getchannel("A").getextrema() == (255, 255)


def test_progress_ends_at_the_whole() -> None:
    told: list[tuple[int, int]] = []
    upscale(_picture(), _twice(), 4, tile=64, progress=lambda *at: told.append(at))
    assert told == [(n, told[-1][1]) for n in range(1, len(told) + 1)]
    assert told[-1][0] == told[-1][1]


def test_too_little_memory_means_smaller_tiles_and_then_one_line() -> None:
    notes: list[str] = []
    image = _picture(size=(200, 150))
    out = upscale(image, _twice(fits=128), 2, say=notes.append)
    assert out.tobytes() == image.resize((400, 300), Image.Resampling.NEAREST).tobytes()
    assert [note.rpartition("tiles of ")[2] for note in notes] == ["256 pixels", "128 pixels"]
    with pytest.raises(DanqingError, match="out of memory even with tiles of 64"):
        upscale(image, _twice(fits=8), 2, say=notes.append)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), (0, 5), (70_000, 5)])
def test_sizes_that_are_none(scale: Any) -> None:
    with pytest.raises(DanqingError, match=r"scale|size"):
        upscale(_picture(), "Nearest", scale)


def test_other_modes_become_plain() -> None:
    assert plain(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == 255
    assert plain(Image.new("P", (2, 2))).mode == "RGB"
    assert plain(Image.new("CMYK", (2, 2))).mode == "RGB"
    assert plain(Image.new("I;16", (2, 2), 65535)).getpixel((0, 0)) == 255
    assert plain(Image.new("F", (2, 2), 128.0)).getpixel((0, 0)) == 128


@pytest.mark.parametrize("fields", [{"enable_hr": True, "hr_upscaler": "Lanczos"}, {"sd_upscale": "2, 16, Lanczos"}])
def test_a_network_within_a_painting_says_how_far_it_is(
    fields: dict[str, Any], tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("hires", "sd_upscale"):
        monkeypatch.setattr(f"danqing.pipeline.{module}.load_upscaler", lambda name, device: _twice())
    told: list[tuple[str, int, int]] = []
    request = ImageToImage(image=_picture(size=(64, 64)), **fields) if "sd_upscale" in fields else TextToImage(**fields)
    paint(request, tiny, steps=1, width=64, height=64, aside=lambda *part: told.append(part))
    assert told == [("twice", 1, 1)]
