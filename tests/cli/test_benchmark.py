"""`danqing benchmark` from the command line: one real run beside peers made for tests, and what is answered in a line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from danqing.measure.contenders import PEERS, Contender
from danqing.measure.machine import Rates

from .conftest import Run

FAKES = Path(__file__).parents[1] / "measure"


def test_a_run_beside_peers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), *filter(None, sys.path)]))
    monkeypatch.setitem(PEERS, "fake", Contender("fake", "fake_peer:make"))
    monkeypatch.setitem(PEERS, "broken", Contender("broken", "fake_peer:broken"))
    monkeypatch.setattr("danqing.measure.report.bandwidth", lambda device: 1e10)
    monkeypatch.setattr("danqing.measure.report.best_rates", lambda dtypes, device: {"float32": Rates(1e11, 1e11)})
    answer = run(
        "benchmark", "step:danqing", "--size", 64, "--dtype", "fp32", "--device", "cpu", "--rounds", 2,
        "--peer", "fake", "--peer", "broken", "--json", "out.json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "danqing / fake: " in answer.out
    assert "at its best in float32: 100 GFLOP/s" in answer.out
    assert answer.notes == ["note: broken failed and is left out: RuntimeError: no such kernel"]
    (row,) = json.loads(Path("out.json").read_text())["works"]
    assert row["contenders"]["fake"]["seconds"] == [0.5, 0.5]
    assert len(row["contenders"]["danqing"]["seconds"]) == 2
    assert sum(group["seconds"] for group in row["groups"].values()) == pytest.approx(
        row["contenders"]["danqing"]["median"]
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stepp"], "step"),
        (["step:sd15x"], "sd1"),
        (["step", "--peer", "comfyui"], "comfy"),
        (["step", "--engine", "openvni"], "openvino"),
        (["step", "--engine", "openvino:int4"], "int8"),
        (["step", "--size", "100"], "choose 128"),
        (["step", "--dtype", "int3"], "dtype"),
        (["step", "--device", "gpu"], "device"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], told: str) -> None:
    answer = run("benchmark", *arguments)
    assert answer.code == 2
    assert told in answer.err
    assert answer.err.count("\n") == 1
