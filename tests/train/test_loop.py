"""The loop: exact resumption, saved states, learning rates, parts of a batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from danqing.errors import DanqingError
from danqing.train.loop import learning_rate_factor
from danqing.train.recipe import Recipe

from .conftest import train_stage

STAGES = ("clip", "autoencoder", "diffusion")


def place(name: str, trained: Path, folder: Path) -> Path:
    """A recipe's folder that has what the stage builds on."""
    folder.mkdir()
    for before in STAGES[: STAGES.index(name)]:
        shutil.copytree(trained / before / "result", folder / before / "result")
    return folder


def weights(folder: Path) -> dict[str, Any]:
    """Everything that the newest state holds: networks, optimizers, averages."""
    newest = sorted(folder.glob("states/step-*"))[-1]
    found: dict[str, Any] = {}
    for file in sorted(newest.iterdir()):
        if file.suffix == ".safetensors":
            found |= {f"{file.name}/{key}": value for key, value in load_file(file).items()}
        elif file.name.startswith(("custom", "optimizer")):
            found |= flat(torch.load(file, weights_only=False), file.name)
    return found


def flat(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{place}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{place}/{i}").items()}
    return {place: value}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert set(a) == set(b)
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


@pytest.mark.parametrize("name", STAGES)
def test_stopped_and_resumed_is_the_same_bits(
    name: str, recipe: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    whole, parts = (place(name, trained, tmp_path / kind) for kind in ("whole", "parts"))
    settings = recipe(**{name: {"precision": "bf16"}})
    assert train_stage(name, settings, whole)
    runs = 0
    while not train_stage(name, settings, parts, stop_after=0.0):
        runs += 1
        (parts / name / "states" / ".step-00000099.abcd.part").mkdir()  # a run that was killed while it saved
        (parts / name / "states" / ".step-00000099.abcd.part" / "model.safetensors").write_bytes(b"half")
        (parts / name / ".result.abcd.part").mkdir()
    assert runs == 5
    assert len(weights(whole / name)) > 10
    assert_same(weights(whole / name), weights(parts / name))
    for file in (whole / name / "result").rglob("*.safetensors"):
        assert file.read_bytes() == (parts / name / "result" / file.relative_to(whole / name / "result")).read_bytes()
    assert not list((parts / name).rglob("*.part"))
