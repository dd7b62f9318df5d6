"""AUTOMATIC1111's /internal routes (its modules/progress.py): how far a task is that a client named by `force_task_id`."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from danqing.serve.engine import Engine
from danqing.serve.store import Job

_REMEMBERED = 1000
"""Tasks that are known, the oldest forgotten first."""


class Tasks:
    """Clients' names of what they asked for, and the jobs that came of each."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, task: str | None, jobs: Sequence[Job]) -> None:
        """Remember that these are the task's, whose name is the first job's id where its client gave none."""
        with self._lock:
            self._jobs[task or jobs[0].id] = tuple(job.id for job in jobs)
            while len(self._jobs) > _REMEMBERED:
                self._jobs.popitem(last=False)

    def all(self) -> dict[str, tuple[str, ...]]:
        """Every task's jobs, by their ids."""
        with self._lock:
            return dict(self._jobs)


class AskedProgress(BaseModel):
    """What /internal/progress is sent."""

    id_task: str = Field("", max_length=1000)
    id_live_preview: int = -1
    live_preview: bool = True


class TaskProgress(BaseModel):
    active: bool = False
    queued: bool = False
    completed: bool = False
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = -1
    textinfo: str | None = None


def add_tasks(routes: APIRouter, engine: Engine, tasks: Tasks) -> None:
    """Put the routes onto `routes`."""

    @routes.post("/internal/progress")
    def progress(body: AskedProgress) -> TaskProgress:
        return task_progress(engine, [engine.job(job) for job in tasks.all().get(body.id_task, ())], body)

    @routes.get("/internal/pending-tasks")
    def pending() -> dict[str, Any]:
        waiting = {job.id for job in engine.jobs(("queued",), limit=10_000)}
        names = [task for task, jobs in tasks.all().items() if task not in jobs and waiting.issuperset(jobs)]
        return {"size": len(names), "tasks": names}

    @routes.get("/internal/ping")
    def ping() -> dict[str, Any]:
        return {}


def interrupt(engine: Engine, tasks: Tasks) -> None:
    """Stop what is painted, and what else its client asked for along with it: the other cells of a plot."""
    current = engine.progress(preview=False).job
    for jobs in tasks.all().values():
        if current in jobs:
            for job in reversed(jobs):
                if job != current:
                    engine.cancel(job)
    engine.interrupt(current)


def task_progress(engine: Engine, jobs: Sequence[Job], asked: AskedProgress) -> TaskProgress:
    """How far the jobs of one task are together; a preview only where the client has not seen it yet."""
    if not jobs:
        return TaskProgress(textinfo="Waiting...")
    over = sum(job.over for job in jobs)
    if over == len(jobs):
        return TaskProgress(completed=True, textinfo=jobs[-1].state)
    current = next((job for job in jobs if job.state == "running"), None)
    if current is None:
        text = engine.progress(next(job.id for job in jobs if not job.over)).text
        return TaskProgress(queued=True, textinfo=text)
    now = engine.progress(current.id, preview=asked.live_preview)
    seen = now.picture * 10_000 + now.step
    preview = None
    if now.preview is not None and seen != asked.id_live_preview:
        data = io.BytesIO()
        now.preview.save(data, "PNG")
        preview = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return TaskProgress(
        active=True,
        progress=(over + now.share) / len(jobs),
        eta=now.left,
        live_preview=preview,
        id_live_preview=seen,
        textinfo=now.text,
    )
