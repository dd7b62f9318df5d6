"""Which engine runs a model, what its pictures say of it, and where the plain network runs instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import danqing
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.engines import for_calls, recorded, samples, with_engine
from danqing.pipeline.paint import paint
from danqing.pipeline.replay import replay
from danqing.runtime import openvino
from danqing.runtime.engines import Inputs, Runner
from tiny_model import tiny_model

FIELDS: dict[str, Any] = {"steps": 2, "width": 64, "height": 64, "seed": 3}


def _runner(model: Model, asked: list[Inputs]) -> Runner:
    def build(inputs: Inputs, say: Any) -> Any:
        def run(given: Inputs) -> torch.Tensor:
            asked.append(given)
            answer: torch.Tensor = model.denoiser(**given)
            return answer

        return run

    return Runner("openvino 1.0 int8", model.denoiser, build)


def test_an_engine_answers_for_the_network_and_the_record_names_it(tiny: Model, tmp_path: Path) -> None:
    asked: list[Inputs] = []
    fast = replace(tiny, engine=_runner(tiny, asked))
    (picture,) = paint("a cat", fast, say=lambda line: None, **FIELDS)
    assert len(asked) == 2
    assert len(asked[0]["latents"]) == 1  # one picture
    assert len(asked[0]["context"]) == 2  # both prompts in one call
    assert picture.record.platform is not None
    assert picture.record.platform.engine == "openvino 1.0 int8"
    (plain,) = paint("a cat", tiny, say=lambda line: None, **FIELDS)
    assert plain.record.platform is not None
    assert plain.record.platform.engine == "eager"
    again = replay(picture.save(tmp_path / "x.png"), tiny)
    assert again.identical  # as this engine asks the very network


def test_replay_says_that_another_engine_ran(tiny: Model, tmp_path: Path) -> None:
    off = Runner("openvino 1.0", tiny.denoiser, lambda inputs, say: lambda given: 1.1 * tiny.denoiser(**given))
    (picture,) = paint("a cat", replace(tiny, engine=off), say=lambda line: None, **FIELDS)
    again = replay(picture.save(tmp_path / "x.png"), tiny)
    assert not again.identical
    assert "engine: was openvino 1.0, now eager" in again.differences


def test_what_steers_the_network_runs_it_plainly_and_is_said_once(tiny: Model) -> None:
    asked: list[Inputs] = []
    said: list[str] = []
    fast = replace(tiny, engine=_runner(tiny, asked))
    steered = {**FIELDS, "freeu": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}}
    (one,) = paint("a cat", fast, say=said.append, **steered)
    (two,) = paint("a cat", tiny, say=lambda line: None, **steered)
    assert asked == []
    assert one.image.tobytes() == two.image.tobytes()
    assert [line for line in said if "eager mode" in line] == [
        "openvino 1.0 int8: what steers the network's insides takes torch's eager mode"
    ]


def test_an_engine_that_does_not_pay_is_left_out(tiny: Model) -> None:
    runner = replace(_runner(tiny, []), pays=lambda calls: calls >= 40)
    fast = replace(tiny, engine=runner)
    assert for_calls(fast, 39).engine is None
    assert for_calls(fast, 40).engine is runner
    assert for_calls(tiny, 1000) is tiny


def test_what_is_no_engine_is_refused(tiny: Model) -> None:
    with pytest.raises(DanqingError, match="engine: 'onnx' is unknown; choose eager, compile, openvino, auto"):
        with_engine(tiny, "onnx", "none", print)
    with pytest.raises(DanqingError, match="quantize: 'int4' is unknown"):
        with_engine(tiny, "openvino", "int4", print)
    for engine in ("openvino", "auto"):
        with pytest.raises(DanqingError, match=f"quantize: engine {engine} has no fp8 on a CPU"):
            with_engine(tiny, engine, "fp8", print)
    with pytest.raises(DanqingError, match="quantize: int8 holds all weights"):
        with_engine(replace(tiny, memory=1 << 30), "eager", "int8", print)


def test_a_missing_extra_is_told_and_eager_runs(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "installed", lambda: False)
    said: list[str] = []
    assert with_engine(tiny, "auto", "none", said.append) is tiny
    assert said == []
    assert with_engine(tiny, "openvino", "none", said.append) is tiny
    assert said == ["openvino: is missing; pip install 'danqing[openvino]'; torch's eager mode runs"]


def test_a_record_s_engine_is_taken_apart() -> None:
    assert recorded("eager") == ("eager", "none")
    assert recorded("openvino 2026.4.1 int8-weights") == ("openvino", "int8-weights")
    assert recorded("compile") == ("compile", "none")
    assert recorded("of the future") == ("eager", "none")


def test_samples_are_what_the_network_is_asked(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.pipeline.engines.PROMPTS", ("a cat",))
    asked = samples(tiny)
    assert {tuple(each["latents"].shape) for each in asked} == {(1, 4, 16, 16)}
    steps = [float(each["timestep"]) for each in asked]
    assert max(steps) > 900
    assert min(steps) < 100


@pytest.mark.long
@pytest.mark.skipif(not openvino.installed(), reason="needs the extra [openvino]")
def test_whole_pictures_of_openvino_are_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = [danqing.load(dtype="bfloat16", device="cpu", engine=engine) for engine in ("eager", "openvino")]
    one, two = (np.asarray(paint("a red apple", model, seed=1, steps=20)[0].image, dtype=np.float64) for model in made)
    assert 10 * np.log10(255**2 / ((one - two) ** 2).mean()) > 35


@pytest.mark.parametrize("bits", ["int8-weights", "int8"])
@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_eight_bits_by_torchao_are_in_the_record(engine: str, bits: str) -> None:
    pytest.importorskip("torchao")
    model = tiny_model(torch.device("cpu"), torch.bfloat16)
    rounded = with_engine(model, engine, bits, print)
    assert rounded.engine is not None
    assert rounded.engine.name == f"{engine} {bits}"
    assert recorded(rounded.engine.name) == (engine, bits)
    if engine == "eager":
        said: list[str] = []
        plain = tiny_model(torch.device("cpu"), torch.bfloat16)
        (picture,), (exact,) = (paint("a cat", each, say=said.append, **FIELDS) for each in (rounded, plain))
        assert picture.record.platform.engine == f"eager {bits}"
        assert said == []
        assert picture.image.tobytes() != exact.image.tobytes()
