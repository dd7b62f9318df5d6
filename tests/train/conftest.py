"""A tiny recipe on tiny pictures: all stages end within seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.train.dataset import Item, read_dataset
from danqing.train.loop import run
from danqing.train.recipe import Recipe
from danqing.train.stages import identity, make_stage

COLOURS = {"red": (220, 30, 30), "绿": (30, 200, 60), "blue": (30, 60, 220), "black": (20, 20, 20)}
SHAPES = ("square", "圆", "bar", "dot")


def draw(colour: tuple[int, int, int], shape: str, size: int) -> Image.Image:
    """A shape in the middle of white."""
    y, x = (np.mgrid[:size, :size] - size / 2 + 0.5) / size
    inside = {
        "square": (abs(x) < 0.3) & (abs(y) < 0.3),
        "圆": x**2 + y**2 < 0.12,
        "bar": abs(y + x / 4) < 0.12,
        "dot": (x - 0.2) ** 2 + y**2 < 0.03,
    }[shape]
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[inside] = colour
    return Image.fromarray(pixels)


def dataset(folder: Path, size: int = 32, held_out: int = 3) -> Path:
    """16 pictures with two captions each, the last of them held out."""
    folder.mkdir(parents=True)
    pairs = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    rows = []
    for number, (colour, shape) in enumerate(pairs):
        name = f"{number:02d}.png"
        draw(COLOURS[colour], shape, size).save(folder / name)
        text = [f"{colour} {shape}", f"a {colour} {shape}, flat style"]
        last = number >= len(pairs) - held_out
        rows.append({"file_name": name, "text": text, "held_out": last, "flip": shape != "dot"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder


LOOP: dict[str, Any] = {
    "steps": 6, "batch": 4, "learning_rate": 1e-3, "warmup": 2, "evaluate_every": 3, "sample_every": 100,
    "save_minutes": 60.0, "precision": "no",
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "clip": {
        "text": {"vocabulary": 1024, "width": 16, "layers": 1, "heads": 2},
        "vision": {"width": 16, "layers": 2, "heads": 2, "patch": 16},
        "augment": {"flip": 0.5, "crop": 0.1, "colour": 0.1},
    },
    "autoencoder": {
        "channels": (8, 16), "latent_channels": 4, "groups": 4, "augment": {"flip": 0.5},
        "discriminator": {"start": 2, "channels": 8, "layers": 1},
    },
    "diffusion": {
        "denoiser": {
            "pooled": True, "channels": (8, 16), "down_depth": ((0,), (1,)), "up_depth": ((1, 1), (0, 0)), "heads": (1, 2), "groups": 4,
        },
        "augment": {"flip": 0.5},
    },
}  # fmt: skip


def tiny_recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    """The recipe on the pictures in `folder`; `changes` by section, e.g. clip={"steps": 3}."""
    sections = {name: {**LOOP, **own, **changes.get(name, {})} for name, own in TINY.items()}
    data = {"folder": folder, "size": 32, **changes.get("data", {})}
    return Recipe.model_validate({"name": "tiny", "data": data, **sections})


def train_stage(name: str, recipe: Recipe, runs: Path, **options: Any) -> bool:
    """Run one stage in `runs`, which is the recipe's folder; whether it finished."""
    items: list[Item] = read_dataset(recipe.data.folder)
    stage = make_stage(name, recipe, items, runs)
    return run(stage, getattr(recipe, name), runs / name, identity(name, recipe, items), **options)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def recipe(pictures: Path) -> Callable[..., Recipe]:
    """`recipe(section={...})`: the tiny recipe with changes."""
    return lambda **changes: tiny_recipe(pictures, **changes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small have nothing to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _quick(_threads: None) -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.train.diffusion.PROMPTS", ("a red square",))


@pytest.fixture(scope="session")
def trained(recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder in which CLIP and the autoencoder have finished."""
    runs = tmp_path_factory.mktemp("runs")
    with one_thread():
        for name in ("clip", "autoencoder"):
            assert train_stage(name, recipe(), runs)
    return runs
