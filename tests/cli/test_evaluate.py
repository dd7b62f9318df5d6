"""`danqing evaluate bundled` from the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from danqing.evaluate.bundled import Pair
from danqing.models.judge import JudgeConfig, JudgeNetwork

from .conftest import Run

CONCEPTS, STYLES = ("apple", "pear"), ("3d", "flat")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures, a list that holds out one, a judge."""
    folder = tmp_path / "data"
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for concept in CONCEPTS:
        for style in STYLES:
            name = f"{concept}-{style}.png"
            Image.fromarray(draw.integers(0, 256, (128, 128, 3), np.uint8)).save(folder / name)
            rows.append({"file_name": name, "text": [concept, "果"], "concept": concept, "style": style})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "list.json").write_text(json.dumps([asdict(Pair("pear", "3d", "pear, 3d", "梨"))]))
    write_judge(tmp_path / "judge", CONCEPTS)
    return folder


def write_judge(folder: Path, concepts: tuple[str, ...]) -> None:
    config = JudgeConfig(concepts, STYLES, 16, (8, 16), (1, 1), 4, 12)
    folder.mkdir()
    torch.manual_seed(0)
    save_file(JudgeNetwork(config).bfloat16().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(config)))


def test_scores_are_printed_and_written(run: Run, data: Path) -> None:
    above = data.parent
    answer = run(
        "evaluate", "bundled", "--data", data, "--judge", above / "judge", "--held-out", above / "list.json",
        "--seeds", 1, "--steps", 1, "--frechet", 2, "--cfg-pairs", 1, "--sheet", "sheet.png", "--json", "out.json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    scores = json.loads(Path("out.json").read_text())
    for row in scores:
        assert any(line.startswith(row["name"]) and row["beside"] in line for line in answer.out.splitlines())
    assert "95% of 2,000 bootstrap resamples" in answer.out
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (3 * 128, 20 + 128)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--judge", "none"), "none: no judge is there"),
        (("--held-out", "none.json"), "none.json: the list of held-out pairs cannot be read"),
        (("--data", "nowhere"), "nowhere: there is no such folder"),
        (("--sheet", "sheet.txt"), "sheet.txt: '.txt' is no picture format"),
        (("--seeds", 0), "seeds and pairs: give 1 at least"),
        (("--steps", 0), "steps"),
    ],
)
def test_one_line_for_each_mistake(run: Run, data: Path, options: tuple[object, ...], words: str) -> None:
    above = data.parent
    sound = ("--data", data, "--judge", above / "judge", "--held-out", above / "list.json")
    answer = run("evaluate", "bundled", *sound, *options)
    lines = [line for line in answer.err.splitlines() if not line.startswith("note: ")]
    assert answer.code == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert answer.out == ""


def test_a_judge_of_other_concepts(run: Run, data: Path) -> None:
    above = data.parent
    write_judge(above / "other", ("cat", "dog"))
    answer = run(
        "evaluate", "bundled", "--data", data, "--judge", above / "other", "--held-out", above / "list.json"
    )  # fmt: skip
    assert answer.code == 2
    assert "the judge does not know 1 of the 1 concepts asked for (pear)" in answer.err


def test_a_folder_without_the_held_out_pictures(run: Run, data: Path) -> None:
    answer = run("evaluate", "bundled", "--data", data, "--judge", data.parent / "judge")
    assert answer.code == 2
    assert "324 of the 324 held-out pictures are not there" in answer.err
