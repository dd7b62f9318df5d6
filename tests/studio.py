"""A studio whose painter is a fake: coloured pictures in no time, the same for the same seed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import create_engine, text

from danqing.library.settings import load_settings
from danqing.metadata.infotext import infotext
from danqing.request_parts import Reference
from danqing.requests import Painting, ResolvedRequest
from danqing.serve.accept import Rules, read_part
from danqing.serve.cache import ModelCache
from danqing.serve.compare import Layout, sheet_of
from danqing.serve.engine import Engine
from danqing.serve.store import Job, Store
from danqing.serve.work import Enlarge, Finished, Tick

STEPS = 4


class FakePainter:
    """Paints a plain colour for each seed. `gate`, where it is given, is waited for before every step."""

    def __init__(self, folder: Path, gate: threading.Semaphore | None = None) -> None:
        self.folder, self.gate = folder, gate
        self.painted: list[tuple[str, int]] = []
        """(job, index) of every picture that was painted, twice if it was painted twice."""
        self.error: Exception | None = None

    def __call__(self, job: Job, have: frozenset[int], note: Callable[[str], None]) -> Iterator[Tick]:
        offset = 0
        for number, fields in enumerate(job.parts):
            if "sheet" in fields:
                if offset not in have:
                    sheet = sheet_of(job, Layout.model_validate(fields["sheet"]), self.folder, note)
                    yield Tick(offset, 1, 1, 1, finished=(sheet,))
                return
            request = read_part(job, number, self.folder)
            if isinstance(request, Painting):
                size, batches = request.batch_size, request.n_iter
            else:
                size, batches = 1, job.total
            for batch in range(batches):
                first = offset + batch * size
                indices = [index for index in range(first, first + size) if index not in have]
                if not indices:
                    continue
                hurried = threading.Event()
                for step in range(1, STEPS + 1):
                    if self.gate is not None and not hurried.is_set():
                        self.gate.acquire()
                    if self.error is not None:
                        raise self.error
                    last = indices if step == STEPS else []
                    finished = tuple(self._finished(job, request, offset, index) for index in last)
                    yield Tick(first, size, step, STEPS, lambda: Image.new("RGB", (8, 8)), finished, hurried.set)
            offset += size * batches

    def _finished(self, job: Job, request: Any, offset: int, index: int) -> Finished:
        self.painted.append((job.id, index))
        if isinstance(request, Enlarge):
            return Finished(index, Image.new("RGB", (32, 32), (index, 0, 0)), infotext="Postprocess upscale by: 2")
        record = ResolvedRequest(
            request=request.model_copy(
                update={
                    "width": request.width or 64,
                    "height": request.height or 64,
                    "steps": request.steps or STEPS,
                    "cfg_scale": 7.0 if request.cfg_scale is None else request.cfg_scale,
                    "sampler_name": request.sampler_name or "Euler",
                    "scheduler": request.scheduler or "Normal",
                    "clip_skip": request.clip_skip or 1,
                }
            ),
            family="tiny",
            checkpoint=Reference(name=request.model or "fake.safetensors", sha256="ab" * 32),
        ).picture(index - offset)
        seed = record.request.seed or 0
        colour = (seed % 256, seed // 256 % 256, index % 256)
        picture = Image.new("RGB", (record.request.width or 64, record.request.height or 64), colour)
        return Finished(index, picture, record, infotext(record))


def database(folder: Path) -> str:
    """The URL of a studio's database: a file in its folder, or where $DANQING_TEST_DATABASE says (PostgreSQL).

    There each folder has a schema of its own.
    """
    base = os.environ.get("DANQING_TEST_DATABASE")
    if base is None:
        return f"sqlite:///{folder / 'studio.db'}"
    schema = "studio_" + hashlib.md5(str(folder).encode()).hexdigest()[:16]
    engine = create_engine(base)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    engine.dispose()
    return f"{base}?options=-csearch_path%3D{schema}"


def fake_studio(
    folder: Path,
    *,
    start: bool = True,
    gate: threading.Semaphore | None = None,
    rules: Rules | None = None,
    url: str | None = None,
) -> tuple[Engine, FakePainter]:
    """An engine in `folder` and its painter; close the engine when done."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(url or database(folder))
    painter = FakePainter(folder, gate)
    settings = load_settings(data_dir=folder)

    def no_model(name: str | None, vae: str | None) -> Any:
        raise AssertionError("the fake studio loads no model")

    engine = Engine(store, folder, ModelCache(settings=settings, load=no_model), painter, rules=rules)
    if start:
        engine.start()
    return engine, painter
