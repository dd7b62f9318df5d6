"""A request's ControlNets: from a file and a picture to a painting, its record and its replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import danqing
from danqing.adapters.annotators import load_network
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata.infotext import infotext, read_infotext
from danqing.models.controlnet import ControlNet, ControlNetConfig, from_unet
from danqing.models.line_art import LineArt
from danqing.pipeline.controls import module_files
from danqing.pipeline.replay import replay
from danqing.request_parts import ControlUnit
from danqing.requests import ImageToImage, Inpaint, TextToImage, read

QUICK: dict[str, Any] = {"steps": 2, "seed": 3, "width": 64, "height": 64, "cfg_scale": 3.0}


def photograph() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, 80), np.linspace(0, 255, 64))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((10, 12, 40, 44), fill=(220, 40, 30))
    return image


@pytest.fixture
def network(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ControlNet of random weights, in a folder with a picture."""
    copy = from_unet(tiny.denoiser)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    state = {
        key: tensor.detach() + 0.08 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in copy.state_dict().items()
    }
    save_file(state, tmp_path / "edges.safetensors")
    photograph().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    return tmp_path / "edges.safetensors"


def painted(model: Model, request: Any, **options: Any) -> danqing.Picture:
    (picture,) = danqing.paint(request, model, say=lambda line: None, **options)
    return picture


def apart(a: danqing.Picture, b: danqing.Picture) -> int:
    difference = np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)
    return int(np.abs(difference).max())


def test_a_picture_steers_and_is_recorded(tiny: Model, network: Path) -> None:
    plain = painted(tiny, TextToImage(prompt="a cat", **QUICK))
    request = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,canny,2", **QUICK)
    steered, again = painted(tiny, request), painted(tiny, request)
    assert apart(plain, steered) > 5
    assert apart(steered, again) == 0
    other = painted(tiny, request, controls="edges.safetensors,photo.png,invert,2")
    assert apart(steered, other) > 1
    record = steered.record
    (unit,) = record.request.controls
    assert unit.image.name == "photo.png"
    assert len(unit.image.sha256) == 64
    assert record.others["controls.0"].name == "edges.safetensors"
    told = read_infotext(infotext(record))
    assert told.request.controls == record.request.controls


def test_it_is_painted_again_from_its_record(tiny: Model, network: Path, tmp_path: Path) -> None:
    request = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,canny,2", **QUICK)
    painted(tiny, request).save("out.png")
    assert replay("out.png", tiny, say=lambda line: None).identical
    folder = tmp_path / "home" / "models" / "controlnet"
    folder.mkdir(parents=True)
    network.rename(folder / network.name)  # found by its name and hash
    assert replay("out.png", tiny, say=lambda line: None).identical
    Path("photo.png").unlink()
    with pytest.raises(DanqingError, match="a control's image"):
        replay("out.png", tiny, say=lambda line: None)


def test_a_union_network_is_told_what_the_module_makes(tiny: Model, network: Path) -> None:
    union = ControlNet(ControlNetConfig(tiny.family.denoiser, tasks=8, task_width=32))
    generator = torch.Generator().manual_seed(2)
    state = {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in union.state_dict().items()}
    save_file(state, "union.safetensors")
    request = TextToImage(prompt="a cat", **QUICK)
    told, other, unset = (
        painted(
            tiny, request, controls=[{"model": "union.safetensors", "image": "photo.png", "module": "canny"} | more]
        )
        for more in ({"union_control_type": 3}, {"union_control_type": 0}, {})
    )
    assert apart(told, other) > 0
    assert apart(told, unset) == 0
    with pytest.raises(DanqingError, match=r"is a union network.*; give union_control_type: 0 dw openpose, 1 depth"):
        painted(tiny, request, controls="union.safetensors,photo.png,none")


def test_over_a_picture_it_is_shown_that_picture(tiny: Model, network: Path) -> None:
    request = ImageToImage(prompt="a cat", image="photo.png", denoising_strength=0.9, **QUICK)
    plain = painted(tiny, request)
    own = painted(tiny, request, controls="edges.safetensors,,canny,2")
    given = painted(tiny, request, controls="edges.safetensors,photo.png,canny,2")
    assert apart(plain, own) > 3
    assert apart(own, given) == 0


def test_masks_and_tiles(tiny: Model, network: Path) -> None:
    mask = Image.new("L", (80, 64))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    for full in (False, True):
        request = Inpaint(
            prompt="a cat", image="photo.png", mask=mask, inpaint_full_res=full, denoising_strength=1.0, **QUICK
        )
        assert apart(painted(tiny, request), painted(tiny, request, controls="edges.safetensors,,inpaint,2")) > 3
    tiles = ImageToImage(prompt="a cat", image="photo.png", sd_upscale="1.5,16,Lanczos", **QUICK)
    assert apart(painted(tiny, tiles), painted(tiny, tiles, controls="edges.safetensors,,canny,2")) > 3


def test_where_only_the_masked_part_is_painted_its_part_is_shown(tiny: Model, network: Path) -> None:
    mask = Image.new("L", (80, 64))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    inside, outside = photograph(), photograph()
    ImageDraw.Draw(inside).rectangle((20, 12, 40, 36), fill=(0, 255, 0))
    ImageDraw.Draw(outside).rectangle((52, 0, 79, 63), fill=(0, 255, 0))
    inside.save("inside.png")
    outside.save("outside.png")
    request = Inpaint(
        prompt="a cat", image="photo.png", mask=mask, mask_blur=0, inpaint_full_res=True, inpaint_full_res_padding=0,
        denoising_strength=1.0, **QUICK,
    )  # fmt: skip
    own, off, there = (
        painted(tiny, request, controls=f"edges.safetensors,{name}.png,none,2")
        for name in ("photo", "outside", "inside")
    )
    assert apart(own, off) == 0
    assert apart(own, there) > 3


def test_hires_fix_and_tiled_diffusion(tiny: Model, network: Path) -> None:
    more: list[dict[str, Any]] = [{"enable_hr": True, "hr_scale": 1.5}, {"tiled_diffusion": "8,8,2,2"}]
    for fields in more:
        request = TextToImage(prompt="a cat", **{**QUICK, "width": 96, **fields})
        plain = painted(tiny, request)
        assert apart(plain, painted(tiny, request, controls="edges.safetensors,photo.png,canny,2")) > 5


def test_numbers_of_a_module(tiny: Model, network: Path) -> None:
    plain = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,canny,2", **QUICK)
    same = read(TextToImage, {**plain.model_dump(exclude_unset=True), "controls": [
        {"model": "edges.safetensors", "image": "photo.png", "module": "canny", "weight": 2, "threshold_a": 100,
         "threshold_b": 200, "processor_res": -1}]})  # fmt: skip
    few = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,blur,2,0,1,,,,,3", **QUICK)
    coarse = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,blur,2,0,1,,,,200,3", **QUICK)
    assert same.controls[0].processor_res is None
    assert apart(painted(tiny, plain), painted(tiny, same)) == 0
    assert apart(painted(tiny, plain), painted(tiny, few)) > 1
    picture = painted(tiny, coarse)
    assert apart(painted(tiny, few), picture) > 0
    text = infotext(picture.record)
    assert "Processor Res: 200, Threshold A: 3.0, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: False" in text
    assert read_infotext(text).request.controls == picture.record.request.controls
    picture.save("out.png")
    assert replay("out.png", tiny, say=lambda line: None).identical


def test_a_module_s_weights_are_found_recorded_and_read_once(
    tiny: Model, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "home" / "models" / "preprocessors"
    folder.mkdir(parents=True)
    save_file(LineArt().state_dict(), folder / "sk_model.safetensors")
    loads = []

    def counted(*given: Any) -> Any:
        loads.append(given)
        return load_network(*given)

    monkeypatch.setattr("danqing.adapters.annotators.load_network", counted)
    batches = {**QUICK, "n_iter": 2}
    request = TextToImage(prompt="a cat", controls="edges.safetensors,photo.png,lineart:sk_model,2", **batches)
    first, second = danqing.paint(request, tiny, say=lambda line: None)
    assert len(loads) == 1
    assert second.record.others["controls.0.module.0"].name == "sk_model.safetensors"
    by_path = painted(tiny, request, n_iter=1, controls=f"edges.safetensors,photo.png,{folder}/sk_model.safetensors,2")
    assert apart(first, by_path) == 0
    first.save("out.png")
    by_name = painted(tiny, request, n_iter=1, controls="edges.safetensors,photo.png,lineart_realistic,2")
    assert apart(first, by_name) == 0
    (folder / "deeper").mkdir()
    (folder / "sk_model.safetensors").rename(folder / "deeper" / "sk_model.safetensors")
    assert replay("out.png", tiny, say=lambda line: None).identical


def test_a_module_s_folder_is_found_by_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    (tmp_path / "config.toml").write_text(f'hub_cache = "{tmp_path}/hub"\n')

    def model(folder: Path, task: str) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(f'{{"architectures": ["Some{task}"]}}')
        (folder / "model.safetensors").touch()
        return folder

    def found(module: str) -> dict[str, Path]:
        return module_files(TextToImage(controls=(ControlUnit(model="c", module=module),)))

    with pytest.raises(DanqingError, match="needs a folder of a model of semantic segmentation"):
        found("seg_ufade20k")
    own = model(tmp_path / "models" / "preprocessors" / "upernet", "ForSemanticSegmentation")
    hub = model(tmp_path / "hub" / "models--some--depth" / "snapshots" / "0123", "ForDepthEstimation")
    assert found("segmentation") == found("upernet") == {"controls.0.module.0": own}
    assert found("depth_anything") == found("normal:some/depth") == {"controls.0.module.0": hub}
    assert found("canny") == found("none") == {}
    model(tmp_path / "models" / "preprocessors" / "dpt", "ForDepthEstimation")
    with pytest.raises(DanqingError, match="several models could serve the module 'depth'; write one of 'depth:"):
        found("depth")


def test_how_controls_are_written() -> None:
    units = TextToImage(controls="a.safetensors,b.png,canny,0.5,0.1,0.9,1,Just Resize; c,d.png").controls
    assert units[0] == ControlUnit(
        model="a.safetensors", image="b.png", module="canny", weight=0.5, guidance_start=0.1, guidance_end=0.9,
        control_mode="my prompt is more important", resize_mode="just resize",
    )  # fmt: skip
    assert units[1] == ControlUnit(model="c", image="d.png")
    assert ControlUnit(model="c", control_mode="ControlNet is more important", resize_mode=2).resize_mode == (
        "resize and fill"
    )
    assert TextToImage(controls='[{"model": "c", "weight": 2}]').controls == (ControlUnit(model="c", weight=2),)


@pytest.mark.parametrize(
    ("controls", "line"),
    [
        ("edges.safetensors", "'edges.safetensors' is shown no picture; give one by its image"),
        ("edges.safetensors,photo.png,hedge", "no preprocessor is called 'hedge'"),
        ("edges.safetensors,photo.png,softedge_hed", r"'soft edge' needs ControlNetHED\.pth \(huggingface\.co"),
        ("edges.safetensors,photo.png,lineart:gone.pth", r"gone\.pth: no such file"),
        ("edges.safetensors,photo.png,openpose_full:x.pth", "needs 3 files; write its name alone"),
        ("edges.safetensors,photo.png,invert,1,0,1,0,1,,,5", "the module 'invert' takes no threshold_a"),
        ("edges.safetensors,photo.png,invert,1,0,1,0,1,,512", "processor_res has no effect on the module 'invert'"),
        (
            "edges.safetensors,photo.png,canny,1,0,1,0,1,,,-5",
            "threshold_a of 'canny' is its low, from 0 to 2040, not -5",
        ),
        ("edges.safetensors,photo.png,canny,1,0,1,0,1,,,300,200", "canny: the thresholds 300 and 200 should rise"),
        ("edges.safetensors,photo.png,inpaint", "painting over with a mask, and there is none"),
        ("edges.safetensors,gone.png", r"controls\.0\.image: there is no file 'gone\.png'"),
        ("edges.safetensors,broken.png", r"controls\.0\.image: 'broken\.png' is no picture"),
        ("nowhere.safetensors,photo.png", "nowhere.safetensors"),
        ("cut.safetensors,photo.png", "cut.safetensors: "),
        ("edges.safetensors,photo.png,canny,1,0.5,0.4", "should not be above guidance_end"),
        ("edges.safetensors,photo.png,canny,11", "weight"),
    ],
)
def test_what_is_wrong_is_said(controls: str, line: str, tiny: Model, network: Path) -> None:
    Path("broken.png").write_bytes(b"not a picture")
    Path("cut.safetensors").write_bytes(network.read_bytes()[:-500])

    def act() -> None:
        painted(tiny, read(TextToImage, {"prompt": "a cat", "controls": controls, **QUICK}))

    with pytest.raises(DanqingError, match=line) as caught:
        act()
    assert "\n" not in str(caught.value)
