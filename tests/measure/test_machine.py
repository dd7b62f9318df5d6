from __future__ import annotations

import pytest
import torch

from danqing.measure import machine
from danqing.measure.machine import bandwidth, clock, device_memory, rates, this_machine


def test_the_machine_has_a_name_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CONVOLUTIONS", ((16, 8),))
    monkeypatch.setattr(machine, "_PRODUCTS", ((16, 8, 8),))
    here = this_machine("cpu")
    assert here.name
    assert here.torch == torch.__version__
    found = rates("float32", "cpu")
    assert found.peak == max(found.convolution, found.matmul) > 0
    assert bandwidth("cpu", 1 << 16) > 0
    assert device_memory("cpu") == 0


def test_the_clock_hands_on_what_was_returned() -> None:
    seconds, result = clock(lambda: "done", "cpu")
    assert seconds >= 0
    assert result == "done"
