"""The judge's stage: it learns, never sees what is held out, and what it writes opens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from danqing.errors import DanqingError
from danqing.evaluate.judge import judged, load_judge, look
from danqing.train.dataset import Item, read_dataset, split
from danqing.train.judge import JudgeStage
from danqing.train.loop import run
from danqing.train.pictures import Pictures
from danqing.train.recipe import Data, Judge, Recipe

from .conftest import COLOURS, LOOP, SHAPES, TINY, draw, train_stage

JUDGE: dict[str, Any] = {
    **LOOP, "picture": 16, "channels": (16, 32), "layers": (1, 1), "groups": 4, "features": 32, "batch": 12,
    "learning_rate": 1e-2, "average": {"kind": "constant", "decay": 0.9},
    "distort": {"rotation": 5, "scale": 0.1, "mixup": 0.1, "cutmix": 0.1, "erase": 0.1},
}  # fmt: skip


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shape is a concept; on white or on black is a style; one colour of each shape is held out on white."""
    folder = tmp_path_factory.mktemp("judge") / "pictures"
    folder.mkdir()
    rows = []
    for column, shape in enumerate(SHAPES):
        for line, colour in enumerate(COLOURS):
            for style in ("white", "black"):
                name = f"{column}{line}-{style}.png"
                picture = draw(COLOURS[colour], shape, 32)
                (picture if style == "white" else ImageOps.invert(picture)).save(folder / name)
                text = [f"{colour} {shape}", f"一个{colour}{shape}"]
                labels = {"concept": shape, "style": style, "held_out": column == line and style == "white"}
                rows.append({"file_name": name, "text": text, **labels})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    others = {name: {**LOOP, **own} for name, own in TINY.items()}
    data = {"folder": folder, "size": 32}
    return Recipe.model_validate({"name": "tiny", "data": data, **others, "judge": {**JUDGE, **changes}})


def stage_of(folder: Path, items: list[Item] | None = None, **changes: Any) -> JudgeStage:
    training, held_out = split(read_dataset(folder) if items is None else items)
    settings = Judge.model_validate({**JUDGE, **changes})
    return JudgeStage(settings, Data(folder=folder, size=32), training, held_out)


def test_what_is_written_names_what_was_trained(labelled: Path, tmp_path: Path) -> None:
    """By the judge's own file, so that labels, precision and weights all hold; chance is 1/4 and 1/2."""
    assert train_stage("judge", recipe_of(labelled, steps=120, evaluate_every=120), tmp_path)
    folder = tmp_path / "judge" / "result"
    assert all(value.dtype == torch.bfloat16 for value in load_file(folder / "judge" / "model.safetensors").values())
    judge = load_judge(folder / "judge")
    assert judge.config.concepts == tuple(sorted(SHAPES))
    training = split(read_dataset(labelled))[0]
    pixels = Pictures(training, Data(folder=labelled, size=32)).load(range(len(training)))
    pairs = [(item.labels["concept"], item.labels["style"]) for item in training]
    verdict = judged(judge.config, look(judge, pixels), pairs)
    assert verdict.within(1).float().mean() > 0.7
    assert verdict.style.float().mean() > 0.9
    assert json.loads((folder / "scores.json").read_text())["style"] > 0.7  # of pictures it never saw


def test_a_killed_run_ends_the_same(labelled: Path, tmp_path: Path) -> None:
    settings = Judge.model_validate({**JUDGE, "steps": 5})
    weights = []
    for name, stops in (("whole", []), ("twice", [0.0, 0.0])):
        for stop_after in stops:
            assert not run(stage_of(labelled), settings, tmp_path / name, {}, stop_after=stop_after)
        assert run(stage_of(labelled), settings, tmp_path / name, {})
        weights.append(load_file(tmp_path / name / "result" / "judge" / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_held_out_pictures_are_not_among_the_trained(labelled: Path) -> None:
    stage = stage_of(labelled)
    shown = {row for number in range(20) for row in stage.order.at(number)}
    assert {stage.pictures.items[row].held_out for row in shown} == {False}
    assert len(shown) == 28


def test_of_few_pictures_without_held_out_ones(labelled: Path) -> None:
    items = [item for item in read_dataset(labelled) if not item.held_out]
    stage = stage_of(labelled, items)
    assert stage.evaluate() == {}
    assert stage.sample() is None


def test_labels_are_asked_for(labelled: Path) -> None:
    items = read_dataset(labelled)
    items[2] = replace(items[2], labels={"concept": "square"})
    with pytest.raises(DanqingError, match=r"01-white\.png: metadata\.jsonl does not give its style"):
        stage_of(labelled, items)


def test_a_held_out_concept_must_be_known(labelled: Path) -> None:
    items = [replace(item, held_out=item.labels["concept"] == "dot") for item in read_dataset(labelled)]
    with pytest.raises(DanqingError, match="dot/white is held out"):
        stage_of(labelled, items)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (1,)}, r"judge\.layers"),
        ({"layers": (1, 0)}, r"judge\.layers"),
        ({"groups": 3}, r"judge\.groups: 3"),
        ({"picture": 18}, r"judge\.picture: 18 should be a multiple of 4"),
    ],
)
def test_settings_that_make_no_network(labelled: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DanqingError, match=words):
        stage_of(labelled, **changes)


def test_a_recipe_without_a_judge_says_so(labelled: Path, tmp_path: Path) -> None:
    from danqing.train.stages import planned, train

    recipe = recipe_of(labelled).model_copy(update={"judge": None})
    assert planned(recipe) == ("clip", "autoencoder", "diffusion")
    with pytest.raises(DanqingError, match=r"no section \[judge\]"):
        train(recipe, ("judge",), tmp_path, show=lambda name: lambda *told: None, say=lambda line: None)


def test_broken_pictures_are_named(labelled: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    items = read_dataset(labelled)
    items[1] = replace(items[1], path=tmp_path / "broken.png")
    stage = stage_of(labelled, items)
    with pytest.raises(DanqingError, match=r"broken\.png"):
        stage.pictures.load(range(28))
