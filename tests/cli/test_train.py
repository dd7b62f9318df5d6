"""`danqing train`: a whole tiny recipe, stopping and going on, and every mistake in one line."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.cli import show

from .conftest import Answer, Run

PROGRAM = (sys.executable, "-c", "import torch; torch.set_num_threads(1); from danqing.cli import main; main()")
RECIPE = """
name = "tiny"
[data]
folder = "data"
size = 16
[clip]
steps = 40
batch = 2
precision = "no"
evaluate_every = 20
text = { vocabulary = 1024, width = 16, layers = 1, heads = 2 }
vision = { width = 16, layers = 1, heads = 2, patch = 8 }
[autoencoder]
steps = 20
batch = 2
precision = "no"
channels = [8, 8]
groups = 4
latent_channels = 4
evaluate_every = 20
sample_every = 20
discriminator = { start = 10, channels = 8, layers = 1 }
[diffusion]
steps = 20
batch = 2
precision = "no"
denoiser = { channels = [8, 8], down_depth = [[0], [1]], up_depth = [[1, 1], [0, 0]], heads = [1, 2], groups = 4 }
evaluate_every = 20
sample_every = 1000000
"""


@pytest.fixture(autouse=True)
def _few(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread for networks of this size, and one prompt to look at."""
    monkeypatch.setattr("danqing.train.diffusion.PROMPTS", ("thing 1",))


def dataset(folder: Path, count: int = 6) -> None:
    folder.mkdir()
    rows = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"thing {number}", "held_out": number == 5})
    write(folder, rows)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def recipe(run: Run) -> Path:
    """`tiny.toml` with its pictures, in the working folder."""
    dataset(Path("data"))
    Path("tiny.toml").write_text(RECIPE)
    return Path("tiny.toml")


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 2, answer
    (line,) = (line for line in answer.err.splitlines() if line.startswith("danqing: "))
    assert answer.err.splitlines()[-1] == line
    assert "Traceback" not in answer.err
    for word in words:
        assert word in line, line


def test_a_whole_recipe(run: Run, recipe: Path) -> None:
    answer = run("train", "recipe", recipe)
    assert answer.code == 0, answer.err
    stages = ("clip", "autoencoder", "diffusion")
    assert answer.out.splitlines() == [f"finished: runs/tiny/{stage}/result" for stage in stages]
    assert "clip: update 40 of 40, loss " in answer.err
    assert "pictures/s, 0:00 left" in answer.err
    for stage in stages:
        folder = Path("runs/tiny") / stage
        assert (folder / "report.html").read_text("utf-8").startswith("<!doctype html>")
        assert len((folder / "history.jsonl").read_text().splitlines()) >= 2
        assert list((folder / "tensorboard").iterdir())
    assert (Path("runs/tiny/diffusion/result/model/model_index.json")).is_file()
    again = run("train", "recipe", recipe)
    assert again.code == 0
    assert again.out == answer.out
    assert "clip: is finished" in again.err


def test_one_stage_in_another_folder(run: Run, recipe: Path) -> None:
    answer = run("train", "clip", recipe, "--runs", "elsewhere")
    assert answer.out == "finished: elsewhere/tiny/clip/result\n"
    assert not Path("runs").exists()


def interrupted(run: Run, recipe: Path) -> Answer:
    """Train CLIP with a clock that ticks once whenever the loop looks at it, until the three seconds are over."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("danqing.train.loop.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
        return run("train", "clip", recipe, "--for", "0.05")


def test_for_minutes_saves_and_goes_on(run: Run, recipe: Path) -> None:
    answer = interrupted(run, recipe)
    assert answer.code == 0
    assert answer.out == "not finished; the same command goes on\n"
    assert "stopped at update 1 of 40" in answer.err
    assert [path.name for path in Path("runs/tiny/clip/states").iterdir()] == ["step-00000001"]
    answer = run("train", "clip", recipe)
    assert "clip: goes on from update 1 of 40" in answer.err
    assert answer.out == "finished: runs/tiny/clip/result\n"


def test_going_back_to_an_earlier_state(run: Run, recipe: Path) -> None:
    """As the warning of an overfit says: remove what is later, and set steps to that update."""
    interrupted(run, recipe)
    assert run("train", "clip", recipe).code == 0
    states = Path("runs/tiny/clip/states")
    assert "step-00000040" in {path.name for path in states.iterdir()}
    for path in (Path("runs/tiny/clip/result"), *(path for path in states.iterdir() if path.name > "step-00000001")):
        shutil.rmtree(path)
    recipe.write_text(RECIPE.replace("steps = 40", "steps = 1"))
    answer = run("train", "clip", recipe)
    assert (answer.code, answer.out) == (0, "finished: runs/tiny/clip/result\n"), answer.err
    assert Path("runs/tiny/clip/result/text_encoder/model.safetensors").is_file()


def test_of_several_processes_one_tells(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", "clip", recipe).code == 0
    monkeypatch.setenv("RANK", "1")
    answer = run("train", "clip", recipe)
    assert (answer.code, answer.out, answer.err) == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to another process")
def test_ctrl_c_saves_the_state(run: Run, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("steps = 40", "steps = 1000000"))
    process = subprocess.Popen(
        [*PROGRAM, "train", "clip", str(recipe)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    history = Path("runs/tiny/clip/history.jsonl")
    until = time.monotonic() + 60
    while time.monotonic() < until and not (history.is_file() and history.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "danqing: stopping after this step; the state is saved" in err
    assert out == "not finished; the same command goes on\n"
    assert list(Path("runs/tiny/clip/states").glob("step-*/state.json"))


def test_broken_pictures(run: Run, recipe: Path) -> None:
    for name in ("1.png", "3.png"):
        path = Path("data") / name
        path.write_bytes(path.read_bytes()[:100])
    refused(run("train", "recipe", recipe), "data: 2 pictures that cannot be read: 1.png (", "3.png (")
    assert not Path("runs").exists()


def test_empty_captions(run: Run, recipe: Path) -> None:
    rows = rows_of(Path("data"))
    rows[2]["text"] = "  "
    rows[4]["text"] = []
    write(Path("data"), rows)
    refused(run("train", "recipe", recipe), "data: 2 pictures without a caption: 2.png, 4.png")
    assert not Path("runs").exists()


def test_one_picture(run: Run, recipe: Path) -> None:
    write(Path("data"), rows_of(Path("data"))[:1])
    refused(run("train", "clip", recipe), "data: one picture to train on; two are needed at least")
    shutil.rmtree("data")
    refused(run("train", "clip", recipe), "data: there is no such folder")
    assert not Path("runs").exists()


def test_a_stage_goes_on_without_another_look_at_all_pictures(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr("danqing.train.stages.refuse", lambda items, folder: looked.append(len(items)))
    interrupted(run, recipe)
    assert looked == [6]
    assert run("train", "clip", recipe).code == 0
    assert looked == [6]


def test_a_full_disk_keeps_what_is_there(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(run, recipe)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file() and "states" in path.parts}
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if "step-" in Path(target).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        refused(run("train", "clip", recipe), "states/step-000000", "could not be written: the disk is full")
    assert before == {path: path.read_bytes() for path in before}
    states = Path("runs/tiny/clip/states")
    assert [path.name for path in states.iterdir()] == ["step-00000001"]
    usage = shutil.disk_usage(".")._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        refused(run("train", "clip", recipe), "the disk is full", "are free")
    assert run("train", "clip", recipe).code == 0


def test_a_folder_that_cannot_be_written(run: Run, recipe: Path) -> None:
    interrupted(run, recipe)
    board = Path("runs/tiny/clip/tensorboard")
    shutil.rmtree(board)
    board.write_text("a file where a folder should be")
    refused(run("train", "clip", recipe), "runs/tiny/clip/tensorboard: could not be written")
    assert board.read_text() == "a file where a folder should be"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[clip]\n", "[clip]\nlearning_rat = 1e-3\n", ("'clip.learning_rat'", "did you mean learning_rate")),
        ("steps = 40", "steps = 'x'", ("clip.steps", "'x'")),
        ("[diffusion]", "[difusion]", ("'difusion'", "did you mean diffusion")),
        ("[clip]", "[clip", ("is no TOML",)),
    ],
)
def test_bad_recipes(run: Run, recipe: Path, before: str, after: str, words: tuple[str, ...]) -> None:
    recipe.write_text(RECIPE.replace(before, after))
    refused(run("train", "recipe", recipe), "tiny.toml: ", *words)
    assert not Path("runs").exists()


def test_a_state_of_another_recipe(run: Run, recipe: Path) -> None:
    interrupted(run, recipe)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    recipe.write_text(RECIPE.replace("width = 16", "width = 32", 1))
    answer = run("train", "clip", recipe)
    refused(answer, "states/step-00000001: is of another recipe", "clip.text.width was 16 and is 32")
    assert before == {path: path.read_bytes() for path in before}
    recipe.write_text(RECIPE.replace("steps = 40", "steps = 20"))  # lengths may change
    assert run("train", "clip", recipe).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("recipe", "gone.toml"), ("gone.toml: No such file",)),
        (("autoencoder", "tiny.toml"), ("clip", "train that stage first")),
        (("judge", "tiny.toml"), ("'tiny' has no section [judge]",)),
        (("clip", "tiny.toml", "--for", "0"), ("for: 0 minutes",)),
        (("clip", "tiny.toml", "--for", "-1"), ("for: -1 minutes",)),
        (("clip", "tiny.toml", "--for", "nan"), ("for: nan minutes",)),
        (("clip", "tiny.toml", "--runs", "tiny.toml"), ("tiny.toml",)),
    ],
)
def test_mistakes(run: Run, recipe: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run("train", *arguments), *words)
    assert recipe.read_text() == RECIPE


@pytest.mark.parametrize("module", ["accelerate", "tensorboard"])
def test_without_the_extra(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused(run("train", "recipe", recipe), f"training needs {module}: pip install 'danqing[train]'")


def test_help(run: Run) -> None:
    answer = run("train", "--help")
    for name in ("clip", "autoencoder", "diffusion", "judge", "recipe"):
        assert f"  {name} " in answer.out
    assert {"--runs", "--for"} <= set(run("train", "recipe", "--help").out.split())


def test_lines_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    with show.training_bar() as (bar, say):
        tell = bar("clip")
        for step in range(20, 201, 20):
            now[0] += 20.0
            tell(step, 4000, {"loss": 1 / step}, 12.345)
        say("a note")
    assert capsys.readouterr().err.splitlines() == [
        "clip: update 40 of 4000, loss 0.025, 12.3 pictures/s, 1:06:00 left",
        "clip: update 80 of 4000, loss 0.0125, 12.3 pictures/s, 1:05:20 left",
        "clip: update 120 of 4000, loss 0.008333, 12.3 pictures/s, 1:04:40 left",
        "clip: update 160 of 4000, loss 0.00625, 12.3 pictures/s, 1:04:00 left",
        "clip: update 200 of 4000, loss 0.005, 12.3 pictures/s, 1:03:20 left",
        "a note",
    ]
