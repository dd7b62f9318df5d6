"""ControlNet-LLLite: its files, and what it goes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.lllite_files import LAYERS, lllite_state
from tests.tiny_model import tiny_model
from torch import Tensor

from danqing.adapters.control import Unit, control, control_source, with_controls
from danqing.adapters.inspect import inspect_adapter
from danqing.checkpoints.controls import load_control
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.library.content import look
from danqing.models.conditioning import Conditioning
from danqing.models.lllite import LLLite
from danqing.sampling.predict import predictor


@pytest.fixture
def model() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(lllite_state(), tmp_path / "lllite.safetensors")
    return tmp_path / "lllite.safetensors"


def predicted(model: Model, *units: Unit, size: tuple[int, int] = (6, 4)) -> Tensor:
    latents = torch.randn(1, 4, size[1], size[0], generator=torch.Generator().manual_seed(2))
    context = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))
    branch = with_controls([Conditioning(context)], [control(unit, *size, 8) for unit in units], True)
    with torch.no_grad():
        return predictor(model, patches=control_source(model, 10))(latents, At(2.0, 0), branch)[0]


def test_what_a_file_is(file: Path, model: Model) -> None:
    assert look(file).kind == "controlnet"
    assert inspect_adapter(file).kind == "ControlNet-LLLite"
    network = load_control(file, model)
    assert isinstance(network, LLLite)
    assert set(network.names) == set(LAYERS.values())
    renamed = {key.replace("input_blocks_4_1", "down_blocks_1_attentions_0"): t for key, t in lllite_state().items()}
    save_file(renamed, file.with_name("diffusers.safetensors"))
    same = load_control(file.with_name("diffusers.safetensors"), model)
    picture = torch.rand(1, 3, 32, 48)
    first, second = (predicted(model, Unit(each, (picture,))) for each in (network, same))
    assert torch.equal(first, second)


def test_any_size_weights_and_several(file: Path, model: Model) -> None:
    network = load_control(file, model)
    picture = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(5))
    for size in ((6, 4), (7, 5), (9, 3)):
        plain = predicted(model, size=size)
        half, full = (predicted(model, Unit(network, (picture,), weight=w), size=size) for w in (0.5, 1.0))
        assert 1e-3 < (half - plain).abs().max() < (full - plain).abs().max()
        assert torch.equal(predicted(model, Unit(network, (picture,), weight=0), size=size), plain)
        assert torch.equal(predicted(model, Unit(network, (picture,), start=0.5), size=size), plain)
        both = predicted(model, *[Unit(network, (picture,), weight=0.5)] * 2, size=size)
        assert (both - half).abs().max() > 1e-3


def test_what_does_not_fit_is_said(file: Path, model: Model, tmp_path: Path) -> None:
    state = lllite_state()
    first = next(iter(LAYERS))
    for change, line in (
        ({f"lllite_unet_output_blocks_30_1_attn1_to_q.{part}": t for part, t in [("up.0.bias", torch.zeros(1))]},
         "for another family: the model has no layer 'output_blocks_30_1_attn1_to_q'"),
        ({f"lllite_unet_{first}.down.0.weight": torch.zeros(12, 320)}, "is not a whole ControlNet-LLLite: .*instead of"),
    ):  # fmt: skip
        save_file(state | change, tmp_path / "other.safetensors")
        with pytest.raises(DanqingError, match=line):
            load_control(tmp_path / "other.safetensors", model)
    save_file({k: t for k, t in state.items() if "conditioning1.0" not in k}, tmp_path / "part.safetensors")
    with pytest.raises(DanqingError, match="a part is missing"):
        load_control(tmp_path / "part.safetensors", model)
    network = load_control(file, model)
    assert isinstance(network, LLLite)
    layer = next(iter(network.layers.values()))
    with pytest.raises(DanqingError, match="does not go with token merging or HyperTile"):
        layer(torch.zeros(1, 5, 64), layer.seen(torch.zeros(1, 3, 32, 32)))
