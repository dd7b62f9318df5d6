"""Latent-diffusion super-resolution as an upscaler: any size, the same each time, and files that are none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
from small import entries, random_model, read_all, same, small_family, states

from danqing.checkpoints import layouts
from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.checkpoints.inspect import inspect
from danqing.checkpoints.load import load as load_checkpoint
from danqing.checkpoints.save import save
from danqing.checkpoints.write import write_ckpt, write_safetensors
from danqing.errors import DanqingError
from danqing.families import LDSR, Family
from danqing.library.content import look
from danqing.pipeline import ldsr
from danqing.pipeline.extras import enhancer
from danqing.pipeline.ldsr import LatentUpscaler
from danqing.pipeline.models import load
from danqing.pipeline.upscale import load_upscaler, upscale
from danqing.requests import Upscale


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CELL", 16), ("LEAST", 32), ("WINDOW", 32), ("OVERLAP", 16), ("DECODED_OVERLAP", 8)):
        monkeypatch.setattr(ldsr, name, value)


@pytest.fixture(scope="module")
def family() -> Family:
    row = small_family("ldsr")
    return replace(row, defaults=replace(row.defaults, steps=2))


@pytest.fixture(scope="module")
def file(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ldsr") / "small.safetensors"
    save(random_model(family), path)
    return path


def test_any_size_and_the_same_picture_each_time(file: Path) -> None:
    image = Image.radial_gradient("L").resize((40, 21)).convert("RGB")
    first = upscale(image, file, 4, device="cpu")
    assert first.size == (160, 84)
    assert len(first.getcolors(1 << 20) or []) > 100
    torch.rand(3)
    assert upscale(image, load_upscaler(file, device="cpu"), 4).tobytes() == first.tobytes()
    assert upscale(image.convert("L"), file, (50, 77), device="cpu").mode == "L"


def test_steps_as_asked(file: Path) -> None:
    assert load_upscaler(file, device="cpu", steps=3).network.steps == 3
    said: list[str] = []
    image = Image.radial_gradient("L").resize((40, 21)).convert("RGB")
    made = [
        enhancer(Upscale(upscaler=str(file), scale=4, ldsr_steps=steps), device="cpu", say=said.append)(
            image, lambda done, total: None
        )
        for steps in (None, 2, 1)
    ]
    assert made[0].tobytes() == made[1].tobytes() != made[2].tobytes()
    assert said == []
    enhancer(Upscale(ldsr_steps=3), say=said.append)
    assert said == ["ldsr_steps has no effect: no upscaler is LDSR"]


@torch.no_grad()
def test_what_is_filled_up_is_cut_off_again(family: Family) -> None:
    upscaler = LatentUpscaler(random_model(family), steps=1)
    whole = torch.rand(1, 3, 32, 32)
    whole[..., 20:] = whole[..., 19:20]
    whole[:, :, 27:] = whole[:, :, 26:27]
    assert torch.equal(upscaler(whole[:, :, :27, :20]), upscaler(whole)[..., :108, :80])


def test_files_of_either_layout_and_the_moving_average(family: Family, file: Path, tmp_path: Path) -> None:
    """As CompVis's file is: no metadata, the moving average beside the weights."""
    model = random_model(family)
    state = read_all(file)
    unet = [key for key in state if key.startswith("model.diffusion_model.")]
    state |= {layouts.ema_name(key.removeprefix("model.diffusion_model.")): state[key] * 2 for key in unet}
    write_ckpt(tmp_path / "old.ckpt", entries(state))
    found = open_checkpoint(tmp_path / "old.ckpt").family
    assert found == replace(small_family("ldsr"), autoencoder=found.autoencoder, denoiser=found.denoiser)
    save(model, tmp_path / "folder", layout="diffusers")
    (tmp_path / "folder" / "leftover.safetensors").unlink()
    for path, factor in ((tmp_path / "old.ckpt", 2.0), (tmp_path / "folder", 1.0), (file, 1.0)):
        network = load_upscaler(path, device="cpu").network
        theirs = {key: value * factor for key, value in model.denoiser.state_dict().items()}
        assert same(dict(network.model.denoiser.state_dict()), theirs), path
        assert same(dict(network.model.autoencoder.state_dict()), dict(model.autoencoder.state_dict()))
        assert network.steps == (2 if path == file else LDSR.defaults.steps)
        assert look(path).kind == "upscaler"
        report = inspect(path)
        assert (report.ok, report.family, report.variant) == (True, "ldsr", "upscale")


def test_files_that_are_none(family: Family, file: Path, tmp_path: Path) -> None:
    save(random_model(small_family("sd1")), tmp_path / "sd1", layout="diffusers")
    with pytest.raises(DanqingError, match=r"sd1: is a model of Stable Diffusion 1\.x, not an upscaler"):
        load_upscaler(tmp_path / "sd1")
    with pytest.raises(
        DanqingError, match=r"small\.safetensors: is Latent .*, which only enlarges; give it by --upscaler"
    ):
        load(file, device="cpu")
    state = read_all(file)
    state.pop("first_stage_model.decoder.conv_out.bias")
    write_safetensors(tmp_path / "less.safetensors", entries(state), {})
    with pytest.raises(
        DanqingError, match=r"less\.safetensors: does not fit .*1 missing: vae\.decoder\.conv_out\.bias"
    ):
        load_upscaler(tmp_path / "less.safetensors")
    state = read_all(file)
    wider = state["model.diffusion_model.input_blocks.0.0.weight"].repeat(1, 2, 1, 1)[:, :7]
    state["model.diffusion_model.input_blocks.0.0.weight"] = wider.contiguous()
    write_safetensors(tmp_path / "wide.safetensors", entries(state), {})
    with pytest.raises(
        DanqingError, match=r"wide\.safetensors: its U-Net takes no text, and 7 channels: it is no upscaler"
    ):
        load_upscaler(tmp_path / "wide.safetensors")


def test_the_whole_model_is_read_again(family: Family, file: Path) -> None:
    assert same(states(load_checkpoint(file)), states(random_model(family)))
