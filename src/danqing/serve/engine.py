"""The queue's one worker: it takes jobs in turn, paints them, and puts the pictures into the gallery.

What makes it lose nothing: a job is in the database before `submit` returns; a picture's file is written and renamed
before its row, and its row and its job's state are one commit; a picture that has a row is not painted again.

A second thread writes, one batch behind at most, while the next batch or job is painted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from PIL import Image
from pydantic import BaseModel

from danqing.errors import DanqingError
from danqing.metadata.files import save
from danqing.metadata.infotext import parse
from danqing.requests import ResolvedRequest
from danqing.serve.accept import Rules, accept, sync_folder
from danqing.serve.cache import ModelCache
from danqing.serve.events import Event, Happening, Listeners
from danqing.serve.store import Job, NewPicture, State, Store, Stored
from danqing.serve.work import Finished, Paint, Sharing, Tick, painted_kind, picture_path

log = logging.getLogger("danqing.serve")

Command = Literal["interrupt", "skip", "cancel"]
Order = Literal["interrupt", "skip", "cancel", "stop"]
"""What a person, or the end of the studio, makes of a job that is painted."""
_ENDS: Mapping[Order, State] = {
    "stop": "queued",
    "cancel": "cancelled",
    "interrupt": "interrupted",
    "skip": "done",
}
_BIN_DAYS = 30
_ARRIVING = 3600.0
"""Seconds for which a request's pictures are kept whether or not a job has them."""
_LOOK = 5.0
"""Seconds after which a job that is waited for is looked at, whether or not anything was told of it."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a job is."""

    job: str | None = None
    """None where nothing is painted."""
    share: float = 0.0
    """Of the whole job, 0 to 1."""
    step: int = 0
    """Of the present batch."""
    steps: int = 0
    picture: int = 0
    """Index of the first picture of the present batch."""
    pictures: int = 0
    """Of the whole job."""
    left: float | None = None
    """Seconds, as far as can be told."""
    preview: Image.Image | None = None
    text: str = ""
    """`queued, 2 before it`, `painting`, `paused`, or the job's state."""


class Engine:
    """One studio: its store, its data folder, its models and the thread that paints.

    Its methods may be called from any thread. `start` begins painting, `close` ends it after the present step.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        models: ModelCache,
        paint: Paint | None = None,
        *,
        rules: Rules | None = None,
        batch: int = 1,
        sharing: Sharing | None = None,
        keep_days: float | None = None,
    ) -> None:
        """`paint` and `sharing` are `serve.painter`'s unless given; `rules` say what requests may have (`serve.accept`).

        `batch` jobs of one picture each, that are alike but for prompt and seed, are painted in one run. Jobs that have
        been over for `keep_days` are forgotten, and the pictures that came with them; their own stay. None keeps them.

        Raises DanqingError where another studio has the folder.
        """
        self.store, self.folder, self.models = store, folder.absolute(), models
        self.rules = rules or Rules()
        self._lock = _locked(self.folder)
        try:
            store.hold()
        except DanqingError:
            self._lock.release()
            raise
        self._paint, self._sharing, self._batch, self._keep_days = paint, sharing, batch, keep_days
        self._bell = threading.Condition()
        self._thread: threading.Thread | None = None
        self._order: Order | None = None
        self._current: Job | None = None
        self._riders: dict[str, Job] = {}
        self._left: dict[str, Command] = {}
        self._tick: Tick | None = None
        self._have = 0
        self._ended = False
        self._writer = ThreadPoolExecutor(1, "danqing-writer")
        self._writing: Future[None] | None = None
        self._began, self._began_share = 0.0, 0.0
        self._paused = self._closing = False
        self._listeners = Listeners()
        self._totals = {"pictures": 0.0, "steps": 0.0, "failures": 0.0, "painting_seconds": 0.0}
        self._recover()

    # life

    def start(self) -> None:
        """Begin to paint what waits."""
        self._thread = threading.Thread(target=self._work, name="danqing-painter", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 30.0) -> None:
        """Stop after the present step; what is not done waits for the next start. The folder is free afterwards.

        A step that takes longer than `timeout` seconds is left behind, and keeps the folder until the process ends.
        """
        with self._bell:
            self._closing = True
            if self._current is not None:
                self._order = "stop"
            self._bell.notify_all()
        self._listeners.close()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():  # a very long step: the folder is this process's until it ends
                return
        self._writer.shutdown()
        self.store.close()
        self._lock.release()

    @property
    def alive(self) -> bool:
        """Whether the painter's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    # jobs

    def submit(self, request: BaseModel, *, origin: str = "api", priority: int = 0) -> Job:
        """Accept a `TextToImage`, `ImageToImage`, `Inpaint`, `Outpaint`, `Enlarge` or `Comparison`.

        When this returns, it is on disk.

        Seeds are drawn and styles and wildcards written out now, so that it paints the same whenever it runs. Its
        pictures are data URLs, `picture:ID` of the gallery, or `inputs/...` of an earlier job. Raises DanqingError for
        a request that is wrong, and `QueueFull` (a DanqingError) where too many wait.
        """
        waiting = self.store.waiting()
        if waiting >= self.rules.waiting:
            raise QueueFull(f"queue: {waiting} jobs wait already; try again when some are done")
        taken = accept(request, self.rules, self.folder, self._gallery_file, self.models)
        job = self.store.add_job(
            taken.kind,
            taken.request,
            taken.parts,
            taken.total,
            origin=origin,
            priority=priority,
            inputs=taken.inputs,
            share=taken.share,
        )
        self._emit("queued", job.id, kind=job.kind, total=job.total, origin=origin)
        with self._bell:
            self._bell.notify_all()
        return job

    def job(self, identity: str) -> Job:
        """Raises NotFound (a DanqingError) where there is none."""
        return self.store.job(identity)

    def jobs(self, states: Sequence[State] | None = None, limit: int = 100, offset: int = 0) -> tuple[Job, ...]:
        """Those that wait and run in the order of painting, then those that are over, the latest first."""
        return self.store.jobs(states, limit, offset)

    def pictures(self, identity: str) -> tuple[Stored, ...]:
        """What a job has painted so far, by index."""
        return self.store.pictures(identity)

    def path(self, picture: Stored) -> Path:
        """A picture's file. Raises DanqingError where it lies outside the data folder."""
        path = (self.folder / picture.path).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise DanqingError(f"{picture.path}: lies outside the data folder")
        return path

    def wait(self, identity: str, timeout: float | None = None) -> Job:
        """The job once it is over, or as it is after `timeout` seconds."""
        ends = None if timeout is None else time.monotonic() + timeout
        with self._listeners.ending(identity) as over:
            while not (job := self.store.job(identity)).over and not self._closing:
                left = None if ends is None else ends - time.monotonic()
                if left is not None and left <= 0:
                    break
                over.wait(_LOOK if left is None else min(left, _LOOK))
        return job

    def cancel(self, identity: str) -> Job:
        """End a job that waits or is painted; pictures that are done stay in the gallery."""
        job = self.store.end(identity, "cancelled")
        if job.state == "cancelled":
            self._emit("ended", job.id, state=job.state)
        self._command("cancel", identity)
        return job

    def interrupt(self, identity: str | None = None) -> None:
        """Stop the job that is painted, or that one, which may wait; its pictures stay, and the next one begins."""
        with self._bell:
            if identity is None and self._current is not None:
                identity = self._current.id
        if identity is not None:
            before = self.store.job(identity).state
            job = self.store.end(identity, "interrupted")
            if before != job.state == "interrupted":
                self._emit("ended", job.id, state=job.state)
        self._command("interrupt", identity)

    def skip(self, identity: str | None = None) -> None:
        """Leave out the batch that is painted, and go on with the job's next."""
        self._command("skip", identity)

    def pause(self) -> None:
        """Stop after the present step until `resume`."""
        with self._bell:
            self._paused = True
        self._emit("paused", "")

    def resume(self) -> None:
        """Go on."""
        with self._bell:
            self._paused = False
            self._bell.notify_all()
        self._emit("resumed", "")

    @property
    def paused(self) -> bool:
        """Whether it was told to pause."""
        return self._paused

    def move(self, identity: str, before: str | None = None) -> Job:
        """Put a waiting job right before another, or at the end of its priority."""
        return self._changed(self.store.move(identity, before))

    def priority(self, identity: str, priority: int) -> Job:
        """The higher, the sooner."""
        return self._changed(self.store.set_priority(identity, priority))

    def progress(self, identity: str | None = None, *, preview: bool = True) -> Progress:
        """How far that job is, or the one that is painted; without `preview` no picture is made."""
        with self._bell:
            current, tick, have = self._current, self._tick, self._have
            began, began_share, paused = self._began, self._began_share, self._paused
            current = self._riders.get(identity or "", current)
        if identity is not None and (current is None or current.id != identity):
            return self._not_painted(self.store.job(identity))
        if current is None:
            return Progress(text="paused" if paused else "")
        share = _share(current, tick, have)
        left = None
        if share > began_share:
            left = (time.monotonic() - began) / (share - began_share) * (1 - share)
        return Progress(
            job=current.id,
            share=share,
            step=tick.step if tick else 0,
            steps=tick.steps if tick else 0,
            picture=tick.first if tick else 0,
            pictures=current.total,
            left=left,
            preview=tick.preview() if preview and tick is not None and tick.preview is not None else None,
            text="paused" if paused else "painting",
        )

    def totals(self) -> dict[str, float]:
        """What was done since the start: `pictures`, `steps`, `failures`, `painting_seconds`."""
        with self._bell:
            return dict(self._totals)

    # events

    def listen(self, identity: str | None = None) -> AbstractContextManager[Iterator[Event | None]]:
        """`with engine.listen() as events`: what happens from now on, to one job or all; None after a quiet second."""
        return self._listeners.listen(identity)

    def alisten(self, identity: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event | None]]:
        """The same for asyncio, `async with`; it ends with the engine."""
        return self._listeners.alisten(identity)

    def aending(self, identity: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """An event of asyncio that is set when that job is over, or the studio closes."""
        return self._listeners.aending(identity)

    # the worker

    def _work(self) -> None:
        while True:
            with self._bell:
                while self._paused and not self._closing:
                    self._bell.wait(1.0)
                if self._closing:
                    return
            try:
                if self._writing is not None and self._writing.done():
                    self._written()
                if time.monotonic() - self._purged > 86400:
                    self._purge()
                self._next()
            except Exception:
                # the database, say, on a full disk: what was running waits again, and the thread lives on
                log.exception("the queue could not be worked on")
                with suppress(Exception):
                    self._written()
                with self._bell:
                    self._current = self._tick = self._order = None
                    self._riders = {}
                    self._bell.wait(5.0)
                with suppress(Exception):
                    self.store.requeue_running()

    def _next(self) -> None:
        with self._bell:  # whoever finds a job running finds it here, and can stop it
            job = self.store.start_next()
            if job is None:
                if not self._closing:
                    self._bell.wait(1.0)
                return
            alike = self.store.start_alike(job, self._batch - 1) if self._batch > 1 else ()
            self._current, self._tick, self._order = job, None, "stop" if self._closing else None
            self._riders, self._left = {each.id: each for each in alike}, {}
            self._have, self._began, self._began_share, self._ended = 0, time.monotonic(), 0.0, False
        if alike:
            self._together((job, *alike))
        else:
            self._one(job)

    def _together(self, jobs: Sequence[Job]) -> None:
        """Paint jobs of one picture each in one run. Where that does not go, each waits again, to be painted by itself."""
        for job in jobs:
            self._emit("started", job.id)
        try:
            self._painted_together(jobs)
        except _Unrecorded:
            raise
        except Exception as problem:
            with suppress(Exception):
                self._written()
            # whose fault it is shows when each is painted alone
            log.info("jobs are painted one by one after all: %s", type(problem).__name__)
            self.store.put_back([job.id for job in jobs], alone=True)
        with self._bell:
            self._totals["painting_seconds"] += time.monotonic() - self._began
            self._current = self._tick = self._order = None
            self._riders, self._left = {}, {}
            self._bell.notify_all()

    def _painted_together(self, jobs: Sequence[Job]) -> None:
        notes: list[list[str]] = [list(job.notes) for job in jobs]
        waiting = {job.id: number for number, job in enumerate(jobs)}

        def note(number: int, line: str) -> None:
            if line not in notes[number]:
                notes[number].append(line)
                self._emit("note", jobs[number].id, text=line)

        if self._sharing is None:
            from danqing.serve.painter import sharing  # torch comes with it

            self._sharing = sharing(self.models, self.folder, self._batch)
        ticks = self._sharing.paint(jobs, note)
        try:
            for tick in ticks:
                with self._bell:
                    self._tick = None if tick.finished else tick
                    self._totals["steps"] += 1
                    self._totals["pictures"] += len(tick.finished)
                for identity, number in waiting.items():
                    share, step, steps = tick.step / max(tick.steps, 1), tick.step, tick.steps
                    self._emit("progress", identity, share=share, step=step, steps=steps, picture=0, pictures=1)
                    if tick.finished:
                        self._keep(jobs[number], tick.finished[number : number + 1], notes[number], "done")
                if tick.finished or self._ordered_together(jobs, waiting, notes, tick):
                    return
        finally:
            close = getattr(ticks, "close", None)
            if close is not None:
                close()

    def _ordered_together(
        self, jobs: Sequence[Job], waiting: dict[str, int], notes: Sequence[Sequence[str]], tick: Tick
    ) -> bool:
        """Let those go that were ordered to, what is interrupted as it is; returns whether nobody waits any more."""
        with self._bell:
            while self._paused and self._order is None and not self._left:
                self._bell.wait(1.0)
            order, self._order = self._order, None
            left, self._left = dict(self._left), {}
            if order is not None and order != "stop":
                left[next(iter(waiting))] = order
            # of those that stay the first is the one that is painted
            staying = [] if order == "stop" else [jobs[waiting[each]] for each in waiting if each not in left]
            if staying:
                self._current, self._riders = staying[0], {job.id: job for job in staying[1:]}
        if order == "stop":
            self.store.put_back(list(waiting), alone=False)
            for identity in waiting:
                self._emit("queued", identity)
            return True
        for identity in left.keys() & waiting.keys():
            number = waiting.pop(identity)
            if tick.left is not None:
                tick.left(number)
            self._leaves(jobs[number], number, left[identity], notes[number], tick)
        return not waiting

    def _leaves(self, job: Job, number: int, command: Command, notes: Sequence[str], tick: Tick) -> None:
        """End one job of a shared run, whatever comes of that, so that the others are painted on."""
        try:
            if command == "interrupt" and tick.unfinished is not None:
                self._keep(job, (tick.unfinished(number),), notes, "interrupted")
                return
        except _Unrecorded:
            raise
        except Exception as problem:
            self._over(job, notes, "failed", _said(problem, job))
            return
        self.store.record(job.id, notes=notes, skipped=(0,) if command == "skip" else None, state=_ENDS[command])
        self._told(job, _ENDS[command], None)

    def _one(self, job: Job) -> None:
        have = {picture.index for picture in self.store.pictures(job.id)}
        with self._bell:
            self._have = len(have) + len(job.skipped)
            self._began_share = _share(job, None, self._have)
        self._emit("started", job.id)
        notes = list(job.notes)
        try:
            state, error = self._painted(job, have, notes)
            if not self._ended:
                self._written()
        except _Unrecorded:
            raise
        except Exception as problem:
            state, error = "failed", _said(problem, job)
            with suppress(Exception):
                self._written()
        if not self._ended:  # else with its last pictures, whatever came after
            self._over(job, notes, state, error)
        with self._bell:
            self._totals["painting_seconds"] += time.monotonic() - self._began
            self._current = self._tick = self._order = None
            self._bell.notify_all()

    def _over(self, job: Job, notes: Sequence[str], state: State, error: str | None) -> None:
        """The end of a job, or of this attempt at it."""
        self.store.record(job.id, notes=notes, state=state, error=error)
        self._told(job, state, error)

    def _told(self, job: Job, state: State, error: str | None) -> None:
        if state != "queued":
            self._forget_steps(job.id)
        with self._bell:
            self._totals["failures"] += state == "failed"
        self._emit("queued" if state == "queued" else "ended", job.id, state=state, error=error)

    def _painted(self, job: Job, have: set[int], notes: list[str]) -> tuple[State, str | None]:
        """Paint what is missing of a job beside the pictures that it has; returns the state that it ends in."""
        skipped = set(job.skipped)
        have = have | skipped

        def note(line: str) -> None:
            if line not in notes:
                notes.append(line)
                self._emit("note", job.id, text=line)

        while True:
            if len(have) >= job.total:
                return "done", None
            ticks = self._painter()(job, frozenset(have), note)
            order: Order | None = None
            kept = False
            try:
                for tick in ticks:
                    have |= {each.index for each in tick.finished}
                    order = self._ticked(job, tick, have, notes, kept) or order
                    if order == "interrupt" and tick.hurry is not None and not tick.finished:
                        if not kept:  # the batch comes as it is by now
                            tick.hurry()
                        kept = True
                    elif order is not None:
                        break
            finally:
                close = getattr(ticks, "close", None)
                if close is not None:
                    close()
            if order is None:
                return "done", None
            if order != "skip":
                return _ENDS[order], None
            skipped |= set(range(tick.first, tick.first + tick.count)) - have
            have |= skipped
            self.store.record(job.id, skipped=sorted(skipped))

    def _painter(self) -> Paint:
        if self._paint is None:
            from danqing.serve.painter import painter  # torch comes with it

            self._paint = painter(self.models, self.folder)
        return self._paint

    def _ticked(self, job: Job, tick: Tick, have: set[int], notes: Sequence[str], hurried: bool) -> Order | None:
        """Keep what is finished, tell of it, wait where it is paused; returns an order to stop."""
        if tick.finished:
            ended: State | None = "interrupted" if hurried else "done" if len(have) >= job.total else None
            self._keep(job, tick.finished, notes, ended, tick.kept)
            self._ended = ended is not None
        with self._bell:
            self._tick = None if tick.finished else tick
            self._have = len(have)
            self._totals["steps"] += 1
            self._totals["pictures"] += len(tick.finished)
        progress = self.progress(preview=False)
        shown = {name: getattr(progress, name) for name in ("share", "step", "steps", "picture", "pictures", "left")}
        self._emit("progress", job.id, **shown)
        with self._bell:
            while self._paused and self._order is None and not hurried:
                self._bell.wait(1.0)
            order, self._order = self._order, None
            return order

    def _keep(
        self,
        job: Job,
        finished: Sequence[Finished],
        notes: Sequence[str],
        state: State | None,
        kept: Callable[[], None] | None = None,
    ) -> None:
        """Hand pictures to the second thread, which ends the job with them where there is a `state`.

        Raises what became of the job's earlier pictures, if they could not be written.
        """
        self._written()
        self._writing = self._writer.submit(self._in_gallery, job, finished, tuple(notes), state, kept)

    def _written(self) -> None:
        """Wait until what was handed over is in the gallery."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _in_gallery(
        self,
        job: Job,
        finished: Sequence[Finished],
        notes: Sequence[str],
        state: State | None,
        kept: Callable[[], None] | None,
    ) -> None:
        """The second thread's work. A job's last pictures are its own affair, and not that of the next job."""
        try:
            files = [self._write(job, each) for each in finished]
            stored = self.store.record(job.id, files, notes=notes, state=state)
        except Exception as problem:
            if state is None:
                raise
            try:
                self._over(job, notes, "failed", _said(problem, job))
            except Exception as worse:
                raise _Unrecorded from worse
            return
        if kept is not None:
            kept()
        for picture in stored:
            self._emit("picture", job.id, id=picture.id, index=picture.index)
        if state is not None:
            self._told(job, state, None)

    def _write(self, job: Job, finished: Finished) -> NewPicture:
        """Write a picture's file, safely on disk before its row; the same file whenever it is painted again."""
        path = picture_path(job, finished.index)
        record = finished.record
        save(
            finished.image,
            self.folder / path,
            finished.infotext or None,
            record.model_dump_json(exclude_none=True) if record else None,
        )
        _sync(self.folder / path)
        return _described(job.kind if record is None else painted_kind(job), finished, path, record)

    def _forget_steps(self, job: str) -> None:
        """What was kept to go on with a job's pictures after a crash (`serve.memo`)."""
        for file in (self.folder / "resume").glob(f"{job}.*"):
            file.unlink(missing_ok=True)

    def _command(self, order: Command, identity: str | None) -> None:
        with self._bell:
            if self._current is None or self._order == "stop":
                return
            if identity in (None, self._current.id):
                self._order = order
            elif identity in self._riders:
                self._left[identity] = order
            self._bell.notify_all()

    def _changed(self, job: Job) -> Job:
        self._emit("changed", job.id, priority=job.priority)
        return job

    def _not_painted(self, job: Job) -> Progress:
        have = len(self.store.pictures(job.id)) + len(job.skipped)
        text: str = job.state
        if job.state == "queued":
            text = f"queued, {self.store.before(job)} before it"
        elif job.state == "running":  # it is written
            text = "painting"
        share = _share(job, None, have) if job.state == "queued" else 1.0
        return Progress(job=job.id, share=share, pictures=job.total, picture=have, text=text)

    def _emit(self, name: Happening, job: str, **data: Any) -> None:
        level = logging.DEBUG if name == "progress" else logging.INFO
        log.log(level, "%s %s", name, job, extra={"event": name, "job": job, "data": data})
        self._listeners.tell(Event(name, job, data))

    def _gallery_file(self, identity: str) -> Path:
        return self.path(self.store.picture(identity))

    # start

    def _recover(self) -> None:
        """After a crash: what ran waits again; files without a row, half-written ones and unused inputs go."""
        for job in self.store.requeue_running():
            known = {picture.path for picture in self.store.pictures(job.id)}
            for file in (self.folder / picture_path(job, 0)).parent.glob(f"{job.id}-*.png"):
                if str(file.relative_to(self.folder)) not in known:
                    file.unlink(missing_ok=True)
            log.info("job %s was running when the server ended; it goes on", job.id)
        waiting = {job.id for job in self.store.jobs(("queued",), limit=100_000)}
        for file in (self.folder / "resume").glob("*"):
            if file.name.partition(".")[0] not in waiting:
                file.unlink(missing_ok=True)
        for file in (self.folder / "pictures").glob("*/.*.part"):
            file.unlink(missing_ok=True)
        self._purge()
        self._purge_inputs(time.time())

    def _purge(self) -> None:
        """Empty the bin of what is in it for long, and forget old jobs where that is asked for."""
        self._purged = time.monotonic()
        self.purge(time.time() - _BIN_DAYS * 86400)
        if self._keep_days is not None and self.store.forget_jobs(time.time() - self._keep_days * 86400):
            self._purge_inputs(time.time() - _ARRIVING)

    def _purge_inputs(self, before: float) -> None:
        """Remove the pictures of requests that no job has. Younger ones may be of a job that is being accepted."""
        used = self.store.inputs()
        for file in (self.folder / "inputs").glob("*"):
            if file.name not in used and file.stat().st_mtime < before:
                file.unlink(missing_ok=True)

    def purge(self, before: float) -> int:
        """Remove for good what was deleted before that time; returns how many pictures."""
        count = 0
        while gone := self.store.bin(before, 500):
            for picture in gone:
                self.path(picture).unlink(missing_ok=True)
                self.store.forget(picture.id)
            count += len(gone)
        return count


class QueueFull(DanqingError):
    """Too many jobs wait."""


class _Unrecorded(Exception):
    """A job's last pictures could not be written, and not even that could be: the database does not work."""


def _said(problem: Exception, job: Job) -> str:
    """What a job's error says."""
    if isinstance(problem, DanqingError):
        return str(problem)
    if isinstance(problem, MemoryError):
        return "memory: there is too little of it; ask for smaller or fewer pictures"
    log.error("job %s failed", job.id, exc_info=problem)
    return f"an error of Danqing's own: {type(problem).__name__}: {problem}"


def _share(job: Job, tick: Tick | None, have: int) -> float:
    done = have + (tick.count * tick.step / max(tick.steps, 1) if tick is not None and not tick.finished else 0)
    return min(done / max(job.total, 1), 1.0)


def _described(kind: str, finished: Finished, path: str, record: ResolvedRequest | None) -> NewPicture:
    """What the gallery is searched by."""
    new = NewPicture(
        index=finished.index,
        path=path,
        width=finished.image.width,
        height=finished.image.height,
        infotext=finished.infotext,
        kind=kind,
    )
    if record is None:  # a picture that was enlarged, or a plot's sheet: by what it says itself
        prompt, negative_prompt, pairs = parse(finished.infotext)
        if not pairs:
            return new
        seed = pairs.get("Seed", "")
        return replace(
            new,
            prompt=prompt,
            negative_prompt=negative_prompt,
            model=pairs.get("Model", ""),
            sampler=pairs.get("Sampler", ""),
            seed=int(seed) if seed.isdecimal() and len(seed) <= 20 else None,
        )
    request = record.request
    return replace(
        new,
        record=record.model_dump_json(exclude_none=True),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model=record.checkpoint.name,
        sampler=request.sampler_name or "",
        seed=request.seed,
    )


def _sync(path: Path) -> None:
    """Wait until the file and its name are on disk, so that a row never outlives its picture."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _locked(folder: Path) -> FileLock:
    """A lock that holds the folder for this process. Raises DanqingError where another has it."""
    lock = FileLock(folder / "studio.lock", blocking=False, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DanqingError(
            f"{folder}: another studio has this folder open; end it, or give another --data-dir"
        ) from None
    except OSError as error:
        raise DanqingError(f"{folder}: cannot be used: {error.strerror}; give another --data-dir") from None
    return lock
