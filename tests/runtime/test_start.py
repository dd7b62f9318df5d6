"""What a program does before torch."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from danqing.runtime import start

EARLY = """
import sys, threading
from danqing.runtime.start import load_torch_early
load_torch_early()
(loading,) = [one for one in threading.enumerate() if one.name == "danqing-torch"]
loading.join()
assert "torch" not in sys.modules
assert "libtorch_cpu.so" in open("/proc/self/maps").read()
import torch
print(float(torch.ones(3, 4).sum()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_torchs_library_is_there_before_torch() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], check=True, capture_output=True, text=True)
    assert done.stdout == "12.0\n"


def test_without_torch_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    start.load_torch_early()
    assert "danqing-torch" not in [one.name for one in threading.enumerate()]


@pytest.mark.parametrize("was", [True, False])
def test_garbage_is_looked_for_afterwards_as_before(was: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was else gc.disable)()
        with start.gc_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == was
    finally:
        (gc.enable if before else gc.disable)()
