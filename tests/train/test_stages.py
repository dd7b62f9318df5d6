"""A recipe's stages in turn, in one process and in two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import danqing
from danqing.errors import DanqingError
from danqing.train.dataset import read_dataset
from danqing.train.loop import run
from danqing.train.recipe import Loop, Recipe
from danqing.train.stages import STAGES, identity, make_stage, planned, train

from .conftest import dataset, tiny_recipe
from .test_loop import LineStage

THREE = ("clip", "autoencoder", "diffusion")


def training(recipe: Recipe, runs: Path, *stages: str, **options: Any) -> tuple[bool, list[str]]:
    lines: list[str] = []
    shown: list[str] = []

    def show(name: str) -> Callable[..., None]:
        return lambda done, total, losses, speed: shown.append(f"{name} {done}/{total}")

    finished = train(recipe, stages or THREE, runs, show=show, say=lines.append, **options)
    return finished, lines + shown


def test_stages_in_turn(pictures: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(pictures)
    assert planned(recipe) == THREE
    finished, lines = training(recipe, tmp_path)
    assert finished
    assert [f"{name} 6/6" for name in THREE] == [line for line in lines if "/6" in line]
    assert danqing.load(tmp_path / "tiny" / "diffusion" / "result" / "model").family.name == "tiny"
    finished, lines = training(recipe, tmp_path)
    assert finished
    assert len(lines) == 3
    assert all("is finished" in line for line in lines)


def test_stopped_again_and_again(pictures: Path, tmp_path: Path) -> None:
    """Asked to stop whenever it is asked, each run does an update; the recipe still ends."""
    recipe = tiny_recipe(pictures, **{name: {"steps": 2} for name in THREE})
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) % 2 == 0  # before a stage it is asked too

    runs = 1
    while not training(recipe, tmp_path, stop=stop)[0]:
        runs += 1
        assert runs < 20
    assert runs > 2
    assert (tmp_path / "tiny" / "diffusion" / "result").is_dir()
    assert not training(tiny_recipe(pictures), tmp_path / "no time", stop_after=0.0)[0]
    assert not (tmp_path / "no time").exists()


def test_a_moved_folder_is_the_same_recipe(pictures: Path, tmp_path: Path) -> None:
    """Where the pictures lie, and how the recipe was named, does not count; which they are does."""
    recipe = tiny_recipe(pictures)

    def after_one() -> Callable[[], bool]:
        answers = iter([False])
        return lambda: next(answers, True)

    assert not training(recipe, tmp_path, "clip", stop=after_one())[0]
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    there = tiny_recipe(moved)
    finished, lines = training(there, tmp_path, "clip", stop=after_one())
    assert not finished
    assert "clip: goes on from update 1 of 6" in lines
    (moved / "extra.png").write_bytes((moved / "00.png").read_bytes())
    rows = (moved / "metadata.jsonl").read_text("utf-8")
    (moved / "metadata.jsonl").write_text(rows + '\n{"file_name": "extra.png", "text": "one more"}', "utf-8")
    with pytest.raises(DanqingError, match=r"is of another recipe: data.pictures was '13 and 3 .* and is '14 and 3 "):
        training(there, tmp_path, "clip")


def test_identity_leaves_out_what_is_free(recipe: Callable[..., Recipe]) -> None:
    about = identity("clip", recipe(), [])
    assert about["stage"] == "clip"
    assert "steps" not in about["clip"]
    assert about["clip"]["batch"] == 4
    assert json.loads(json.dumps(about)) == json.loads(json.dumps(identity("clip", recipe(clip={"keep": 5}), [])))
    assert about != identity("clip", recipe(clip={"batch": 8}), [])


def test_mistakes(pictures: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(pictures)
    with pytest.raises(DanqingError, match=r"has no section \[judge\]"):
        training(recipe, tmp_path, "judge")
    with pytest.raises(DanqingError, match=r"has no section \[vae\]"):
        training(recipe, tmp_path, "vae")
    with pytest.raises(DanqingError, match=r"clip/result/text_encoder: no stage's result is there.*train that stage"):
        training(recipe, tmp_path, "diffusion")
    with pytest.raises(DanqingError, match=r"'vae' is no stage; there are clip, autoencoder, diffusion, judge"):
        make_stage("vae", recipe, read_dataset(pictures), tmp_path)
    alone = dataset(tmp_path / "alone", held_out=15)
    with pytest.raises(DanqingError, match=r"alone: 1 picture to train on; give two at least"):
        make_stage("clip", tiny_recipe(alone), read_dataset(alone), tmp_path)
    assert set(THREE) < set(STAGES)


TWO = """
import hashlib, sys
from pathlib import Path
root, out, *names = sys.argv[1:]
sys.path.insert(0, root)
import torch
torch.set_num_threads(1)
import danqing.train.diffusion
from accelerate import PartialState
from danqing.train.dataset import read_dataset
from danqing.train.loop import run
from danqing.train.stages import identity, make_stage
from tests.train.conftest import tiny_recipe
from tests.train.test_loop import LineStage
from tests.train.test_stages import LINE

danqing.train.diffusion.PROMPTS = ("a red square",)
out, rank = Path(out), PartialState(cpu=True).process_index
assert PartialState().num_processes == 2
recipe = tiny_recipe(out / "pictures", **{n: {"save_minutes": 1e-9, "accumulate": 2} for n in names})
items = read_dataset(recipe.data.folder)
for name in ("line", *names):
    for wait in (0.0, None):  # stopped after an update, then to the end
        stage = LineStage(LINE) if name == "line" else make_stage(name, recipe, items, out)
        settings, about = (LINE, {}) if name == "line" else (getattr(recipe, name), identity(name, recipe, items))
        finished = run(stage, settings, out / name, about, say=print if rank == 0 else None, stop_after=wait)
        assert finished == (wait is None)
    weights = b"".join(p.detach().contiguous().numpy().tobytes() for net in stage.parts.values() for p in net.parameters())
    (out / f"{name}-{rank}").write_text(hashlib.sha256(weights).hexdigest())
"""
LINE = Loop(steps=5, batch=4, accumulate=1, precision="no", warmup=0, average=None)


@pytest.mark.long
def test_two_processes(tmp_path: Path) -> None:
    """Each stage, stopped and resumed by two processes: one result, the same weights in both, those of one process."""
    dataset(tmp_path / "pictures")
    (tmp_path / "two.py").write_text(TWO, "utf-8")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(root), str(tmp_path), *THREE],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("line", *THREE):
        assert (tmp_path / f"{name}-0").read_text() == (tmp_path / f"{name}-1").read_text()
        assert not list((tmp_path / name).rglob("*.part"))
        states = sorted(path.name for path in (tmp_path / name / "states").iterdir())
        assert states[-1] == f"step-{5 if name == 'line' else 6:08d}"
        assert (tmp_path / name / "states" / states[-1] / "random_states_1.pkl").is_file()
    assert run(LineStage(LINE), LINE, tmp_path / "one", {})
    one, two = (torch.load(tmp_path / name / "result" / "line.pt")["w"] for name in ("one", "line"))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert done.stdout.count("goes on from update 1 of 6") == 3, "only the first process says it"
    assert danqing.load(tmp_path / "diffusion" / "result" / "model").family.name == "tiny"
