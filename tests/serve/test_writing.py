"""The engine's second thread, which writes pictures while the next job is painted."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from danqing.errors import DanqingError
from danqing.requests import TextToImage
from danqing.serve.store import Stored
from studio import fake_studio


def asked(name: str) -> TextToImage:
    return TextToImage(prompt=name, seed=1)


def until(true: Any) -> None:
    ends = time.monotonic() + 10
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.002)


def test_the_next_job_is_painted_while_a_picture_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, painter = fake_studio(tmp_path, start=False)
    first, second = (engine.submit(asked(name)).id for name in "ab")
    gate, record = threading.Event(), engine.store.record

    def slow(identity: str, *args: Any, **options: Any) -> tuple[Stored, ...]:
        gate.wait(10)
        return record(identity, *args, **options)

    monkeypatch.setattr(engine.store, "record", slow)
    engine.start()
    until(lambda: len(painter.painted) == 2)
    assert engine.job(first).state == "running"
    assert engine.progress(first).share == 1.0
    assert engine.progress(first).text == "painting"
    assert engine.pictures(first) == ()
    threading.Timer(0.05, gate.set).start()
    engine.close()  # waits for what is written
    again, _ = fake_studio(tmp_path, start=False)
    assert [again.job(job).state for job in (first, second)] == ["done", "done"]
    assert [len(again.pictures(job)) for job in (first, second)] == [1, 1]
    again.close()


def test_a_picture_that_cannot_be_written_fails_its_own_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    jobs = [engine.submit(asked(name)).id for name in "abc"]
    jobs.append(engine.submit(TextToImage(prompt="d", seed=1, n_iter=3)).id)
    write = engine._write

    def failing(job: Any, finished: Any) -> Any:
        if job.id in (jobs[0], jobs[2]) or (job.id == jobs[3] and finished.index == 1):
            raise DanqingError("the disk is full")
        return write(job, finished)

    monkeypatch.setattr(engine, "_write", failing)
    engine.start()
    ended = [engine.wait(job, 10) for job in jobs]
    assert [job.state for job in ended] == ["failed", "done", "failed", "failed"]
    assert [job.error for job in ended] == ["the disk is full", None, "the disk is full", "the disk is full"]
    assert [picture.index for picture in engine.pictures(jobs[3])] == [0]
    assert engine.totals()["failures"] == 3
    engine.close()


def test_what_the_database_does_not_take_is_painted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    first = engine.submit(asked("a")).id
    record, failures = engine.store.record, []

    def failing(*args: Any, **options: Any) -> tuple[Stored, ...]:
        if len(failures) < 2:  # neither the picture nor that it failed
            failures.append(args)
            raise OSError("no database")
        return record(*args, **options)

    monkeypatch.setattr(engine.store, "record", failing)
    engine.start()
    until(lambda: len(failures) == 2 and engine._writing is None)
    second = engine.submit(asked("b")).id  # wakes the painter
    assert engine.wait(first, 10).state == engine.wait(second, 10).state == "done"
    assert [len(engine.pictures(job)) for job in (first, second)] == [1, 1]
    engine.close()
