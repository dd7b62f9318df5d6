"""`danqing plot` and `danqing styles`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Run

PROGRAM = (sys.executable, "-c", "from danqing.cli import main; main()")
QUICK = ("--steps", "1", "--size", "64x64", "--sampler", "Euler", "--seed", "3")


def test_a_plot_writes_its_pictures_and_a_grid(run: Run, models: Path) -> None:
    checkpoint = models / "tiny.safetensors"
    answer = run("plot", "a cat", "--x", "Steps=1,2", "--y", "CFG=1,2", *QUICK, "-m", checkpoint, "-o", "p.png")
    assert answer.code == 0, answer.err
    names = [f"p-{x}-{y}.png" for y in (1, 2) for x in (1, 2)]
    assert sorted(answer.out.split()[1::2]) == sorted([*names, "p.png"])
    with Image.open("p.png") as grid:
        assert "X Type: Steps" in grid.info["parameters"]
        assert grid.width > 128
        assert grid.height > 128


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to another process")
def test_ctrl_c_leaves_what_is_finished_and_a_whole_grid(models: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "plot", "x", "--x", "Seed=1-200", "--steps", "3", "--size", "64x64", "-m",
         str(models / "tiny.safetensors"), "-o", "p.png"],
        cwd=tmp_path,
        env={**os.environ, "DANQING_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while len(list(tmp_path.glob("p-*-1.png"))) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert 2 < len(kept) < 200
    assert sorted(line.removeprefix("wrote ") for line in out.splitlines()) == kept, "and no part of a file besides"
    for name in kept:
        Image.open(tmp_path / name).load()
    assert "p.png" in kept


def test_a_failing_cell_leaves_the_rest(run: Run, models: Path) -> None:
    answer = run("plot", "a cat", "--x", "Clip skip=1,9", *QUICK, "-m", models / "tiny.safetensors", "-o", "p.png")
    assert answer.code == 2
    assert "1 of 2 could not be painted" in answer.err
    assert Path("p-1-1.png").exists()
    assert Path("p.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give axes"),
        (("--x", "Stps=1"), "is unknown; did you mean"),
        (("--x", "Steps=0"), "axis Steps: steps: should be greater"),
        (("--matrix",), "a matrix has from 1 to 13 parts"),
        (("--prompts-file", "none.txt"), "none.txt: the prompts cannot be read"),
        (("--x", "Steps=1", "--style", "oil"), "style 'oil' is unknown"),
        (
            ("--x", "Steps=1", *QUICK, "--width", "64"),
            "size: give it by --size, or by --width and --height, not by both",
        ),
    ],
)
def test_mistakes_are_one_line_before_painting(run: Run, arguments: tuple[str, ...], message: str) -> None:
    answer = run("plot", "a cat", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_styles_are_listed(run: Run, tmp_path: Path) -> None:
    answer = run("styles")
    assert "no styles and wildcards found" in answer.out
    home = tmp_path / "home"
    (home / "wildcards").mkdir(parents=True, exist_ok=True)
    (home / "styles.csv").write_text("name,prompt\nOil,oil of {prompt}\n")
    (home / "wildcards" / "colour.txt").write_text("red\n")
    answer = run("styles")
    assert "Oil  (" in answer.out
    assert "prompt: oil of {prompt}" in answer.out
    assert "__colour__" in answer.out
