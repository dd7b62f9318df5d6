"""Painting again: identical, or what differs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from danqing.checkpoints.hashes import sha256
from danqing.checkpoints.save import save
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata.read import read_record
from danqing.pipeline.extras import enhance_file, enhancer
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.pipeline.replay import replay
from danqing.request_parts import Reference
from danqing.requests import ImageToImage, Inpaint, Outpaint, Platform, TextToImage, Upscale
from spandrels import import_spandrel

FIELDS = {"steps": 2, "width": 64, "height": 64, "seed": 3}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def quiet(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def picture(tiny: Model) -> Picture:
    (painted,) = paint("a cat\nNegative prompt: 猫", tiny, say=lambda line: None, **FIELDS)
    return painted


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
def test_identical(picture: Picture, tiny: Model, tmp_path: Path, suffix: str) -> None:
    again = replay(picture.save(tmp_path / f"x.{suffix}"), tiny, say=quiet)
    assert (again.identical, again.differences) == (True, ())
    assert again.picture.image.tobytes() == picture.image.tobytes()


def test_a_picture_of_a_batch(tiny: Model, tmp_path: Path) -> None:
    for index, painted in enumerate(paint("a", tiny, batch_size=2, say=lambda line: None, **FIELDS)):
        assert replay(painted.save(tmp_path / f"{index}.png"), tiny).identical


def test_the_record_says_what_it_was_painted_on(picture: Picture, tmp_path: Path) -> None:
    record = read_record(Image.open(picture.save(tmp_path / "x.png")).text["danqing"])
    assert record.platform == Platform(torch=str(torch.__version__), device="cpu", dtype="float32")
    assert record.pixels == picture.record.pixels


def test_what_differs_is_named(picture: Picture, tiny: Model, tmp_path: Path) -> None:
    platform = Platform(torch="1.0", device="cuda", dtype="float32")
    record = picture.resolved
    request = record.request.model_copy(update={"seed": 4})
    other = record.model_copy(update={"request": request, "numerics": 0})
    path = Picture(picture.image, other, platform=platform).save(tmp_path / "x.png")
    again = replay(path, replace(tiny, name="other"), say=quiet)
    assert again.identical is False
    told = "\n".join(again.differences)
    for words in (
        "255 apart",
        "version 0",
        "checkpoint: was tiny-random, now other",
        "torch: was 1.0",
        "device: was cuda",
    ):
        assert words in told


def test_an_edited_file(picture: Picture, tiny: Model, tmp_path: Path) -> None:
    path = picture.save(tmp_path / "x.png")
    texts = Image.open(path).text
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value)
    Image.new("RGB", (64, 64)).save(path, pnginfo=chunks)
    assert replay(path, tiny).identical is True  # what was painted, not what it was made into


def test_the_checkpoint_is_found_by_its_hash(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "home" / "models" / "checkpoints"
    models.mkdir(parents=True)
    save(tiny, models / "castle.safetensors")
    monkeypatch.chdir(tmp_path)
    (painted,) = paint(TextToImage(prompt="x", model="castle", **FIELDS), say=lambda line: None)
    path = painted.save(tmp_path / "x.png")
    assert replay(path).identical
    (models / "castle.safetensors").rename(models / "renamed.safetensors")
    with pytest.raises(DanqingError, match=r"its checkpoint 'castle' \(hash \w{10}\) is not here; give it by --model"):
        replay(path)
    again = replay(path, name="renamed")
    assert again.identical


def test_another_tools_picture(tiny: Model, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 64x64, Model: castle")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(DanqingError, match="its checkpoint 'castle' is not here"):
        replay(tmp_path / "x.png")
    again = replay(tmp_path / "x.png", tiny)
    assert (again.told.tool, again.identical, again.picture.image.size) == ("AUTOMATIC1111", False, (64, 64))


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "mask.png", "inpaint_full_res": True, "width": 64, "height": 64, "soft_inpainting": "yes"},
        {"mask": "mask.png", "inpainting_fill": "latent noise", "mask_blur": 0},
        {"left": 24, "down": 8, "mask_blur": 8},
    ],
    ids=["only masked", "whole picture", "outpaint"],
)
def test_inpainting_and_outpainting(tiny: Model, tmp_path: Path, fields: dict[str, Any]) -> None:
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "source.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 32))
    mask.save(tmp_path / "mask.png")
    given = {**fields, "mask": str(tmp_path / "mask.png")} if "mask" in fields else fields
    kind = Inpaint if "mask" in fields else Outpaint
    request = kind(image=str(tmp_path / "source.png"), prompt="x", denoising_strength=0.8, steps=3, seed=1, **given)
    (painted,) = paint(request, tiny, say=lambda line: None)
    again = replay(painted.save(tmp_path / "x.png"), tiny)
    assert (again.identical, again.differences) == (True, ())
    assert type(again.told.request) is kind
    assert again.picture.image.tobytes() == painted.image.tobytes()


def test_automatic1111s_picture_is_known_by_its_hash(tiny: Model, tmp_path: Path) -> None:
    source = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    digest = hashlib.md5(source.convert("RGBA").tobytes(), usedforsecurity=False).hexdigest()
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(
        "parameters",
        "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 64x64, Model: castle, Denoising strength: 0.6, "
        f"Init image hash: {digest}",
    )
    source.save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(DanqingError, match=rf"'{digest}\.png', is not beside it"):
        replay(tmp_path / "x.png", tiny)
    source.save(tmp_path / f"{digest}.png")
    again = replay(tmp_path / "x.png", tiny)
    assert again.picture.resolved.request.image.md5 == digest
    assert f"Init image hash: {digest}, RNG: " in again.picture.infotext
    Image.new("RGB", (64, 64)).save(tmp_path / f"{digest}.png")
    with pytest.raises(DanqingError, match="another picture than the image it was painted from"):
        replay(tmp_path / "x.png", tiny)


def test_from_a_picture(tiny: Model, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(source)
    request = ImageToImage(image=str(source), denoising_strength=0.6, steps=3, width=64, height=64, seed=1)
    (painted,) = paint(request, tiny, say=lambda line: None)
    path = painted.save(tmp_path / "x.png")
    assert replay(path, tiny).identical
    away = source.rename(tmp_path / "elsewhere.png")
    with pytest.raises(
        DanqingError, match=r"the image it was painted from, 'source\.png', is not beside it; .* --image"
    ):
        replay(path, tiny)
    assert replay(path, tiny, images={"image": away}).identical
    Image.new("RGB", (64, 64)).save(source)
    with pytest.raises(DanqingError, match="another picture than the image it was painted from"):
        replay(path, tiny)
    with pytest.raises(DanqingError, match="mask: has no effect"):
        replay(path, tiny, images={"image": away, "mask": away})


def test_pictures_of_other_fields(tiny: Model, tmp_path: Path) -> None:
    for name, value in (("source", 90), ("second", 160)):
        Image.radial_gradient("L").point(lambda grey, value=value: (grey + value) % 256).resize((64, 64)).convert(
            "RGB"
        ).save(tmp_path / f"{name}.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "region.png")
    fields: dict[str, Any] = {"subimage": str(tmp_path / "second.png"), "subimage_strength": 0.5, "inversion": True}
    regions = [{"prompt": "a dog", "mask": str(tmp_path / "region.png")}]
    request = ImageToImage(
        image=str(tmp_path / "source.png"), steps=2, width=64, height=64, seed=1, regions=regions, **fields
    )
    (painted,) = paint(request, tiny, say=lambda line: None)
    path = painted.save(tmp_path / "x.png")
    assert replay(path, tiny, say=quiet).identical
    away = (tmp_path / "second.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(
        DanqingError, match=r"subimage it was painted from, 'second\.png', is not beside it; .* --subimage"
    ):
        replay(path, tiny, say=quiet)
    assert replay(path, tiny, images={"subimage": away}, say=quiet).identical
    (tmp_path / "region.png").unlink()
    with pytest.raises(DanqingError, match="give it, under its name, beside the picture") as error:
        replay(path, tiny, images={"subimage": away}, say=quiet)
    assert "--" not in str(error.value)


def test_an_upscaler_is_found_by_its_hash(tiny: Model, tmp_path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    network = tmp_path / "tiny4x.pth"
    torch.save({"params_ema": ESRGAN(num_blocks=1, num_filters=8).state_dict()}, network)
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "source.png")
    large = TextToImage(prompt="x", enable_hr=True, hr_scale=1.5, hr_upscaler=str(network), **FIELDS)
    tiles = ImageToImage(
        image=str(tmp_path / "source.png"), sd_upscale={"scale": 1.5, "overlap": 16, "upscaler": str(network)}, **FIELDS
    )
    files = [
        paint(request, tiny, say=lambda line: None)[0].save(tmp_path / f"{n}.png")
        for n, request in enumerate((large, tiles))
    ]
    folder = tmp_path / "home" / "models" / "ESRGAN"
    folder.mkdir(parents=True)
    network.rename(folder / "tiny4x.pth")
    for path in files:
        assert replay(path, tiny, say=quiet).identical


def test_an_enlarged_picture_is_painted_and_enlarged_again(
    picture: Picture, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    def network(seed: int) -> Path:
        torch.manual_seed(seed)
        torch.save({"params_ema": ESRGAN(num_blocks=1, num_filters=8).state_dict()}, tmp_path / "tiny4x.pth")
        return tmp_path / "tiny4x.pth"

    with torch.random.fork_rng(devices=[]):
        path = network(1)
    small = picture.save(tmp_path / "small.png")
    asked = Upscale(upscaler=str(path), scale=1.5, upscaler_2="Nearest", upscaler_2_visibility=0.25)
    enhance_file(small, tmp_path / "large.png", enhancer(asked), asked, lambda done, total: None)
    again = Upscale(width=50, height=40)
    enhance_file(tmp_path / "large.png", tmp_path / "third.png", enhancer(again), again, lambda done, total: None)
    record = read_record(Image.open(tmp_path / "third.png").text["danqing"])
    assert [step.request for step in record.enlarged] == [asked, again]
    assert record.enlarged[0].files == {"upscaler": Reference(name="tiny4x.pth", sha256=sha256(path))}
    assert (record.enlarged[0].before, record.enlarged[1].after) == ((64, 64), (50, 40))
    assert record.request == picture.record.request
    for name in ("large.png", "third.png"):
        repeated = replay(tmp_path / name, tiny, say=quiet)
        assert (repeated.identical, repeated.differences) == (True, ())
        repeated.picture.save(tmp_path / "saved.png")
        assert Image.open(tmp_path / "saved.png").text == Image.open(tmp_path / name).text
    path.unlink()
    with pytest.raises(DanqingError, match="tiny4x"):
        replay(tmp_path / "large.png", tiny, say=quiet)
    with torch.random.fork_rng(devices=[]):
        network(2)
    other = replay(tmp_path / "large.png", tiny, say=quiet)
    assert other.identical is False
    assert any(line.startswith("upscaler: was tiny4x.pth [") for line in other.differences)
    Image.new("RGB", (64, 64)).save(small, pnginfo=_chunks(small))
    enhance_file(small, tmp_path / "edited.png", enhancer(again), again, lambda done, total: None)
    assert "danqing" not in Image.open(tmp_path / "edited.png").text, "nothing paints what was edited"


def _chunks(path: Path) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in Image.open(path).text.items():
        chunks.add_text(key, value)
    return chunks
