"""Peers that exist only in tests: one that keeps its own time, one that breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from danqing.measure.works import Work


def make(work: Work, path: Path) -> Callable[[], float]:
    assert path.exists()
    print("this library prints")
    return lambda: 0.5


def broken(work: Work, path: Path) -> Callable[[], float]:
    raise RuntimeError("no such kernel")
