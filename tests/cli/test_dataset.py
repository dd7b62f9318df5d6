"""`danqing dataset`: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Answer, Run


def folder_of(folder: Path, count: int = 4) -> Path:
    """Pictures of 40x40 with text files beside them."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 10, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise {number}")
    return folder


def last_line(answer: Answer) -> str:
    """The one line on standard error, of an answer with code 2."""
    assert answer.code == 2, answer
    (line,) = (line for line in answer.err.splitlines() if not line.startswith("note: "))
    assert line.startswith("danqing: ")
    return line


def test_check_of_a_sound_folder(run: Run, tmp_path: Path) -> None:
    answer = run("dataset", "check", folder_of(tmp_path / "data"), "--size", 32, "--sheet", "sheets/check.png")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0] == f"{tmp_path / 'data'}: 4 pictures, 0 of them held out"
    assert lines[1:5] == [
        "sizes:",
        f"        40x40       4  {'#' * 40}",
        "trained at:",
        f"        32x32       4  {'#' * 40}",
    ]
    assert lines[5:] == [
        "warning: no picture is held out: an overfit (炸炉) would not be seen",
        "wrote sheets/check.png",
    ]
    assert Image.open("sheets/check.png").size == (4 * 136 + 8, 144)
    assert answer.err == ""


def test_check_names_all_broken_files_and_long_warnings_are_cut(run: Run, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    for number in range(30):
        (folder / f"broken-{number:02}.png").write_bytes(b"no")
        (folder / f"broken-{number:02}.txt").write_text("x")
        Image.open(folder / "1.png").save(folder / f"same-{number:02}.png")
        (folder / f"same-{number:02}.txt").write_text("x")
    (folder / "2.txt").unlink()
    answer = run("dataset", "check", folder, "--size", 32)
    assert last_line(answer) == (f"danqing: {folder}: 30 pictures that cannot be read; 1 picture without a caption")
    assert sum("broken-" in line for line in answer.out.splitlines()) == 30
    assert sum("same-" in line for line in answer.out.splitlines()) == 20
    assert "  ... and 10 more; --json lists all" in answer.out
    assert "error: 1 picture without a caption\n  2.png\n" in answer.out
    answer = run("dataset", "check", folder, "--json")
    last_line(answer)
    table = json.loads(answer.out)
    assert table["pictures"] == 64
    assert [len(error["files"]) for error in table["errors"]] == [30, 1]
    assert {"30 pictures there before, which counts twice", "34 pictures smaller than trained at, to be enlarged"} <= {
        warning["text"] for warning in table["warnings"]
    }
    assert {"sizes", "buckets", "held_out", "folder"} <= table.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "gone"), ("gone", "no such folder")),
        (("check", "."), ("no pictures",)),
        (("check", "data", "--sheet", "x.txt"), ("x.txt", ".png")),
        (("check", "data", "--tokenizer", "gone"), ("gone", "tokenizer")),
        (("check", "data", "--size", "0"), ("size", "16")),
        (("check", "data", "--bucket-step", "-8"), ("bucket_step",)),
        (("emoji", "x", "--size", "8"), ("size 8", "16 to 2048")),
        (("emoji", "x", "--style", "opnmoji"), ("style", "'opnmoji'", "did you mean openmoji")),
        (("emoji", "data"), ("data", "not empty")),
    ],
)
def test_mistakes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if arguments != ("check", "."):
        folder_of(Path("data"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm is ever asked
    answer = run("dataset", *arguments)
    line = last_line(answer)
    for word in words:
        assert word in line
    assert answer.out == ""
    assert {path.name for path in Path().iterdir()} <= {"data"}


def test_emoji_needs_npm(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm was not found" in last_line(run("dataset", "emoji", "x"))


def test_help(run: Run) -> None:
    answer = run("dataset", "emoji", "--help")
    assert answer.code == 0
    for word in ("--size", "--style", "--packages", "openmoji"):
        assert word in answer.out
    assert "check" in run("dataset", "--help").out
