from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from danqing.errors import DanqingError
from danqing.library.folders import BUNDLED
from danqing.measure.contenders import PEERS, find_peers, own_engines
from danqing.measure.groups import GROUPS, Bottleneck, Count
from danqing.measure.inputs import inputs
from danqing.measure.machine import Rates, this_machine
from danqing.measure.own import make
from danqing.measure.report import Result, record, told, told_machine, weights, write_json
from danqing.measure.rounds import Timing
from danqing.measure.works import Work
from tiny_model import TINY


def result(kind: str = "picture", batch: int = 2) -> Result:
    work = Work(kind, "danqing", 128, batch, 20, "bfloat16", "cpu")  # type: ignore[arg-type]
    cost = Count({**dict.fromkeys(GROUPS, 0), "convolution": 4 * 10**12}, dict.fromkeys(GROUPS, 0))
    timings = {
        "danqing": Timing((2.0, 1.0, 3.0), 5.0, 2 * 10**9, 10**9),
        "other": Timing((4.0, 4.0, 4.0), 9.0, 0, 0),
    }
    groups = {**dict.fromkeys(GROUPS, 0.0), "convolution": 1.5, "attention": 0.5}
    return Result(work, cost, timings, groups, 4e12, Bottleneck("attention", 0.5, 0.1, 0.2))


def test_lines_say_medians_ratios_and_what_is_next() -> None:
    text = told(result())
    assert text.startswith("picture danqing 128x128 bfloat16, batch 2, 20 steps, 4.00 TFLOP, median of 3\n")
    assert "2.000 s  (1.000 to 3.000)" in text
    assert "2,000 GFLOP/s,  50% of the best" in text
    assert "2.00 GB and 1.00 mapped" in text
    assert "1.000 pictures/s" in text
    assert "danqing / other: 0.500" in text
    assert "convolution 75%, attention 25%" in text
    assert text.endswith("next: attention, 0.500 s where 0.100 would do: 20% of the whole")
    assert "threads" in told_machine(this_machine("cpu"), {"bfloat16": Rates(1e12, 2e13)}, 2e10)


def test_json_has_every_figure(tmp_path: Path) -> None:
    write_json([result()], 3, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == json.loads(json.dumps(record([result()], 3)))
    assert set(found) == {"danqing", "machine", "rounds", "works"}
    (row,) = found["works"]
    assert row["work"]["batch"] == 2
    assert row["flops"] == 4 * 10**12
    assert row["contenders"]["other"]["ratio"] == 0.5
    assert row["contenders"]["danqing"]["seconds"] == [2.0, 1.0, 3.0]
    assert row["contenders"]["danqing"]["share_of_best"] == 0.5
    assert row["groups"]["attention"] == {"seconds": 0.5, "flops": 0, "moved": 0}
    assert row["next"]["group"] == "attention"


def test_peers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.measure.contenders.find_spec", lambda name: None)
    with pytest.raises(DanqingError, match="sdcpp is not installed; pip install stable-diffusion-cpp-python"):
        find_peers(["sdcpp"])
    with pytest.raises(DanqingError, match="openvino"):
        find_peers(["openvinno"])
    monkeypatch.setattr("danqing.measure.contenders.sys.version_info", (3, 11, 2))
    with pytest.raises(DanqingError, match=r"comfy needs Python 3\.12 or newer, and this is 3\.11"):
        find_peers(["comfy"])


def test_peers_say_what_they_cannot_do() -> None:
    train = Work("train", "danqing", 128, 1, 20, "float32", "cpu")
    assert PEERS["diffusers"].lacks(train) is None
    assert "nothing for 'train'" in (PEERS["openvino"].lacks(train) or "")
    assert "bundled" in (PEERS["sdcpp"].lacks(Work("picture", "danqing", 128, 1, 20, "float32", "cpu")) or "")
    assert "CPU only" in (PEERS["openvino"].lacks(Work("step", "sd1", 512, 1, 20, "float32", "cuda")) or "")


def test_random_weights_are_there_while_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.measure.report.ProcessPoolExecutor", Here)
    monkeypatch.setattr("danqing.measure.report.find_family", lambda name: TINY)
    with weights(Work("step", "tiny", 64, 1, 2, "bfloat16", "cpu"), single=True) as paths:
        assert (paths[False] / "unet" / "config.json").is_file()
        assert paths[True].is_file()
    assert not paths[True].exists()


class Here:
    """A process pool that is this process."""

    def __init__(self, *args: object, **options: object) -> None: ...
    def __enter__(self) -> Here:
        return self

    def __exit__(self, *args: object) -> None: ...
    def submit(self, call, *args):  # type: ignore[no-untyped-def]
        call(*args)
        return self

    def result(self) -> None: ...


def test_inputs_are_the_same_for_all() -> None:
    one, other = (inputs(TINY, 2, 64, torch.float32) for _ in range(2))
    assert torch.equal(one.latents, other.latents)
    assert one.latents.shape == (2, 4, 8, 8)
    assert one.context.shape == (2, 77, 64)
    assert one.told == one.added == {}


def test_engines_are_danqings_own() -> None:
    plain, whole, eight = own_engines(["openvino", "openvino:int8"])
    assert (plain.name, whole.name, eight.name) == ("danqing", "danqing openvino", "danqing openvino:int8")
    assert eight.options == {"engine": "openvino", "quantize": "int8"}
    assert plain.own
    assert eight.own
    assert not PEERS["openvino"].own
    assert eight.lacks(Work("train", "danqing", 128, 1, 20, "float32", "cpu")) is not None


def test_an_engine_that_cannot_serve_is_not_timed_as_if_it_could(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.runtime.openvino.installed", lambda: False)
    run = make(Work("step", "danqing", 64, 1, 2, "float32", "cpu"), BUNDLED.path, engine="openvino")
    with pytest.raises(DanqingError, match="openvino: is missing"):
        run()
