"""Checkpoints in memory: the oldest go where the budget is small."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from danqing.errors import DanqingError
from danqing.library.folders import Entry
from danqing.library.settings import load_settings
from danqing.runtime.amounts import parse_memory
from danqing.serve.cache import ModelCache

SIZE = 4 * 100 * 10
"""Bytes of a model here."""


def cache(folder: Path, budget: int | None) -> tuple[ModelCache, list[str]]:
    loads: list[str] = []

    def load(name: str | None, vae: str | None) -> Any:
        loads.append(f"{name}/{vae}")
        network = nn.Linear(100, 10, bias=False)
        return SimpleNamespace(denoiser=network, autoencoder=nn.Identity(), text_encoders={}, name=name)

    return ModelCache(budget, settings=load_settings(data_dir=folder), load=load), loads


def test_those_used_last_stay(tmp_path: Path) -> None:
    models, loads = cache(tmp_path, 2 * SIZE)
    first = models.get("a")
    models.get("b")
    assert models.get("a") is first
    models.get("c")
    assert models.loaded() == ("a", "c")
    assert models.size == 2 * SIZE
    models.get("b")
    assert models.loaded() == ("c", "b")
    assert loads == ["a/None", "b/None", "c/None", "b/None"]


def test_the_one_in_use_stays_though_it_is_too_large(tmp_path: Path) -> None:
    models, _ = cache(tmp_path, 1)
    assert models.get("a").size == SIZE
    assert models.loaded() == ("a",)
    models.get("b")
    assert models.loaded() == ("b",)


def test_without_a_budget_all_stay_until_they_are_unloaded(tmp_path: Path) -> None:
    models, loads = cache(tmp_path, None)
    for name in "abc":
        models.get(name)
    models.get("a", vae="other")
    assert len(models.loaded()) == 4
    models.unload()
    assert (models.loaded(), models.size) == ((), 0)
    models.get("a")
    assert loads[-1] == "a/None"


def test_amounts_of_memory() -> None:
    for text, size in (("6GB", 6e9), ("800 MB", 8e8), ("2.5GiB", 2.5 * 2**30), ("12g", 12e9), ("4096", 4096)):
        assert parse_memory(text) == size
    for text in ("", "lots", "-1GB", "0", "6XB", "nan", "inf", "1e400GB"):
        with pytest.raises(DanqingError, match="memory"):
            parse_memory(text)


def test_a_checkpoint_that_is_written_anew_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, loads = cache(tmp_path, None)
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"old")
    monkeypatch.setattr(models, "check", lambda name: Entry("checkpoint", "a", file, "folder"))
    first = models.get("a")
    assert models.get("a") is first
    os.utime(file, ns=(1, 1))
    assert models.get("a") is not first
    assert models.loaded() == ("a",)
    assert loads == ["a/None"] * 2


def test_what_is_in_memory_is_told_while_another_one_loads(tmp_path: Path) -> None:
    models, _ = cache(tmp_path, None)
    models.get("a")
    begun, go = threading.Event(), threading.Event()
    load = models._load

    def slowly(name: str | None, vae: str | None) -> Any:
        begun.set()
        assert go.wait(10)
        assert load is not None
        return load(name, vae)

    models._load = slowly
    loading = threading.Thread(target=models.get, args=("b",))
    loading.start()
    assert begun.wait(10)
    assert (models.loaded(), models.size) == (("a",), SIZE)
    go.set()
    loading.join(10)
    assert models.loaded() == ("a", "b")
