"""What a stage records of itself: `history.jsonl`, TensorBoard's scalars, warnings in plain words, `report.html`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.train.board import Board
from danqing.train.recipe import Loop
from danqing.train.report import Row, report

HISTORY, REPORT = "history.jsonl", "report.html"

LOOKS = 3
"""Looks at held-out pictures in a row that are worse than the best before overfitting is said."""
RISEN, WORSE = 0.03, 0.01
"""The share by which the last of them is worse, and every one of them."""
ENOUGH = 300
"""Updates after which something should have been learned; more with a long warm-up or a long run."""
FALLEN = 0.03
"""The share by which the training loss should have fallen by then."""
_TRY = {
    "clip": "see with `danqing dataset check` whether captions tell the pictures apart",
    "autoencoder": "look at the sample sheets, and lower kl_weight",
    "diffusion": "look at the autoencoder's sample sheets: of latents that are noise nothing can be learned",
    "judge": "see whether concepts and styles in metadata.jsonl are right",
}


class History:
    """The record of one stage in its folder; on other than the main process it does nothing."""

    def __init__(self, folder: Path, stage: str, settings: Loop, step: int, main: bool = True) -> None:
        """Go on after update `step`: what was recorded later belongs to updates that will be done again."""
        self.folder, self.stage, self.settings, self.main = folder, stage, settings, main
        self.best_step = -1
        self._best = float("inf")
        self.rows: list[Row] = []
        self.warnings: dict[str, tuple[int, str]] = {}
        """By their kind, which is said once: the update at which it was, and the text."""
        self._file = folder / HISTORY
        for row in _read(self._file):
            if row["step"] <= step:
                self._take(row)
        if not main:
            return
        with beside(self._file, 0) as new:
            new.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in self._all()), "utf-8")
        with _named(folder / "tensorboard"):
            self._board = Board(folder / "tensorboard", step)

    def _take(self, row: Mapping[str, Any]) -> None:
        if "warning" in row:
            self.warnings[row["warning"]] = (row["step"], row["text"])
            return
        self.rows.append(row)
        if row.get("held_out/loss", float("inf")) < self._best:
            self._best, self.best_step = row["held_out/loss"], int(row["step"])

    def _all(self) -> list[Mapping[str, Any]]:
        said = [{"step": step, "warning": kind, "text": text} for kind, (step, text) in self.warnings.items()]
        return sorted([*self.rows, *said], key=lambda row: row["step"])

    def _append(self, row: Mapping[str, Any]) -> None:
        self._take(row)
        with _named(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars at an update."""
        if not self.main:
            return
        self._append({"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}})
        with _named(self.folder / "tensorboard"):
            self._board.scalars(step, values)

    def judge(self, step: int, scores: Mapping[str, float]) -> list[str]:
        """Record held-out scores; returns them as a line, and warnings that were not given before.

        A score that is not finite, as where nothing is held out, is left out.
        """
        scores = {name: value for name, value in scores.items() if math.isfinite(value)}
        if scores:
            self.add(step, {f"held_out/{name}": value for name, value in scores.items()})
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        lines = [f"update {step}, held out: {told}"] if scores else []
        found = {
            "overfit": overfit(self.rows),
            "nothing learned": nothing_learned(self.rows, self.stage, self.settings),
        }
        for kind, text in found.items():
            if text is not None and kind not in self.warnings:
                self._append({"step": step, "warning": kind, "text": text})
                lines.append(f"warning: {text}")
        return lines

    def picture(self, step: int, sheet: Image.Image) -> None:
        """Show a sample sheet in TensorBoard."""
        if self.main:
            with _named(self.folder / "tensorboard"):
                self._board.picture(step, sheet)

    def report(self, seconds: float, data: Mapping[str, Any]) -> None:
        """Write `report.html`. seconds: spent on the stage so far. data: the recipe's, shown beside the settings."""
        if not self.main:
            return
        page = report(
            self.stage,
            self.folder.absolute().parent.name,
            self.rows,
            list(self.warnings.values()),
            sorted((self.folder / "samples").glob("*.png")),
            {**self.settings.model_dump(mode="json"), "data": data},
            self.settings.steps,
            seconds,
        )
        with beside(self.folder / REPORT, 0) as new:
            new.write_text(page, "utf-8")

    def close(self) -> None:
        if self.main:
            with _named(self.folder / "tensorboard"):
                self._board.close()


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a history; the last line may be cut short by a kill."""
    if file.is_file():
        yield from (json.loads(line) for line in file.read_text("utf-8").splitlines() if line.endswith("}"))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failure to write is told with the file's name."""
    try:
        yield
    except OSError as error:
        raise DanqingError(
            f"{path}: could not be written: {error.strerror or error}; saved states are kept, and the next run goes on"
        ) from error


def overfit(rows: Sequence[Row]) -> str | None:
    """Whether the held-out loss rose while the training loss fell, for several looks in a row; what to say of it.

    The last three looks and more are each 1% worse than the best, the last of them 3%, and the mean training loss
    since then is lower than in as many updates before.
    """
    looks = [(int(row["step"]), row["held_out/loss"]) for row in rows if "held_out/loss" in row]
    if not looks:
        return None
    best, lowest = min(looks, key=lambda look: look[1])
    later = [(step, value) for step, value in looks if step > best]
    margin = abs(lowest)
    if len(later) < LOOKS or any(value < lowest + WORSE * margin for _, value in later[-LOOKS:]):
        return None
    last, latest = later[-1]
    if latest < lowest + RISEN * margin:
        return None
    before = [row["loss"] for row in rows if "loss" in row and 2 * best - last < row["step"] <= best]
    since = [row["loss"] for row in rows if "loss" in row and row["step"] > best]
    if not before or not since or fmean(since) > fmean(before) - WORSE * abs(fmean(before)):
        return None
    return (
        f"overfitting (炸炉): since update {best} the held-out loss rises ({lowest:.4g} to {latest:.4g}) while the "
        f"training loss falls ({fmean(before):.4g} to {fmean(since):.4g}). The state to go back to is "
        f"states/step-{best:08d}: to end with it, remove the later ones and set steps = {best}. More pictures, more "
        "of augment or a smaller network put it off"
    )


def nothing_learned(rows: Sequence[Row], stage: str, settings: Loop) -> str | None:
    """Whether the training loss has not fallen by 3% when it should have; what to say of it.

    It has to by update 300, three times the warm-up, or a twentieth of the run, whichever is last.
    """
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    enough = max(ENOUGH, 3 * settings.warmup, settings.steps // 20)
    if not losses or losses[-1][0] < enough:
        return None
    size = max(3, len(losses) // 10)
    first = fmean(value for _, value in losses[:3])
    lowest = min(fmean(value for _, value in losses[i : i + size]) for i in range(0, len(losses) - size + 1, size))
    if lowest < first - FALLEN * abs(first):
        return None
    return (
        f"nothing was learned (废丹): after {losses[-1][0]:.0f} updates the training loss is "
        f"{fmean(value for _, value in losses[-size:]):.4g}, and it began at {first:.4g}. Try a learning_rate three "
        f"times lower or higher than {settings.learning_rate:g}; {_TRY.get(stage, 'look at the pictures')}"
    )
