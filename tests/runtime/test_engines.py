import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.models.unet import UNet, UNetConfig
from danqing.runtime import compiled, openvino
from danqing.runtime.engines import Inputs, Runner

CONFIG = UNetConfig(
    channels=(32, 64),
    down_depth=((0,), (1,)),
    up_depth=((1, 0), (0, 1)),
    heads=(2, 4),
    context_width=24,
    pooled_width=16,
    size_ids=6,
    size_id_width=8,
    groups=8,
)
needs_openvino = pytest.mark.skipif(not openvino.installed(), reason="needs the extra [openvino]")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _network() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).to(memory_format=torch.channels_last).requires_grad_(False)


def _inputs(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (16, 16), seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "latents": noise(2, 4, *size),
        "timestep": torch.tensor([601.0]),
        "context": noise(2, 77, 24),
        "pooled": noise(2, 16),
        "time_ids": torch.full((2, 6), 512.0),
    }


def _gap(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _build(network: nn.Module, folder: Path, inputs: Inputs) -> Any:
    return openvino.build(network, folder, "none", 2, lambda: [], inputs, lambda line: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the float32 network's conversion is kept."""
    return tmp_path_factory.mktemp("kept")


@needs_openvino
def test_openvino_answers_as_the_network_does_at_every_size(folder: Path) -> None:
    network = _network()
    for size in ((16, 16), (24, 8)):
        inputs = _inputs(size=size)
        run = _build(network, folder, inputs)
        answer = run(inputs)
        assert _gap(answer, network(**inputs)) < 1e-5
        assert torch.equal(run(inputs), answer)
    assert len(list(folder.iterdir())) == 1  # one conversion for all sizes


@needs_openvino
def test_one_row_of_latents_for_one_prompt_and_for_two_are_two_conversions(tmp_path: Path) -> None:
    network, inputs = _network(), _inputs()
    inputs = inputs | {"latents": inputs["latents"][:1]}
    for count in (1, 2):
        asked = {name: tensor[:count] for name, tensor in inputs.items()}
        answer = _build(network, tmp_path, asked)(asked)
        assert len(answer) == count
        assert _gap(answer, network(**asked)) < 1e-5
    assert len(list(tmp_path.iterdir())) == 2


@needs_openvino
def test_openvino_in_bfloat16(folder: Path) -> None:
    network, inputs = _network(), _inputs(torch.bfloat16)
    run = openvino.compile_for(_kept(folder), inputs, torch.bfloat16)
    answer = run(inputs)
    assert answer.dtype == torch.bfloat16
    assert _gap(answer, network(**{name: tensor.float() for name, tensor in inputs.items()})) < 2e-2


def _kept(folder: Path) -> Path:
    """The float32 network's conversion, made where no test before has."""
    _build(_network(), folder, _inputs())
    (kept,) = folder.iterdir()
    return kept / "model.xml"


@needs_openvino
@pytest.mark.parametrize(("quantize", "bound"), [("int8-weights", 0.02), ("int8", 0.1)])
def test_eight_bits_are_near_the_network(folder: Path, tmp_path: Path, quantize: Any, bound: float) -> None:
    network, inputs = _network(), _inputs()
    plain = openvino.package().Core().read_model(_kept(folder))
    model = openvino.quantized(plain, quantize, lambda: [_inputs(seed=seed) for seed in range(4)])
    openvino.keep(tmp_path / "bits", model)
    run = openvino.compile_for(tmp_path / "bits" / "model.xml", inputs, torch.float32)
    assert 1e-4 < _gap(run(inputs), network(**inputs)) < bound


def test_auto_goes_by_what_was_measured(tmp_path: Path) -> None:
    assert not openvino.pays(tmp_path, "none", 1000)
    kept = tmp_path / "none-latents2"
    kept.mkdir()
    (kept / openvino.TIMES).write_text('{"compile": 10.0, "openvino": 1.0, "eager": 2.0}')
    assert openvino.pays(tmp_path, "none", 11)
    assert not openvino.pays(tmp_path, "none", 9)
    assert not openvino.pays(tmp_path, "int8", 1000)


@needs_openvino
def test_openvino_tells_nobody() -> None:
    code = (
        "import sys; from danqing.runtime import openvino; openvino.package(); openvino.package('nncf');"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_openvino
def test_sides_that_the_network_cannot_halve_are_left_to_it(tmp_path: Path) -> None:
    network, inputs, said = _network(), _inputs(size=(15, 16)), list[str]()
    runner = Runner("openvino", network, partial(_build_said, network, tmp_path))
    assert runner.answer(network, inputs, said.append) is None
    assert said == [
        "openvino: could not be prepared, so torch's eager mode runs: sides must be multiples of 2 latent cells"
    ]


def _build_said(network: nn.Module, folder: Path, inputs: Inputs, say: Any) -> Any:
    return _build(network, folder, inputs)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DanqingError, match=r"openvino is missing; pip install 'danqing\[openvino\]'"):
        openvino.package()


def test_a_runner_builds_once_for_each_shape_and_says_what_it_leaves() -> None:
    network, built, said = nn.Identity(), list[int](), list[str]()

    def build(inputs: Inputs, say: Any) -> Any:
        built.append(len(inputs["latents"]))
        if len(inputs["latents"]) == 3:
            raise RuntimeError("no such kernel\nand more")
        return lambda given: given["latents"] + 1

    runner = Runner("fast", network, build)
    for rows in (2, 2, 3, 3):
        runner.answer(network, {"latents": torch.zeros(rows)}, said.append)
    assert built == [2, 3]
    assert said == ["fast: could not be prepared, so torch's eager mode runs: no such kernel"]
    assert runner.answer(nn.Identity(), {"latents": torch.zeros(2)}, said.append) is None
    with torch.enable_grad():
        assert runner.answer(network, {"latents": torch.zeros(2, requires_grad=True)}, said.append) is None
    assert runner.answer(network, {"latents": torch.zeros(2)}, said.append, patched=True) is None
    assert len(said) == 4


@pytest.mark.long
def test_a_compiled_network_answers_as_it_does_plainly(tmp_path: Path) -> None:
    network = nn.Sequential()
    network.add_module("latents", nn.Linear(8, 8))
    network.requires_grad_(False)
    inputs = {"input": torch.randn(2, 8)}
    try:
        run = compiled.build(network, tmp_path, torch.device("cpu"), inputs, lambda line: None)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    assert _gap(run(inputs), network(**inputs)) < 1e-5
