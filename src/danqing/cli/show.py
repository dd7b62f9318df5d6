"""What commands print: progress, notes, one line for what was done."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """A note to the person: something that is not as asked, or worth knowing."""
    console.print(Text(f"note: {line}", style="yellow"))


class _SecondsPerStep(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{1 / task.speed:.2f} s/step" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """Steps done, seconds per step and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _SecondsPerStep(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields `progress(name, bytes so far, bytes in all)`, shown as a bar for each name."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield progress


QUIET = 30.0
"""Seconds between the lines of a training run that no terminal shows."""

ShowTraining = Callable[[int, int, Mapping[str, float], float], None]


@contextmanager
def training_bar(quiet: bool = False) -> Iterator[tuple[Callable[[str], ShowTraining], Callable[[str], None]]]:
    """Yields (show, say): `show(stage)(updates done, of how many, losses, pictures per second)`, and lines between.

    A bar for each stage; where standard error is no terminal, a line every half minute and at the end. `quiet` shows
    nothing.
    """
    if quiet:
        yield lambda stage: lambda done, total, losses, speed: None, lambda line: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def show(stage: str) -> ShowTraining:
            task = bar.add_task(stage, total=None, text="preparing")
            began: list[tuple[float, int]] = []  # when the first was told, and the updates done by then
            told = [time.monotonic()]

            def tell(done: int, total: int, losses: Mapping[str, float], speed: float) -> None:
                now = time.monotonic()
                if not began:
                    began.append((now, done))
                each = (now - began[0][0]) / (done - began[0][1]) if done > began[0][1] else None
                left = "" if each is None else f", {_clock(each * (total - done))} left"
                text = f"loss {losses.get('loss', float('nan')):.4g}, {speed:.3g} pictures/s{left}"
                bar.update(task, total=total, completed=done, text=text)
                if not console.is_terminal and (now - told[0] > QUIET or done == total):
                    told[0] = now
                    console.print(f"{stage}: update {done} of {total}, {text}")

            return tell

        yield show, lambda line: console.print(Text(line, style="yellow" if "warning: " in line else ""))


def _clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def finishing_on_interrupt(kept: str = "finished pictures are kept") -> Iterator[list[bool]]:
    """Within, Ctrl-C only asks to stop: the yielded list becomes non-empty. A second Ctrl-C stops at once."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        print(f"danqing: stopping after this step; {kept}", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
