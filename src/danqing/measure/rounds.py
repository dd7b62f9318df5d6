"""Contenders in turns: each in a process of its own, all ready before the first round, one at work at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from danqing.errors import DanqingError
from danqing.measure.contenders import Contender
from danqing.measure.works import Work


@dataclass(frozen=True)
class Timing:
    """What one contender took."""

    seconds: tuple[float, ...]
    """Of each round."""
    ready: float
    """Seconds from its start to the end of its first run: loading, converting and compiling."""
    memory: int
    """Bytes of its own at most, of a GPU's memory where it runs there; 0 where the system does not tell."""
    mapped: int
    """Bytes of files that were mapped besides: weights, and the programs themselves."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Failed(Exception):
    """A contender's process ended; the message is its last line."""


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, work: Work, path: Path) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        job = {"maker": contender.maker, "work": asdict(work), "path": str(path), "keep": contender.own}
        job["options"] = dict(contender.options)
        environment = dict(os.environ)
        if not contender.own:  # what Danqing's command line sets for itself
            environment.pop("THP_MEM_ALLOC_ENABLE", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "danqing.measure.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )

    def ready(self) -> float:
        """Waits until it has run once. Returns the seconds that took."""
        return float(self._answer()["ready"])

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said last is read below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise Failed(said[-1] if said else f"its process ended with {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def in_turns(
    work: Work,
    contenders: Sequence[Contender],
    paths: Mapping[bool, Path],
    rounds: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Each contender's timing by its name, and the first's seconds by group under the profiler.

    `paths`: where the weights are, as a folder and (True) as a single file. Who fails is named by `say` and
    left out. Raises DanqingError where the first does, which is Danqing itself.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        readiness: dict[str, float] = {}
        first, *_ = contenders
        for contender in reversed(
            contenders
        ):  # those that take most memory to get ready come before others hold theirs
            worker = stack.enter_context(Worker(contender, work, paths[contender.single_file]))
            try:
                readiness[contender.name] = worker.ready()
                workers[contender.name] = worker
            except Failed as error:
                if contender is first:
                    raise DanqingError(f"{work}: {error}") from None
                say(f"{contender.name} failed and is left out: {error}")
        names = [contender.name for contender in contenders if contender.name in workers]
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        try:
            for _ in range(rounds):
                for name in names:
                    answers[name].append(workers[name].ask("time"))
            groups = workers[first.name].ask("profile")["groups"]
        except Failed as error:
            raise DanqingError(f"{work}: a contender ended between rounds: {error}") from None
    timings = {
        name: Timing(
            seconds=tuple(answer["seconds"] for answer in found),
            ready=readiness[name],
            memory=max(answer["memory"] for answer in found),
            mapped=max(answer["mapped"] for answer in found),
        )
        for name, found in answers.items()
    }
    return timings, groups
