"""Danqing's own HTTP API, `/api/v1`: jobs, events, the gallery, what there is to paint with; health and metrics."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Body, FastAPI, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from danqing.errors import DanqingError
from danqing.metadata.files import read_picture
from danqing.requests import ImageToImage, Inpaint, Outpaint, TextToImage
from danqing.serve import gallery
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings
from danqing.serve.store import Job, JobTold, NotFound, PictureTold, State, Stored
from danqing.serve.store import Query as Search
from danqing.serve.work import Comparison, Enlarge
from danqing.version import __version__
from danqing.vocabulary import SAMPLERS, SCHEDULERS

Identity = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hexadecimal digits")]
Wait = Annotated[float, Query(ge=0, le=60, description="seconds")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=1 << 40)]
Stamp = Annotated[float | None, Query(ge=0, le=1e12, description="seconds since 1970")]
_BEAT = 15.0
"""Seconds after which a quiet stream of events says that it is still there."""
_PREVIEW_SECONDS = 0.5
"""Between two previews of one stream."""
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_TYPES |= {".avif": "image/avif", ".jxl": "image/jxl"}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    priority: int = Field(0, ge=-1000, le=1000, description="the higher, the sooner")


class NewTextToImage(_Asked):
    """Paint pictures from a text."""

    kind: Literal["txt2img"]
    request: TextToImage


class NewImageToImage(_Asked):
    """Paint a picture over."""

    kind: Literal["img2img"]
    request: ImageToImage


class NewInpaint(_Asked):
    """Paint anew what a mask covers."""

    kind: Literal["inpaint"]
    request: Inpaint


class NewOutpaint(_Asked):
    """Paint on beyond a picture's edges."""

    kind: Literal["outpaint"]
    request: Outpaint


class NewEnlarge(_Asked):
    """Make pictures larger."""

    kind: Literal["upscale"]
    request: Enlarge


class NewPlot(_Asked):
    """Paint a request many times over, and a labelled sheet of it all."""

    kind: Literal["plot"]
    request: Comparison


NewJob = Annotated[
    NewTextToImage | NewImageToImage | NewInpaint | NewOutpaint | NewEnlarge | NewPlot, Field(discriminator="kind")
]


@dataclass(frozen=True, kw_only=True)
class JobOut(JobTold):
    """A job, as the queue holds it."""


@dataclass(frozen=True, kw_only=True)
class PictureOut(PictureTold):
    """A picture of the gallery. `url` and `thumbnail` are where its pixels are."""

    url: str
    thumbnail: str


class PicturesOut(BaseModel):
    """A page of what was found."""

    total: int
    pictures: list[PictureOut]


class ProgressOut(BaseModel):
    """How far a job is."""

    job: str | None
    share: float
    step: int
    steps: int
    picture: int
    pictures: int
    left: float | None
    text: str


class QueueOut(BaseModel):
    """The queue as a whole."""

    paused: bool
    painting: str | None
    jobs: dict[str, int]


class PictureChange(BaseModel):
    """What is given changes."""

    model_config = ConfigDict(extra="forbid")

    rating: int | None = Field(None, ge=0, le=5)
    favourite: bool | None = None
    tags: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=100)


class ErrorOut(BaseModel):
    """What is wrong, and what to do."""

    error: str


_EXAMPLES: dict[str, Any] = {
    "a picture": {
        "value": {"kind": "txt2img", "request": {"prompt": "a red apple", "seed": 7, "steps": 20}},
    },
    "a batch, soon": {
        "value": {"kind": "txt2img", "request": {"prompt": "a castle", "batch_size": 4}, "priority": 10},
    },
    "a plot": {
        "value": {
            "kind": "plot",
            "request": {"request": {"prompt": "a red apple", "seed": 7}, "x": "Steps=5,10,20", "y": "CFG Scale=3,7"},
        },
    },
    "a picture of the gallery painted over": {
        "value": {
            "kind": "img2img",
            "request": {"image": "picture:0123456789abcdef0123456789abcdef", "prompt": "in winter"},
        },
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorOut, "description": "something in the request is wrong"},
    404: {"model": ErrorOut, "description": "there is no such job or picture"},
}


def router(engine: Engine, settings: ServeSettings) -> APIRouter:
    """The routes of `/api/v1`."""
    api = APIRouter(prefix="/api/v1", responses=_ERRORS)
    _add_jobs(api, engine)
    _add_gallery(api, engine, settings)
    _add_lists(api, engine)
    return api


def _add_jobs(api: APIRouter, engine: Engine) -> None:
    @api.post("/jobs", status_code=201, tags=["jobs"], summary="Ask for pictures")
    def add(asked: Annotated[NewJob, Body(openapi_examples=_EXAMPLES)]) -> JobOut:
        """The job is on disk when this answers: it is painted whatever happens to the caller or the server."""
        return _job_out(engine.submit(asked.request, origin="api", priority=asked.priority))

    @api.get("/jobs", tags=["jobs"], summary="The queue, and what is over")
    def jobs(
        state: Annotated[list[State] | None, Query(description="these alone")] = None,
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> list[JobOut]:
        return [_job_out(job) for job in engine.jobs(state, limit, offset)]

    @api.get("/jobs/{job}", tags=["jobs"], summary="One job")
    async def job(job: Identity, wait: Wait = 0.0) -> JobOut:
        """With `wait` it answers when the job is over, or after so many seconds."""
        return _job_out(await _waited(engine, job, wait))

    @api.get("/jobs/{job}/pictures", tags=["jobs"], summary="What it has painted so far")
    async def pictures(job: Identity, wait: Wait = 0.0) -> list[PictureOut]:
        """With `wait` it answers when the job is over, or after so many seconds; of a job that failed there may be none."""
        await _waited(engine, job, wait)
        return [_picture_out(each) for each in await run_in_threadpool(engine.pictures, job)]

    @api.get("/jobs/{job}/progress", tags=["jobs"], summary="How far it is")
    def progress(job: Identity) -> ProgressOut:
        return ProgressOut.model_validate(engine.progress(job, preview=False), from_attributes=True)

    @api.get("/jobs/{job}/preview", tags=["jobs"], summary="What it looks like by now", response_class=Response)
    def preview(job: Identity) -> Response:
        """A small PNG; 204 where there is none yet, or no more."""
        image = engine.progress(job).preview
        return Response(status_code=204) if image is None else Response(_png(image), media_type="image/png")

    @api.get("/jobs/{job}/events", tags=["events"], summary="What happens to one job", response_class=StreamingResponse)
    async def events_of(job: Identity, previews: bool = False) -> StreamingResponse:
        """Server-sent events: first `job`, as it is, then what happens until it is over."""
        first = await run_in_threadpool(engine.job, job)
        return _streamed(_events(engine, first, previews))

    @api.get("/events", tags=["events"], summary="What happens to all jobs", response_class=StreamingResponse)
    async def events(previews: bool = False) -> StreamingResponse:
        return _streamed(_events(engine, None, previews))

    @api.delete("/jobs/{job}", tags=["jobs"], summary="Cancel")
    def cancel(job: Identity) -> JobOut:
        """A job that waits never begins; one that is painted ends after its step. Finished pictures stay."""
        return _job_out(engine.cancel(job))

    @api.patch("/jobs/{job}", tags=["jobs"], summary="Change its priority")
    def change(job: Identity, priority: Annotated[int, Body(embed=True, ge=-1000, le=1000)]) -> JobOut:
        return _job_out(engine.priority(job, priority))

    @api.post("/jobs/{job}/move", tags=["jobs"], summary="Put it before another, or at the end")
    def move(job: Identity, before: Annotated[str | None, Body(embed=True, pattern="^[0-9a-f]{32}$")] = None) -> JobOut:
        return _job_out(engine.move(job, before))

    @api.post("/jobs/{job}/interrupt", tags=["jobs"], summary="End it; what is painted stays", status_code=204)
    def interrupt(job: Identity) -> None:
        engine.interrupt(engine.job(job).id)

    @api.post("/jobs/{job}/skip", tags=["jobs"], summary="Leave the present batch out", status_code=204)
    def skip(job: Identity) -> None:
        engine.skip(engine.job(job).id)

    @api.get("/queue", tags=["jobs"], summary="The queue as a whole")
    def whole() -> QueueOut:
        return _queue_out(engine)

    @api.post("/queue/pause", tags=["jobs"], summary="Pause after the present step")
    def pause() -> QueueOut:
        engine.pause()
        return _queue_out(engine)

    @api.post("/queue/resume", tags=["jobs"], summary="Go on")
    def resume() -> QueueOut:
        engine.resume()
        return _queue_out(engine)


def _add_gallery(api: APIRouter, engine: Engine, settings: ServeSettings) -> None:
    store, small = engine.store, lru_cache(maxsize=512)(_thumbnail)

    @api.get("/pictures", tags=["gallery"], summary="Search the gallery")
    def search(
        words: Annotated[str, Query(max_length=1000, description='all of them; "in this order"')] = "",
        model: Annotated[str | None, Query(max_length=500)] = None,
        seed: Annotated[int | None, Query(ge=0, lt=1 << 64)] = None,
        since: Stamp = None,
        until: Stamp = None,
        rating: Annotated[int | None, Query(ge=0, le=5, description="at least")] = None,
        favourite: bool | None = None,
        tag: Annotated[str | None, Query(max_length=200)] = None,
        kind: Annotated[str | None, Query(max_length=16)] = None,
        job: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        deleted: bool = False,
        limit: Limit = 50,
        offset: Offset = 0,
    ) -> PicturesOut:
        """The latest first."""
        query = Search(words, model, seed, since, until, rating, favourite, tag, kind, job, deleted)
        found = [_picture_out(each) for each in store.search(query, limit, offset)]
        return PicturesOut(total=store.count(query), pictures=found)

    @api.get("/pictures/{picture}", tags=["gallery"], summary="One picture")
    def one(picture: Identity) -> PictureOut:
        return _picture_out(store.picture(picture))

    @api.get("/pictures/{picture}/file", tags=["gallery"], summary="Its file", response_class=FileResponse)
    def file(picture: Identity) -> FileResponse:
        path = _there(engine.path(store.picture(picture)))
        return FileResponse(path, media_type=_TYPES.get(path.suffix, "application/octet-stream"), headers=_FOREVER)

    @api.get("/pictures/{picture}/thumbnail", tags=["gallery"], summary="A small one", response_class=Response)
    def thumbnail(picture: Identity, side: Annotated[int, Query(ge=16, le=1024)] = 256) -> Response:
        stored = store.picture(picture)
        return Response(small(_there(engine.path(stored)), side), media_type="image/webp", headers=_FOREVER)

    @api.get("/pictures/{picture}/request", tags=["gallery"], summary="How it was made")
    def request(picture: Identity) -> dict[str, Any]:
        """The request to send again, and the files that took part."""
        return gallery.request_of(engine, store.picture(picture))

    @api.get("/pictures/{picture}/differences/{other}", tags=["gallery"], summary="In what two pictures differ")
    def differences(picture: Identity, other: Identity) -> dict[str, tuple[Any, Any]]:
        return gallery.differences(engine, store.picture(picture), store.picture(other))

    @api.patch("/pictures/{picture}", tags=["gallery"], summary="Rate it, tag it, make it a favourite")
    def change(picture: Identity, what: PictureChange) -> PictureOut:
        changed = store.set_picture(picture, rating=what.rating, favourite=what.favourite, tags=what.tags)
        return _picture_out(changed)

    @api.delete("/pictures/{picture}", tags=["gallery"], summary="Put it into the bin")
    def remove(picture: Identity) -> PictureOut:
        """It is there for 30 days, and comes back by `restore`."""
        return _picture_out(store.set_picture(picture, deleted=True))

    @api.post("/pictures/{picture}/restore", tags=["gallery"], summary="Take it out of the bin")
    def restore(picture: Identity) -> PictureOut:
        return _picture_out(store.set_picture(picture, deleted=False))

    @api.get("/tags", tags=["gallery"], summary="All tags, and how many pictures have each")
    def tags() -> dict[str, int]:
        return store.tags()

    @api.post("/pictures/import", tags=["gallery"], summary="Import a folder of pictures of any tool")
    def imported(folder: Annotated[str, Body(embed=True, max_length=4096)] = "") -> dict[str, Any]:
        """`folder` is one of those that the server was started with, or below; by default the data folder's `import`."""
        own = engine.folder / "import"
        own.mkdir(exist_ok=True)
        place = FilePath(folder) if folder and "\0" not in folder else own
        done = gallery.import_folder(engine, place, (own, *settings.folders))
        return {"added": done.added, "known": done.known, "failed": list(done.failed)}


def _add_lists(api: APIRouter, engine: Engine) -> None:
    @api.get("/models", tags=["lists"], summary="The models and adapters that are here")
    def models(kind: Annotated[str | None, Query(max_length=40)] = None) -> list[dict[str, Any]]:
        from danqing.library.listing import list_models  # torch comes with it

        rows = list_models(engine.models.settings)
        names = ("name", "kind", "family", "size", "source", "problem")
        return [{name: getattr(row, name) for name in names} for row in rows if kind in (None, row.kind)]

    @api.get("/adapters", tags=["lists"], summary="LoRAs, embeddings, hypernetworks, ControlNets ... and what they are")
    def adapters(kind: Annotated[str | None, Query(max_length=40)] = None) -> list[dict[str, Any]]:
        """Names, trigger words, ranks and how they were trained, as far as their files say. `problem` is one's that cannot be read."""
        from danqing.adapters.inspect import inspect_adapter  # torch comes with it
        from danqing.library.names import known
        from danqing.pipeline.adapters import ADAPTERS

        rows: list[dict[str, Any]] = []
        for entry in known(engine.models.settings):
            if entry.kind not in ADAPTERS or kind not in (None, entry.kind):
                continue
            try:
                told = {name: value for name, value in asdict(inspect_adapter(entry.path)).items() if name != "path"}
                rows.append({**told, "name": entry.name, "kind": entry.kind, "problem": ""})
            except DanqingError as error:
                rows.append({"name": entry.name, "kind": entry.kind, "problem": str(error)})
        return rows

    @api.get("/models/loaded", tags=["lists"], summary="The checkpoints in memory")
    def loaded() -> dict[str, Any]:
        return {"models": list(engine.models.loaded()), "bytes": engine.models.size, "budget": engine.models.budget}

    @api.get("/samplers", tags=["lists"], summary="Samplers and schedules by their labels")
    def samplers() -> dict[str, list[str]]:
        return {"samplers": [row.name for row in SAMPLERS], "schedulers": [row.name for row in SCHEDULERS]}

    @api.get("/version", tags=["lists"], summary="Which Danqing this is")
    def version() -> dict[str, str]:
        return {"version": __version__}


def add_operation(app: FastAPI, engine: Engine) -> None:
    """`/healthz` and `/metrics`."""
    registry = CollectorRegistry()
    registry.register(_Numbers(engine))  # type: ignore[arg-type]

    @app.get(
        "/healthz", tags=["operation"], summary="Whether it is well", responses={503: {"description": "it is not"}}
    )
    def health(response: Response) -> dict[str, str]:
        """200 where jobs are painted, else 503."""
        response.status_code = 200 if engine.alive else 503
        return {"status": "ok" if engine.alive else "the painter does not run"}

    @app.get("/metrics", tags=["operation"], summary="Numbers for Prometheus", response_class=Response)
    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Numbers:
    """The engine's numbers, as Prometheus collects them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self.engine
        jobs = GaugeMetricFamily("danqing_jobs", "Jobs in the database", labels=["state"])
        for state, count in engine.store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        counts = engine.totals()
        for name, text in _TOTALS.items():
            yield CounterMetricFamily(f"danqing_{name}", text, value=counts[name])
        yield GaugeMetricFamily("danqing_model_bytes", "Weights in memory", value=engine.models.size)
        yield GaugeMetricFamily("danqing_paused", "1 where the queue is paused", value=float(engine.paused))


_TOTALS: Mapping[str, str] = {
    "pictures": "Pictures painted since the start",
    "steps": "Sampling steps done since the start",
    "failures": "Jobs that failed since the start",
    "painting_seconds": "Seconds that jobs were painted since the start",
}
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


async def _events(engine: Engine, first: Job | None, previews: bool) -> AsyncIterator[str]:
    """Events as text, until the one job that is meant is over."""
    beat = shown = time.monotonic()
    async with engine.alisten(None if first is None else first.id) as events:
        if first is not None:  # as it is now that nothing more can be missed
            first = await run_in_threadpool(engine.job, first.id)
            yield _event("job", asdict(_job_out(first)))
            if first.over:
                return
        async for event in events:
            now = time.monotonic()
            if event is None:
                if now - beat > _BEAT:
                    beat = now
                    yield ": still here\n\n"
                continue
            data, beat = {"job": event.job, **event.data}, now
            if previews and event.name == "progress" and now - shown > _PREVIEW_SECONDS:
                shown = now
                image = (await run_in_threadpool(engine.progress, event.job)).preview
                if image is not None:
                    data["preview"] = "data:image/png;base64," + base64.b64encode(_png(image)).decode()
            yield _event(event.name, data)
            if first is not None and event.name == "ended":
                return


async def _waited(engine: Engine, identity: str, seconds: float) -> Job:
    """The job once it is over, or after so many seconds; no thread is kept meanwhile."""
    async with engine.aending(identity) as over:
        job = await run_in_threadpool(engine.job, identity)
        if job.over or not seconds:
            return job
        with anyio.move_on_after(seconds):
            await over.wait()
    return await run_in_threadpool(engine.job, identity)


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _streamed(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _job_out(job: Job) -> JobOut:
    return JobOut(**{each.name: getattr(job, each.name) for each in fields(JobTold)})


def _picture_out(picture: Stored) -> PictureOut:
    place = f"/api/v1/pictures/{picture.id}"
    told = {each.name: getattr(picture, each.name) for each in fields(PictureTold)}
    return PictureOut(**told, url=f"{place}/file", thumbnail=f"{place}/thumbnail")


def _there(path: FilePath) -> FilePath:
    """Raises NotFound where a person has taken a picture's file away."""
    if not path.is_file():
        raise NotFound("picture: its file is not there any more")
    return path


def _queue_out(engine: Engine) -> QueueOut:
    painting = engine.progress(preview=False).job
    counts: dict[str, int] = {str(state): count for state, count in engine.store.counts().items()}
    return QueueOut(paused=engine.paused, painting=painting, jobs=counts)


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def _thumbnail(path: FilePath, side: int) -> bytes:
    """WebP; a picture's file never changes, so that it is made once."""
    image = read_picture(path).image
    small = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return data.getvalue()
