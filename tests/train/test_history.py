"""What is recorded of a stage, and the warnings in plain words, on made-up histories."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.train.board import Board
from danqing.train.history import HISTORY, REPORT, History, nothing_learned, overfit
from danqing.train.recipe import Loop
from danqing.train.report import Row

SETTINGS = Loop(steps=2000, warmup=100)


def rows(training: Callable[[int], float], held_out: Callable[[int], float], steps: int, every: int = 100) -> list[Row]:
    """A history with a row every 20 updates and a look every `every`."""
    made: list[Row] = []
    for step in range(20, steps + 1, 20):
        made.append({"step": step, "loss": training(step)})
        if step % every == 0:
            made.append({"step": step, "held_out/loss": held_out(step)})
    return made


def falls(step: int) -> float:
    return 1000 / (1000 + step)


def test_an_overfit_is_said_with_its_beginning_and_the_state_to_go_back_to() -> None:
    said = overfit(rows(falls, lambda step: 1 + abs(step - 600) / 2000, 900))
    assert said is not None
    assert "overfitting (炸炉): since update 600" in said
    assert "(1 to 1.15)" in said
    assert "states/step-00000600" in said
    assert "set steps = 600" in said


@pytest.mark.parametrize(
    ("held_out", "steps"),
    [
        pytest.param(lambda step: falls(step) + 0.1, 2000, id="both fall"),
        pytest.param(lambda step: 1 + abs(step - 600) / 2000, 800, id="two looks are too few"),
        pytest.param(lambda step: 1 + abs(step - 600) / 50000, 900, id="hardly worse"),
        pytest.param(lambda step: 1 + (0.1 if step in (500, 700, 800, 1000) else 0), 1000, id="up and down"),
    ],
)
def test_no_overfit(held_out: Callable[[int], float], steps: int) -> None:
    assert overfit(rows(falls, held_out, steps)) is None


def test_a_held_out_loss_that_rises_with_the_training_loss_is_no_overfit() -> None:
    def up(step: int) -> float:
        return 1 + abs(step - 600) / 2000

    assert overfit(rows(up, up, 1500)) is None


def test_without_looks_nothing_is_said() -> None:
    assert overfit([{"step": 20, "loss": 1.0}]) is None
    assert overfit([]) is None


def level(step: int) -> float:
    return 0.98 + 0.01 * ((step // 20) % 3 - 1)


@pytest.mark.parametrize("stage", ["clip", "autoencoder", "diffusion", "judge"])
def test_nothing_learned_is_said_with_what_to_try(stage: str) -> None:
    said = nothing_learned(rows(level, level, 300), stage, SETTINGS)
    assert said is not None
    assert said.startswith("nothing was learned (废丹): after 300 updates the training loss is 0.98")
    assert "learning_rate" in said
    assert {"clip": "captions", "autoencoder": "kl_weight", "diffusion": "latents", "judge": "concepts"}[stage] in said


@pytest.mark.parametrize(
    ("settings", "steps"), [(SETTINGS, 280), (Loop(steps=2000, warmup=200), 580), (Loop(steps=20000), 980)]
)
def test_nothing_learned_is_not_said_too_early(settings: Loop, steps: int) -> None:
    assert nothing_learned(rows(level, level, steps), "clip", settings) is None
    assert nothing_learned(rows(level, level, steps + 20), "clip", settings) is not None


def test_what_was_learned_once_is_not_taken_back() -> None:
    """The adversary's part makes an autoencoder's loss rise in the middle."""
    made = rows(lambda step: falls(step) if step < 500 else 2.0, level, 900)
    assert nothing_learned(made, "autoencoder", SETTINGS) is None


def test_negative_losses_fall_too() -> None:
    assert nothing_learned(rows(lambda step: -1 - step / 1000, level, 400), "autoencoder", SETTINGS) is None
    assert nothing_learned(rows(lambda step: -1.0, level, 400), "autoencoder", SETTINGS) is not None


def record(history: History, made: Sequence[Row]) -> list[str]:
    """What the history says while these rows are recorded."""
    said = []
    for row in made:
        step = int(row["step"])
        values = {name: value for name, value in row.items() if name != "step"}
        if "held_out/loss" in values:
            said += history.judge(step, {"loss": values["held_out/loss"]})
        else:
            history.add(step, values)
    return said


def test_each_warning_is_said_once_also_after_a_restart(tmp_path: Path) -> None:
    made = rows(falls, lambda step: 1 + abs(step - 600) / 2000, 1500)
    history = History(tmp_path / "clip", "clip", SETTINGS, 0)
    said = record(history, made)
    assert [line.partition(" (")[0] for line in said if line.startswith("warning")] == ["warning: overfitting"]
    assert said[0] == "update 100, held out: loss 1.25"
    assert history.best_step == 600
    history.close()

    again = History(tmp_path / "clip", "clip", SETTINGS, 1500)
    assert again.best_step == 600
    assert again.rows == history.rows
    assert not [line for line in again.judge(1600, {"loss": 1.6}) if line.startswith("warning")]
    again.close()

    before = History(tmp_path / "clip", "clip", SETTINGS, 800)  # from before the warning: it is found anew
    assert not before.warnings
    assert any("overfitting" in line for line in before.judge(900, {"loss": 1.15}))
    before.close()


def test_what_was_recorded_after_the_state_is_forgotten(tmp_path: Path) -> None:
    history = History(tmp_path, "clip", SETTINGS, 0)
    for step in (20, 40, 60):
        history.add(step, {"loss": 1 / step})
    history.close()
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"step": 80, "lo')  # killed there
    again = History(tmp_path, "clip", SETTINGS, 40)
    again.close()
    written = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [row["step"] for row in written] == [20, 40]
    assert written[0]["loss"] == 0.05


def test_scores_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    history = History(tmp_path, "clip", SETTINGS, 0)
    assert history.judge(20, {"loss": float("nan")}) == []
    assert history.judge(20, {}) == []
    assert history.best_step == -1
    history.close()
    assert "NaN" not in (tmp_path / HISTORY).read_text()


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    history = History(tmp_path / "clip", "clip", SETTINGS, 0, main=False)
    history.add(20, {"loss": 1.0})
    history.picture(20, Image.new("RGB", (4, 4)))
    history.report(1.0, {})
    history.close()
    assert not (tmp_path / "clip").exists()


def test_tensorboard_reads_what_was_recorded(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = History(tmp_path, "clip", SETTINGS, 0)
    for step in (20, 40, 60):
        history.add(step, {"loss": 1 / step})
    history.close()
    again = History(tmp_path, "clip", SETTINGS, 40)  # goes on from 40: what was after it is forgotten
    again.add(60, {"loss": 7.0})
    again.picture(60, Image.new("RGB", (12, 8), (255, 0, 0)))
    again.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [
        (20, 0.05),
        (40, 0.025),
        (60, 7.0),
    ]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (60, 12, 8)


def test_a_full_disk_is_named_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, "clip", SETTINGS, 0)
    history.add(20, {"loss": 1.0})
    history.report(60.0, {})
    before = (tmp_path / REPORT).read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(DanqingError, match=r"report\.html: could not be written: the disk is full"):
            history.report(70.0, {})
        patch.setattr(Path, "open", full)
        with pytest.raises(DanqingError, match=r"history\.jsonl: could not be written: No space left"):
            history.add(40, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(Board, "scalars", full)
        with pytest.raises(DanqingError, match=r"tensorboard: could not be written: No space left"):
            history.add(40, {"loss": 1.0})
    history.close()
    assert (tmp_path / REPORT).read_text() == before
    assert json.loads((tmp_path / HISTORY).read_text().splitlines()[0])["loss"] == 1.0
    assert not list(tmp_path.glob(".*.part"))
