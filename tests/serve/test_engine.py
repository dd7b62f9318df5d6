"""The queue and its worker, with a painter that paints colours."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import update

from danqing.errors import DanqingError
from danqing.requests import ImageToImage, Outpaint, TextToImage, read
from danqing.serve.accept import Rules, sync_folder
from danqing.serve.engine import Engine, QueueFull
from danqing.serve.events import Event
from danqing.serve.store import Store
from danqing.serve.tables import JOBS, PICTURES
from danqing.serve.work import Comparison, Enlarge
from studio import STEPS, FakePainter, database, fake_studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[tuple[Engine, FakePainter]]:
    engine, painter = fake_studio(tmp_path / "data")
    yield engine, painter
    engine.close()


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Engine, FakePainter, threading.Semaphore]]:
    """A studio whose painter takes a step for each release of the semaphore."""
    gate = threading.Semaphore(0)
    engine, painter = fake_studio(tmp_path / "data", gate=gate)
    yield engine, painter, gate
    gate.release(100_000)
    engine.close()


def until(true: object, seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.002)


def test_a_job_is_painted_and_its_pictures_are_in_the_gallery(studio: tuple[Engine, FakePainter]) -> None:
    engine, _ = studio
    job = engine.submit(TextToImage(prompt="a cat", seed=7, batch_size=2, n_iter=2), origin="page")
    assert job.total == 4
    done = engine.wait(job.id, 10)
    assert done.state == "done"
    assert done.origin == "page"
    assert done.error is None
    pictures = engine.pictures(job.id)
    assert [picture.index for picture in pictures] == [0, 1, 2, 3]
    assert [picture.seed for picture in pictures] == [7, 8, 9, 10]
    assert pictures[0].prompt == "a cat"
    with Image.open(engine.path(pictures[2])) as image:
        assert image.getpixel((0, 0)) == (9, 0, 2)
        assert "Seed: 9" in image.info["parameters"]
        assert json.loads(image.info["danqing"])["request"]["seed"] == 9


def test_seeds_are_drawn_when_a_job_is_accepted(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    job = engine.submit(TextToImage(prompt="a cat"))
    assert isinstance(job.request["seed"], int)
    assert job.request["seed"] >= 0
    assert job.parts[0]["seed"] == job.request["seed"]
    engine.close()


def test_styles_and_modules_name_no_files_outside_the_model_folders(studio: tuple[Engine, FakePainter]) -> None:
    engine, _ = studio
    for style in ("/etc/x.csv:y", "x.JSON :y"):
        with pytest.raises(DanqingError, match="names a file"):
            engine.submit(TextToImage(prompt="a", styles=(style,)))
    for module in ("depth:/etc/passwd", "/etc/passwd", "../../x.pth"):
        with pytest.raises(DanqingError, match="model folders"):
            engine.submit(read(TextToImage, {"controls": [{"model": "m", "module": module}]}))
    for module in ("none", "canny", "tile_resample"):
        job = engine.submit(read(TextToImage, {"controls": [{"model": "m", "module": module}]}))
        assert engine.wait(job.id, 10).state == "done"


def test_choices_are_written_out_when_a_job_is_accepted(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    job = engine.submit(TextToImage(prompt="a {red|blue} cat", dynamic="all", seed=1))
    assert [part["prompt"] for part in job.parts] == ["a red cat", "a blue cat"]
    assert engine.wait(job.id, 10).state == "done"
    assert [picture.prompt for picture in engine.pictures(job.id)] == ["a red cat", "a blue cat"]
    engine.close()


def test_priorities_moves_and_cancelled_jobs(tmp_path: Path) -> None:
    engine, painter = fake_studio(tmp_path, start=False)
    a, b, c, d = (engine.submit(TextToImage(prompt=name, seed=1)).id for name in "abcd")
    engine.priority(c, 5)
    engine.move(d, before=a)
    assert [job.id for job in engine.jobs(("queued",))] == [c, d, a, b]
    engine.move(d)
    assert [job.id for job in engine.jobs(("queued",))] == [c, a, b, d]
    assert engine.cancel(a).state == "cancelled"
    assert engine.progress(d).text == "queued, 2 before it"
    engine.start()
    engine.wait(d, 10)
    assert [job for job, _ in painter.painted] == [c, b, d]
    engine.close()


def test_a_job_moved_before_another_takes_its_priority(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    a, b, c = (engine.submit(TextToImage(prompt=name, seed=1), priority=n).id for n, name in enumerate("abc"))
    engine.move(a, before=c)
    assert [job.id for job in engine.jobs(("queued",))] == [a, c, b]
    assert engine.job(a).priority == 2
    engine.close()


def test_interrupt_keeps_what_is_painted_and_goes_on_with_the_next(
    gated: tuple[Engine, FakePainter, threading.Semaphore],
) -> None:
    engine, _, gate = gated
    first = engine.submit(TextToImage(prompt="a", seed=1, n_iter=3))
    second = engine.submit(TextToImage(prompt="b", seed=2))
    gate.release(STEPS + 1)
    until(lambda: engine.progress().step == 1 and len(engine.pictures(first.id)) == 1)
    engine.interrupt()
    gate.release(100)
    assert engine.wait(first.id, 5).state == "interrupted"
    assert [picture.index for picture in engine.pictures(first.id)] == [0, 1]  # the second as it was by then
    assert engine.wait(second.id, 5).state == "done"


def test_what_is_paused_is_interrupted_without_going_on(
    gated: tuple[Engine, FakePainter, threading.Semaphore],
) -> None:
    engine, _, gate = gated
    job = engine.submit(TextToImage(prompt="a", seed=1, n_iter=3))
    gate.release(1)
    until(lambda: engine.progress().step == 1)
    engine.pause()
    engine.interrupt()
    gate.release(1)  # of the step that has begun
    assert engine.wait(job.id, 5).state == "interrupted"
    assert [picture.index for picture in engine.pictures(job.id)] == [0]


def test_a_job_that_waits_is_interrupted_too(gated: tuple[Engine, FakePainter, threading.Semaphore]) -> None:
    engine, painter, gate = gated
    running, waiting = (engine.submit(TextToImage(prompt=name, seed=1)).id for name in "ab")
    until(lambda: engine.job(running).state == "running")
    engine.interrupt(waiting)
    assert engine.job(waiting).state == "interrupted"
    gate.release(100)
    assert engine.wait(running, 5).state == "done"
    engine.interrupt(running)
    assert engine.job(running).state == "done"
    assert [job for job, _ in painter.painted] == [running]


def test_skip_leaves_one_batch_out(gated: tuple[Engine, FakePainter, threading.Semaphore]) -> None:
    engine, _, gate = gated
    job = engine.submit(TextToImage(prompt="a", seed=1, n_iter=3))
    gate.release(STEPS + 1)
    until(lambda: engine.progress().step == 1 and len(engine.pictures(job.id)) == 1)
    engine.skip()
    gate.release(100)
    done = engine.wait(job.id, 5)
    assert done.state == "done"
    assert done.skipped == (1,)
    assert [picture.index for picture in engine.pictures(job.id)] == [0, 2]


def test_pause_and_resume(gated: tuple[Engine, FakePainter, threading.Semaphore]) -> None:
    engine, painter, gate = gated
    job = engine.submit(TextToImage(prompt="a", seed=1))
    gate.release(1)
    until(lambda: engine.progress().step == 1)
    engine.pause()
    gate.release(100)
    assert engine.wait(job.id, 0.2).state == "running"
    assert engine.progress().text == "paused"
    assert painter.painted == []
    engine.resume()
    assert engine.wait(job.id, 5).state == "done"


def test_progress_counts_over_the_whole_job(gated: tuple[Engine, FakePainter, threading.Semaphore]) -> None:
    engine, _, gate = gated
    assert engine.progress().job is None
    job = engine.submit(TextToImage(prompt="a", seed=1, n_iter=2))
    gate.release(STEPS + 2)
    until(lambda: engine.progress().step == 2 and engine.progress().picture == 1)
    progress = engine.progress(job.id)
    assert progress.share == pytest.approx((1 + 2 / STEPS) / 2)
    assert progress.left is not None
    assert progress.preview is not None
    assert progress.preview.size == (8, 8)


def test_events_tell_of_a_job_from_the_queue_to_its_end(studio: tuple[Engine, FakePainter]) -> None:
    engine, _ = studio
    names = []
    with engine.listen() as events:
        job = engine.submit(TextToImage(prompt="a", seed=1))
        for event in events:
            assert event is not None
            names.append(event.name)
            if event.name == "ended":
                break
    assert event.job == job.id
    assert event.data["state"] == "done"
    assert [name for name in names if name != "progress"] == ["queued", "started", "picture", "ended"]
    assert names.count("progress") == STEPS


def test_a_job_that_fails_says_why_and_the_next_one_is_painted(studio: tuple[Engine, FakePainter]) -> None:
    engine, painter = studio
    painter.error = DanqingError("lora 'x' is unknown")
    failed = engine.wait(engine.submit(TextToImage(prompt="a", seed=1)).id, 5)
    assert (failed.state, failed.error) == ("failed", "lora 'x' is unknown")
    painter.error = ZeroDivisionError("oops")
    failed = engine.wait(engine.submit(TextToImage(prompt="a", seed=1)).id, 5)
    assert failed.state == "failed"
    assert "ZeroDivisionError" in (failed.error or "")
    painter.error = None
    assert engine.wait(engine.submit(TextToImage(prompt="a", seed=1)).id, 5).state == "done"


def test_a_closed_studio_goes_on_where_it_was(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    engine, painter = fake_studio(tmp_path, gate=gate)
    job = engine.submit(TextToImage(prompt="a", seed=1, n_iter=3))
    gate.release(STEPS + 1)
    until(lambda: engine.progress().step == 1 and len(engine.pictures(job.id)) == 1)
    gate.release(1)
    engine.close()
    again, painter = fake_studio(tmp_path)
    assert again.wait(job.id, 5).state == "done"
    assert [index for _, index in painter.painted] == [1, 2]
    assert [picture.index for picture in again.pictures(job.id)] == [0, 1, 2]
    again.close()


def test_after_a_crash_running_jobs_wait_again_and_files_without_a_row_go(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    job = engine.submit(TextToImage(prompt="a", seed=1))
    assert engine.store.start_next() is not None  # and then the process is killed
    engine.close()
    day = time.strftime("%Y-%m-%d", time.gmtime(job.created))
    folder = tmp_path / "pictures" / day
    folder.mkdir(parents=True)
    (folder / f"{job.id}-0000.png").write_bytes(b"half a picture")
    (folder / ".0123.part").write_bytes(b"half a picture")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / f"{'0' * 64}.png").write_bytes(b"of no job")
    again, painter = fake_studio(tmp_path, start=False)
    assert again.job(job.id).state == "queued"
    assert list(folder.iterdir()) == []
    assert list((tmp_path / "inputs").iterdir()) == []
    again.start()
    assert again.wait(job.id, 5).state == "done"
    assert len(painter.painted) == 1
    again.close()


def test_a_job_that_was_told_to_end_does_not_begin_anew_after_a_crash(tmp_path: Path) -> None:
    """A step that takes for ever is cancelled, and then the process is killed: it would come back with every start."""
    engine, _ = fake_studio(tmp_path, start=False)
    cancelled, interrupted, other, done = (engine.submit(TextToImage(prompt="a", seed=1)).id for _ in range(4))
    for _ in range(4):
        assert engine.store.start_next() is not None
    engine.cancel(cancelled)
    engine.cancel(interrupted)
    engine.interrupt(interrupted)
    engine.cancel(done)
    engine.store.record(done, state="done")
    engine.store.put_back([cancelled], alone=False)  # one that was told to end as the studio ended
    assert engine.job(interrupted).state == "running"
    engine.close()
    again, _ = fake_studio(tmp_path, start=False)
    states = [again.job(job).state for job in (cancelled, interrupted, other, done)]
    assert states == ["cancelled", "interrupted", "queued", "done"]
    assert again.job(cancelled).ended is not None
    again.close()


def test_one_folder_has_one_studio(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    with pytest.raises(DanqingError, match="another studio"):
        fake_studio(tmp_path)
    engine.close()


def test_too_many_waiting_jobs_are_refused(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False, rules=Rules(waiting=2))
    engine.submit(TextToImage(prompt="a"))
    engine.submit(TextToImage(prompt="a"))
    with pytest.raises(QueueFull, match="2 jobs wait already"):
        engine.submit(TextToImage(prompt="a"))
    engine.close()


def test_pictures_of_a_request_become_files(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    image = Image.new("RGB", (20, 10), "red")
    job = engine.submit(ImageToImage(image=image, prompt="a", seed=1))
    source = job.request["image"]
    assert source.startswith("inputs/")
    with Image.open(tmp_path / source) as kept:
        assert kept.size == (20, 10)
    assert engine.wait(job.id, 5).state == "done"
    first = engine.pictures(job.id)[0]
    again = engine.submit(ImageToImage(image=f"picture:{first.id}", prompt="a", seed=1))
    assert again.request["image"] == first.path
    assert engine.wait(again.id, 5).state == "done"
    more = engine.submit(ImageToImage(image=source, prompt="a", seed=1))
    assert engine.wait(more.id, 5).state == "done"
    engine.close()


def test_what_is_deleted_can_come_back_until_it_is_purged(studio: tuple[Engine, FakePainter]) -> None:
    engine, _ = studio
    job = engine.submit(TextToImage(prompt="a", seed=1))
    engine.wait(job.id, 5)
    picture = engine.pictures(job.id)[0]
    engine.store.set_picture(picture.id, deleted=True)
    assert engine.purge(time.time() - 3600) == 0
    assert engine.path(picture).exists()
    assert engine.purge(time.time() + 1) == 1
    assert not engine.path(picture).exists()
    assert engine.pictures(job.id) == ()


def test_old_jobs_are_forgotten_where_that_is_asked_for(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    source = Image.new("RGB", (8, 8))
    jobs = [engine.submit(ImageToImage(image=source, prompt=name, seed=1)).id for name in "ab"]
    assert all(engine.wait(job, 10).state == "done" for job in jobs)
    engine._purge()  # nothing is asked for
    (kept,) = (tmp_path / "inputs").iterdir()
    with engine.store.engine.begin() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == jobs[0]).values(ended=time.time() - 9 * 86400))
    os.utime(kept, (1, 1))
    engine._keep_days = 7
    engine._purge()
    assert [job.id for job in engine.jobs()] == jobs[1:]
    assert kept.exists()
    engine._keep_days = -1
    engine._purge()
    assert engine.jobs() == ()
    assert not kept.exists()
    assert [len(engine.pictures(job)) for job in jobs] == [1, 1]
    engine.close()


def test_the_bin_is_emptied_day_by_day(studio: tuple[Engine, FakePainter]) -> None:
    engine, _ = studio
    old, new = (engine.wait(engine.submit(TextToImage(prompt=name, seed=1)).id, 5).id for name in "ab")
    for job, days in ((old, 31), (new, 29)):
        (picture,) = engine.pictures(job)
        engine.store.set_picture(picture.id, deleted=True)
        with engine.store.engine.begin() as connection:
            there = PICTURES.c.id == picture.id
            connection.execute(update(PICTURES).where(there).values(deleted=time.time() - days * 86400))
    engine._purged -= 2 * 86400  # as if the last time were two days ago
    until(lambda: engine.pictures(old) == ())
    assert len(engine.pictures(new)) == 1


def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(DanqingError, match="the database cannot be opened"):
        Store(f"sqlite:///{tmp_path / 'x.db'}")


def test_jobs_are_listed_as_they_are_painted_and_then_the_latest_first(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    over = [engine.submit(TextToImage(prompt=name, seed=1)).id for name in "ab"]
    for job in over:
        engine.wait(job, 5)
    engine.pause()
    low, high = (engine.submit(TextToImage(prompt="c", seed=1), priority=n).id for n in (0, 5))
    listed = [job.id for job in engine.jobs()]
    assert set(listed[:2]) == {low, high}
    assert listed[2:] == over[::-1]
    assert [job.id for job in engine.jobs(("done",))] == over[::-1]
    engine.close()


def test_a_job_is_cancelled_whenever_it_is_found_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the database and the painter nothing is lost: an order that comes there waits for it."""
    engine, painter = fake_studio(tmp_path, start=False)
    taken, go = threading.Event(), threading.Event()
    start_next = engine.store.start_next

    def slowly() -> object:
        job = start_next()
        if job is not None:
            taken.set()
            go.wait(5)
        return job

    monkeypatch.setattr(engine.store, "start_next", slowly)
    job = engine.submit(TextToImage(prompt="a", seed=1, n_iter=50))
    engine.start()
    assert taken.wait(5)
    cancelling = threading.Thread(target=engine.cancel, args=(job.id,))
    cancelling.start()
    time.sleep(0.05)
    go.set()
    cancelling.join(5)
    assert engine.wait(job.id, 5).state == "cancelled"
    assert len(painter.painted) < 50
    engine.close()


def test_an_order_that_comes_when_all_is_done_changes_nothing(
    gated: tuple[Engine, FakePainter, threading.Semaphore], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, gate = gated
    told: list[Event] = []
    record = engine.store.record

    def late(identity: str, *args: object, **more: object) -> object:
        stored = record(identity, *args, **more)  # type: ignore[arg-type]
        if more.get("state") == "done":
            engine.interrupt()
        return stored

    monkeypatch.setattr(engine.store, "record", late)
    with engine.listen() as events:
        job = engine.submit(TextToImage(prompt="a", seed=1))
        gate.release(100)
        for event in events:
            assert event is not None
            told.append(event)
            if event.name == "ended":
                break
    assert engine.job(job.id).state == told[-1].data["state"] == "done"


def test_only_what_waits_has_a_place_in_the_queue(gated: tuple[Engine, FakePainter, threading.Semaphore]) -> None:
    engine, _, _ = gated
    running, one, other = (engine.submit(TextToImage(prompt=name, seed=1)).id for name in "abc")
    until(lambda: engine.job(running).state == "running")
    with pytest.raises(DanqingError, match="is running"):
        engine.move(running, before=other)
    with pytest.raises(DanqingError, match="is running"):
        engine.move(other, before=running)
    assert engine.move(one, before=one).place == engine.job(one).place
    engine.move(other, before=one)
    assert [job.id for job in engine.jobs(("queued",))] == [other, one]
    assert engine.progress(one).text == "queued, 2 before it"


def test_nobody_asks_for_a_picture_that_no_machine_holds(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False, rules=Rules(painted=1 << 20, enlarged=1 << 20))
    source = Image.new("L", (1000, 500))
    asked = (
        ("scale", lambda: Enlarge(images=(source,), scale=3)),
        ("scale", lambda: Enlarge(images=(source,), width=3000)),
        ("width", lambda: TextToImage(prompt="a", width=4096, height=4096)),
        ("width", lambda: TextToImage(prompt="a", width=512, height=512, enable_hr=True, hr_scale=4)),
        ("width", lambda: read(ImageToImage, {"prompt": "a", "image": source, "sd_upscale": {"scale": 4}})),
        ("width", lambda: read(Outpaint, {"prompt": "a", "image": source, "up": 4000})),
    )
    for field, make in asked:
        with pytest.raises(DanqingError, match=f"{field}: a picture of"):
            engine.submit(make())
    assert engine.submit(Enlarge(images=(source,), scale=1.4)).total == 1
    assert engine.submit(read(ImageToImage, {"prompt": "a", "image": source})).total == 1
    engine.close()


def test_a_plot_is_one_job_whose_last_picture_is_the_sheet(tmp_path: Path) -> None:
    engine, painter = fake_studio(tmp_path)
    base = TextToImage(prompt="an apple", width=64, height=64)
    job = engine.submit(Comparison(request=base, x="Steps=3,4,5", y="CFG Scale=2,7"))
    assert (job.kind, job.total, job.request["x"]) == ("plot", 7, "Steps=3,4,5")
    assert engine.wait(job.id, 10).state == "done"
    *cells, sheet = engine.pictures(job.id)
    assert [picture.kind for picture in cells] == ["txt2img"] * 6
    assert len({picture.seed for picture in cells}) == 1
    assert sheet.kind == "plot"
    assert (sheet.prompt, sheet.seed) == ("an apple", cells[0].seed)
    assert "Script: X/Y/Z plot" in sheet.infotext
    assert sheet.width >= 3 * 64
    assert sheet.height >= 2 * 64
    # the sheet alone is missing: it is made of what is there
    path = engine.path(sheet)
    engine.store.forget(sheet.id)
    path.unlink()
    engine.store.record(job.id, state="queued")
    again = engine.wait(job.id, 10)
    assert again.state == "done"
    assert len(painter.painted) == 6
    assert path.is_file()
    engine.close()


def test_plots_of_prompts_and_matrices(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path)
    base = TextToImage(prompt="a | b", seed=1)
    job = engine.wait(engine.submit(Comparison(request=base, matrix="prompt", legend=False)).id, 10)
    assert [picture.prompt for picture in engine.pictures(job.id)] == ["a", "a, b", "a"]
    lines = ("a cat", "--prompt 'a dog' --steps 3")
    plot = Comparison(request=TextToImage(prompt="", seed=1), prompts=lines, iterate_seeds=True)
    job = engine.wait(engine.submit(plot).id, 10)
    assert [(p.prompt, p.seed) for p in engine.pictures(job.id)][:2] == [("a cat", 1), ("a dog", 2)]
    engine.close()


def test_a_plot_names_no_files_outside_the_model_folders(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    base = TextToImage(prompt="a PLACE", seed=1)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"secret")
    for x in (f"Checkpoint name={outside}", f"checkpoint={outside}", f"VAE={outside}", "vae=../../x.safetensors"):
        with pytest.raises(DanqingError, match="model folders"):
            engine.submit(Comparison(request=base, x=x))
    with pytest.raises(DanqingError, match="model folders"):
        engine.submit(Comparison(request=base, x="Prompt S/R=PLACE,<lora:/etc/passwd:1>"))
    with pytest.raises(DanqingError, match="names a file"):
        engine.submit(Comparison(request=base, x="Styles=/etc/x.csv:y"))
    with pytest.raises(DanqingError, match="model folders"):
        engine.submit(Comparison(request=base, prompts=(f"--sd_model {outside}",)))
    with pytest.raises(DanqingError, match="fewer than"):
        engine.submit(Comparison(request=base, x="Seed=1-1000"))
    with pytest.raises(DanqingError, match="axes"):
        Comparison(request=base)
    engine.close()


def test_what_is_enlarged_is_found_by_its_words(tmp_path: Path) -> None:
    engine, painter = fake_studio(tmp_path)
    job = engine.wait(engine.submit(TextToImage(prompt="a heron", seed=5)).id, 5)
    (picture,) = engine.pictures(job.id)
    text = f"{picture.infotext}, Postprocess upscale by: 2"
    monkey = painter._finished

    def enlarged(*args: object) -> object:
        return replace(monkey(*args), infotext=text)  # type: ignore[arg-type]

    painter._finished = enlarged  # type: ignore[method-assign,assignment]
    large = engine.wait(engine.submit(Enlarge(images=(f"picture:{picture.id}",))).id, 5)
    (found,) = engine.pictures(large.id)
    assert (found.prompt, found.seed, found.model) == ("a heron", 5, picture.model)
    engine.close()


def test_a_folder_that_cannot_be_opened_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError("folders are not opened here")

    monkeypatch.setattr("danqing.serve.accept.os.open", refused)
    sync_folder(tmp_path)


@pytest.mark.skipif("DANQING_TEST_DATABASE" not in os.environ, reason="needs PostgreSQL")
def test_one_database_has_one_studio(tmp_path: Path) -> None:
    url = database(tmp_path / "one")
    engine, _ = fake_studio(tmp_path / "one", url=url)
    with pytest.raises(DanqingError, match="another studio"):
        fake_studio(tmp_path / "other", url=url)
    engine.close()
    again, _ = fake_studio(tmp_path / "other", url=url)
    again.close()
