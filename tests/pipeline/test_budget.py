"""Painting with less memory than the weights take: the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import danqing
from danqing.adapters.apply import Use, apply
from danqing.adapters.lora import read
from danqing.checkpoints.load import load
from danqing.checkpoints.save import save
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.settings import load_settings, set_value
from danqing.models.controlnet import from_unet
from danqing.requests import TextToImage
from danqing.runtime import stream
from danqing.runtime.memory import weight_bytes
from danqing.runtime.stream import is_streamed
from lora_files import CONV, QUERY, TEXT, keyed, lora, write

QUICK: dict[str, Any] = {"prompt": "a cat", "steps": 2, "seed": 3, "width": 64, "height": 64, "cfg_scale": 3.0}


@pytest.fixture
def file(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in half precision, and networks of the tiny size cut into parts."""
    monkeypatch.setattr(stream, "UNIT", 60_000)
    monkeypatch.setattr(stream, "SMALL", 5_000)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    save(tiny, tmp_path / "tiny.safetensors", dtype=torch.float16)
    return tmp_path / "tiny.safetensors"


def painted(model: Model, **fields: Any) -> tuple[bytes, list[str]]:
    said: list[str] = []
    (picture,) = danqing.paint(TextToImage(**{**QUICK, **fields}), model, say=said.append)
    return picture.image.tobytes(), [line for line in said if not line.startswith("memory: ")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_picture_with_any_budget(file: Path, dtype: torch.dtype) -> None:
    free = load(file, dtype=dtype)
    expected = painted(free)
    for memory in (1, 1 << 40):
        model = load(file, dtype=dtype, memory=memory)
        assert painted(model) == expected
        assert is_streamed(model.denoiser) == (memory == 1)
        assert is_streamed(model.text_encoders["text_encoder"]) == (memory == 1)
    lean = load(file, dtype=dtype, memory=1)
    assert weight_bytes(lean.denoiser) < weight_bytes(free.denoiser) / 10


def test_part_of_the_weights_may_stay(file: Path) -> None:
    free = load(file, dtype=torch.float32)
    room = weight_bytes(free.denoiser) // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("danqing.checkpoints.load._room", lambda *_: room + weight_bytes(free.autoencoder))
        some = load(file, dtype=torch.float32, memory=1)
    assert room / 2 < weight_bytes(some.denoiser) < room
    assert painted(some) == painted(free)


def test_weights_of_the_files_own_type_are_its_pages_and_need_not_come_and_go(file: Path) -> None:
    assert not is_streamed(load(file, dtype=torch.float16, memory=1).denoiser)


def test_adapters_and_controlnets_hold(file: Path, tiny: Model, tmp_path: Path) -> None:
    sizes = dict(tiny.denoiser.named_parameters()) | dict(tiny.text_encoders["text_encoder"].named_parameters())
    shapes = {layer: tuple(sizes[f"{layer}.weight"].shape) for layer in (QUERY, CONV, TEXT)}
    path = write(tmp_path / "style.safetensors", keyed({layer: lora(shape) for layer, shape in shapes.items()}))
    control = {name: weight.detach() + 0.01 for name, weight in from_unet(tiny.denoiser).state_dict().items()}  # type: ignore[arg-type]
    save_file(control, tmp_path / "edges.safetensors")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    results = []
    for memory in (None, 1):
        said: list[str] = []
        model = load(file, dtype=torch.bfloat16, memory=memory)
        dressed = apply(model, [Use(read(path, model.family), 0.7, 0.9)], said.append)
        steered = painted(dressed, controls="edges.safetensors,photo.png,none")
        results.append((steered, painted(dressed), painted(model), said))
    assert results[0] == results[1]
    assert len({pixels for pixels, _ in results[0][:3]}) == 3


def test_a_streamed_model_is_saved_whole(file: Path, tmp_path: Path) -> None:
    for memory in (None, 1):
        save(load(file, dtype=torch.bfloat16, memory=memory), tmp_path / f"{memory}.safetensors")
    assert (tmp_path / "None.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_the_setting_and_the_argument(file: Path, tmp_path: Path) -> None:
    settings = set_value(load_settings().path, "memory", "1MB")
    assert danqing.load(file, dtype="bfloat16", settings=settings).memory == 10**6
    assert danqing.load(file, dtype="bfloat16", settings=settings, memory="2 GB").memory == 2 * 10**9
    with pytest.raises(DanqingError, match="memory: 'much' is no amount"):
        danqing.load(file, memory="much")
    with pytest.raises(DanqingError, match=r"memory: .*'much' is no amount"):
        set_value(settings.path, "memory", "much")
