"""Jobs that share a run: each has the picture that it has alone, and what befalls one leaves the others be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.paint import paint
from danqing.pipeline.together import Apart, stream_together
from danqing.requests import ImageToImage, Painting, TextToImage
from danqing.serve.accept import share_key
from danqing.serve.engine import Engine
from danqing.serve.store import Job, Store
from danqing.serve.work import Finished, Sharing, Tick
from studio import STEPS, FakePainter, fake_studio
from tiny_model import tiny_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def asked(prompt: str, seed: int, **fields: object) -> TextToImage:
    given = {"steps": 3, "width": 64, "height": 64, **fields}
    return TextToImage(prompt=prompt, seed=seed, negative_prompt=f"no {prompt}", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a", "DPM++ SDE"])
@pytest.mark.parametrize("scale", [7.0, 1.0])
def test_a_picture_painted_together_has_the_bits_it_has_alone(tiny: Model, sampler: str, scale: float) -> None:
    requests = [
        asked(p, s, sampler_name=sampler, cfg_scale=scale) for p, s in (("a cat", 1), ("two (dogs:1.3)", 7), ("", 1))
    ]
    events = list(stream_together(requests, tiny, say=lambda number, line: None))
    assert [event.step for event in events] == [1, 2, 3]
    for request, picture in zip(requests, events[-1].pictures):
        (alone,) = paint(request, tiny, say=lambda line: None)
        assert np.array_equal(np.asarray(picture.image), np.asarray(alone.image))
        assert picture.record == alone.record


def test_what_cannot_share_a_run_says_so_before_it_begins(tiny: Model) -> None:
    for other in (asked("a [cat:dog:0.5]", 2), asked("a AND b", 2), asked("word " * 90, 2)):
        with pytest.raises(Apart):
            next(stream_together([asked("a cat", 1), other], tiny, say=lambda number, line: None))
    adaptive = [asked(p, 1, sampler_name="DPM adaptive") for p in "ab"]
    with pytest.raises(Apart):
        next(stream_together(adaptive, tiny, say=lambda number, line: None))


def test_which_requests_are_alike() -> None:
    key = share_key(asked("a", 1))
    assert key is not None
    assert share_key(asked("b", 2)) == key
    assert share_key(asked("b", 2, steps=4)) not in (key, None)
    assert share_key(asked("b", 2, model="other")) not in (key, None)
    image = Image.new("RGB", (64, 64))
    others: list[Painting] = [
        asked("a <lora:x>", 1),
        asked("a embedding:x", 1),
        asked("a", 1, enable_hr=True),
        asked("a", 1, tiling="x"),
        asked("a", 1, dialect="comfyui"),
        asked("a", 1, subseed=4, subseed_strength=0.2),
        ImageToImage(image=image, prompt="a"),
    ]
    assert [share_key(each) for each in others] == [None] * len(others)


class FakeSharing:
    """Paints jobs together as the fake painter paints them alone."""

    def __init__(self, painter: FakePainter, gate: threading.Semaphore | None) -> None:
        self.painter, self.gate = painter, gate
        self.runs: list[int] = []
        self.error: Exception | None = None
        self.torn: Exception | None = None

    def __call__(self, jobs: Sequence[Job], note: Callable[[int, str], None]) -> Iterator[Tick]:
        self.runs.append(len(jobs))
        if self.error is not None:
            raise self.error
        for step in range(1, STEPS + 1):
            if self.gate is not None:
                self.gate.acquire()
            finished: list[Finished] = []
            for number, job in enumerate(jobs if step == STEPS else ()):
                finished.append(self.picture(job))
                note(number, "told")
            yield Tick(
                0, 1, step, STEPS, finished=tuple(finished), unfinished=lambda number: self.picture(jobs[number])
            )

    def picture(self, job: Job) -> Finished:
        if self.torn is not None:
            raise self.torn
        *_, last = FakePainter(self.painter.folder)(job, frozenset(), lambda line: None)
        return last.finished[0]


def studio(folder: Path, gate: threading.Semaphore | None = None) -> tuple[Engine, FakePainter, FakeSharing]:
    engine, painter = fake_studio(folder, start=False, gate=gate)
    together = FakeSharing(painter, gate)
    engine._batch, engine._sharing = 3, Sharing(3, together)
    return engine, painter, together


def test_jobs_that_are_alike_are_painted_together_and_others_are_not(tmp_path: Path) -> None:
    engine, painter, together = studio(tmp_path)
    alike = [engine.submit(asked(name, 5)).id for name in "abcd"]
    other = engine.submit(asked("e", 5, steps=9)).id
    urgent = engine.submit(asked("f", 6), priority=1).id
    engine.start()
    for job in (*alike, other, urgent):
        assert engine.wait(job, 10).state == "done"
        (picture,) = engine.pictures(job)
        assert picture.seed in (5, 6)
    assert together.runs == [3]
    assert [job for job, _ in painter.painted] == [urgent, alike[3], other]
    assert engine.job(alike[1]).notes == ("told",)
    assert engine.totals()["pictures"] == 6
    engine.close()


def test_one_of_them_may_leave(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    engine, _, _ = studio(tmp_path, gate)
    first, second, third = (engine.submit(asked(name, 5)).id for name in "abc")
    engine.start()
    gate.release(1)
    while engine.progress(second).step != 1:
        pass
    assert engine.progress().job == first
    assert engine.progress(third).share == 1 / STEPS
    engine.cancel(second)
    engine.interrupt()  # the first
    gate.release(1)
    assert engine.wait(first, 5).state == "interrupted"
    assert engine.wait(second, 5).state == "cancelled"
    # the one that stays is what is painted now, and those that left are not
    assert engine.progress().job == third
    assert engine.progress(first).text == "interrupted"
    engine.interrupt(first)
    gate.release(100)
    assert engine.wait(third, 5).state == "done"
    assert [len(engine.pictures(job)) for job in (first, second, third)] == [1, 0, 1]
    engine.close()


def test_all_of_them_may_be_interrupted_one_after_another(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    engine, _, _ = studio(tmp_path, gate)
    jobs = [engine.submit(asked(name, 5)).id for name in "ab"]
    engine.start()
    gate.release(1)
    for job in jobs:
        while engine.progress(job).step == 0:
            pass
        assert engine.progress().job == job
        engine.interrupt()
        gate.release(1)
        assert engine.wait(job, 5).state == "interrupted"
    assert [len(engine.pictures(job)) for job in jobs] == [1, 1]
    engine.close()


def test_what_cannot_be_kept_of_one_leaves_the_others(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    engine, _, together = studio(tmp_path, gate)
    together.torn = DanqingError("decode: it has no picture")
    first, second = (engine.submit(asked(name, 5)).id for name in "ab")
    engine.start()
    gate.release(1)
    while engine.progress(second).step != 1:
        pass
    engine.interrupt(second)
    gate.release(1)
    assert engine.wait(second, 5).state == "failed"
    assert engine.job(second).error == "decode: it has no picture"
    together.torn = None
    gate.release(100)
    assert engine.wait(first, 5).state == "done"
    engine.close()


def test_where_it_does_not_go_each_is_painted_alone(tmp_path: Path) -> None:
    engine, painter, together = studio(tmp_path)
    together.error = DanqingError("the lora of one of them")
    jobs = [engine.submit(asked(name, 5)).id for name in "abc"]
    engine.start()
    assert [engine.wait(job, 10).state for job in jobs] == ["done"] * 3
    assert together.runs == [3]
    assert [job for job, _ in painter.painted] == jobs
    engine.close()


def test_a_closed_studio_puts_them_back(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    engine, _, _ = studio(tmp_path, gate)
    jobs = [engine.submit(asked(name, 5)).id for name in "abc"]
    engine.start()
    gate.release(1)
    while engine.progress(jobs[0]).step != 1:
        pass
    threading.Timer(0.1, gate.release, (100,)).start()
    engine.close()
    again, _, _ = studio(tmp_path)
    assert {again.job(job).state for job in jobs} == {"queued"}
    again.start()
    assert [again.wait(job, 10).state for job in jobs] == ["done"] * 3
    again.close()


def test_a_job_that_ends_the_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    store = Store(url)
    job = store.add_job("txt2img", {}, [{}], 1, origin="api")
    for _ in range(10):
        assert store.start_next() is not None
        store.close()  # killed
        store = Store(url)
        store.requeue_running()
    assert store.job(job.id).state == "failed"
    assert "10 times" in (store.job(job.id).error or "")
    store.close()
