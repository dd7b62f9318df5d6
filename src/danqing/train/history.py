"""What a stage records of itself: `history.jsonl`, TensorBoard's scalars, warnings in plain words, `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

HISTORY = "history.jsonl"


class History:
    """The record of one stage in its folder; on other than the main process it does nothing."""

    def __init__(self, folder: Path, step: int, main: bool = True) -> None:
        """Go on after update `step`: what was recorded later belongs to updates that will be done again."""
        self.folder, self.main = folder, main
        self.best_step = -1
        self._best = float("inf")
        self.rows: list[dict[str, float]] = []
        self._file = folder / HISTORY
        if self._file.is_file():
            rows = [json.loads(line) for line in self._file.read_text("utf-8").splitlines() if line.endswith("}")]
            self.rows = [row for row in rows if row["step"] <= step]
        for row in self.rows:
            if "held_out/loss" in row and row["held_out/loss"] < self._best:
                self._best, self.best_step = row["held_out/loss"], int(row["step"])
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars at an update."""
        if not self.main:
            return
        row = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self.rows.append(row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def judge(self, step: int, scores: Mapping[str, float]) -> list[str]:
        """Record held-out scores; returns warnings in plain words."""
        self.add(step, {f"held_out/{name}": value for name, value in scores.items()})
        if scores.get("loss", float("inf")) < self._best:
            self._best, self.best_step = scores["loss"], step
        return [", ".join(f"{name} {value:.4g}" for name, value in scores.items())]

    def picture(self, step: int, sheet: Image.Image) -> None:
        if self.main:
            self._board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")  # type: ignore[no-untyped-call]

    def report(self, stage: str, steps: int) -> None:
        pass

    def close(self) -> None:
        if self.main:
            self._board.close()  # type: ignore[no-untyped-call]
