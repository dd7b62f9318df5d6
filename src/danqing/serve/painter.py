"""How the engine's jobs are painted by the pipeline."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache as once
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.metadata.files import read_picture
from danqing.metadata.infotext import infotext
from danqing.pipeline.expand import counted
from danqing.pipeline.extras import Enhance, enhancer, enlarged_record, postprocessed
from danqing.pipeline.models import Say
from danqing.pipeline.paint import stream
from danqing.pipeline.picture import Picture, platform_of
from danqing.pipeline.together import Shared, stream_together
from danqing.requests import Painting, ResolvedRequest, TextToImage, Upscale
from danqing.sampling.types import Denoise, Prediction
from danqing.serve.accept import read_part
from danqing.serve.cache import Held, ModelCache
from danqing.serve.compare import Layout, sheet_of
from danqing.serve.memo import Memo, wrap_each
from danqing.serve.preview import Look, look_of
from danqing.serve.store import Job
from danqing.serve.work import Enlarge, Finished, Paint, Sharing, Tick

log = logging.getLogger("danqing.serve")
PROMPTS = 512
"""Encoded prompts that a model keeps, about, before it begins anew."""


def painter(models: ModelCache, folder: Path) -> Paint:
    """Paints jobs with the models of a cache; `folder` is the studio's data folder."""

    def paint(job: Job, have: frozenset[int], note: Say) -> Iterator[Tick]:
        offset = 0
        for number, fields in enumerate(job.parts):
            if "sheet" in fields:
                if offset not in have:
                    sheet = sheet_of(job, Layout.model_validate(fields["sheet"]), folder, note)
                    yield Tick(offset, 1, 1, 1, finished=(sheet,))
                return
            request = read_part(job, number, folder)
            if isinstance(request, Enlarge):
                yield from _enlarged(request, have, note, models)
                return
            assert isinstance(request, Painting)
            count = request.batch_size * request.n_iter
            here = frozenset(index - offset for index in have if offset <= index < offset + count)
            memo = folder / "resume" / f"{job.id}.{number}"
            try:
                for tick in _part(request, here, note, models, memo):
                    yield _moved(tick, offset)
            except DanqingError as error:
                if job.kind != "plot":
                    raise
                note(f"picture {offset + 1} could not be painted: {error}")  # its cell stays white
            offset += count

    return paint


def sharing(models: ModelCache, folder: Path, most: int) -> Sharing:
    """Paints jobs of one picture each in one run, `most` at a time; `folder` is the studio's data folder.

    What is kept to go on with after a crash is what each would have alone, so that they need not meet again.
    """

    def paint(jobs: Sequence[Job], note: Callable[[int, str], None]) -> Iterator[Tick]:
        requests = [read_part(job, 0, folder) for job in jobs]
        first = requests[0]
        assert isinstance(first, TextToImage)
        held = _held(models, first)
        look = _look(held, models)
        plain = [request for request in requests if isinstance(request, TextToImage)]
        memos: list[Memo | None] = [
            Memo(folder / "resume" / f"{job.id}.0", _salt(request, held.model)) for job, request in zip(jobs, plain)
        ]

        def left(number: int) -> None:
            memos[number] = None

        def unfinished(event: Shared, number: int) -> Finished:
            return _finished(event.unfinished(number))

        wrap = partial(wrap_each, memos)
        try:
            with closing(stream_together(plain, held.model, cache=held.prompts, say=note, wrap=wrap)) as events:
                for event in events:
                    shown = once(partial(look, event.clean))
                    finished = tuple(map(_finished, event.pictures))
                    if finished:  # the engine removes what is there once they are in the gallery
                        memos[:] = [None] * len(memos)
                    kept = partial(unfinished, event)
                    yield Tick(0, 1, event.step, event.steps, shown, finished, left=left, unfinished=kept)
        finally:
            for memo in memos:
                if memo is not None:
                    memo.flush()

    return Sharing(most, paint)


def _finished(picture: Picture) -> Finished:
    """The one picture of a job."""
    record = picture.record
    return Finished(0, picture.image, record, infotext(record))


def missing(size: int, batches: int, have: frozenset[int]) -> Iterator[tuple[int, int, int]]:
    """(first picture, batch size, batches) of each run of batches that is to be painted.

    Of a batch that is there in part the missing pictures are painted alone: a picture is the same in any batch.
    """
    total, index = size * batches, 0
    while index < total:
        if index in have:
            index += 1
            continue
        end = index
        while end < total and end not in have:
            end += 1
        whole = (end - index) // size if index % size == 0 else 0
        if whole:
            yield index, size, whole
            index += whole * size
        else:
            alone = min(end, (index // size + 1) * size)
            yield index, 1, alone - index
            index = alone


def _part(request: Painting, have: frozenset[int], note: Say, models: ModelCache, memo: Path) -> Iterator[Tick]:
    """Paint what is missing of one request; indices are within it."""
    runs = list(missing(request.batch_size, request.n_iter, have))
    if not runs:
        return
    held = _held(models, request)
    others = {name: models.get(name).model for name in _further(request)}
    look = _look(held, models)
    steps, haste = Memo(memo, _salt(request, held.model)), Haste()
    for first, size, batches in runs:
        asked = counted(request, first).model_copy(update={"batch_size": size, "n_iter": batches})
        events = stream(
            asked,
            held.model,
            say=note,
            wrap=lambda denoise: haste.wrap(steps.wrap(denoise)),
            cache=held.prompts,
            models=others,
        )
        try:
            with closing(events):
                for event in events:
                    each = size * batches // event.batches
                    start = first + event.batch * each
                    records = [haste.told(picture.record) for picture in event.pictures]
                    finished = tuple(
                        Finished(start + index, picture.image, record, infotext(record))
                        for index, (picture, record) in enumerate(zip(event.pictures, records))
                    )
                    shown = once(partial(look, event.clean))
                    hurry = partial(haste.begin, event.step, event.steps)
                    kept = steps.set_aside() if finished else None
                    yield Tick(start, each, event.step, event.steps, shown, finished, hurry, kept)
        finally:
            steps.flush()  # where it is finished nothing waits


def _held(models: ModelCache, request: Painting) -> Held:
    """The request's checkpoint, with not too many prompts."""
    held = models.get(request.model, request.vae)
    if len(held.prompts) > PROMPTS:
        held.prompts.clear()
    return held


def _further(request: Painting) -> Iterator[str]:
    """The names of the other checkpoints that take part."""
    if request.refiner_checkpoint is not None:
        yield request.refiner_checkpoint
    name = getattr(request, "hr_checkpoint_name", None)
    if name is not None and getattr(request, "enable_hr", False):
        yield name


class Haste:
    """A denoiser that is asked no more once that has begun: what it said last stands, and the sampler comes to it."""

    def __init__(self) -> None:
        self._since: tuple[int, int] | None = None
        self._said: Prediction | None = None

    def begin(self, step: int, steps: int) -> None:
        """From now on, after that many steps of so many."""
        self._since = self._since or (step, steps)

    def wrap(self, denoise: Denoise) -> Denoise:
        """A pass of another size, of hires fix for one, asks once more."""

        def hasty(latents: Tensor, at: At) -> Prediction:
            if self._since is None or self._said is None or self._said.clean.shape != latents.shape:
                self._said = denoise(latents, at)
            return self._said

        return hasty

    def told(self, record: ResolvedRequest) -> ResolvedRequest:
        """The record of a picture, which says that it is unfinished."""
        if self._since is None:
            return record
        line = f"interrupted after step {self._since[0]} of {self._since[1]}"
        return record.model_copy(update={"notes": (*record.notes, line)})


def _look(held: Held, models: ModelCache) -> Look:
    if held.look is None:
        held.look = look_of(held.model, models.settings, log.warning)
    return held.look


def _salt(request: Painting, model: Model) -> str:
    """What predictions depend on besides latents and level: the request, the files, the machine's arithmetic.

    Which of the request's pictures they are of is in the latents.
    """
    files = [Path(path) for path in (model.path, model.vae_path) if path]
    stamps = [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]
    fields = request.model_dump(mode="json", exclude={"batch_size", "n_iter"})
    return json.dumps([fields, model.name, stamps, platform_of(model).model_dump()], sort_keys=True)


def _moved(tick: Tick, offset: int) -> Tick:
    """The tick with its indices counted over the whole job."""
    finished = tuple(Finished(each.index + offset, each.image, each.record, each.infotext) for each in tick.finished)
    return replace(tick, first=tick.first + offset, finished=finished)


def _enlarged(request: Enlarge, have: frozenset[int], note: Say, models: ModelCache) -> Iterator[Tick]:
    """Enlarge what is missing of the pictures, a tick for each tile."""
    asked = Upscale.model_validate(request.model_dump(exclude={"images"}, exclude_unset=True))
    enhance = enhancer(asked, device=models.device, dtype=models.dtype, say=note, settings=models.settings)
    for index, source in enumerate(request.images):
        if index in have:
            continue
        opened = read_picture(Path(str(source)))
        upright = ImageOps.exif_transpose(opened.image)
        with closing(_tiles(enhance, upright)) as tiles:
            steps = 1
            while True:
                try:
                    done, steps = next(tiles)
                except StopIteration as end:
                    image: Image.Image = end.value
                    break
                if done < steps:
                    yield Tick(index, 1, done, steps)
        text = postprocessed(opened.texts, asked, upright, image)
        record = enlarged_record(opened.texts, asked, upright, image, models.settings)
        yield Tick(index, 1, steps, steps, finished=(Finished(index, image, record, text),))


class _Stopped(Exception):
    """Nobody waits for the picture any more."""


def _tiles(enhance: Enhance, image: Image.Image) -> Generator[tuple[int, int], None, Image.Image]:
    """`enhance(image)`, which runs beside, as a generator of (tiles done, tiles); closing it ends that after a tile."""
    told: queue.SimpleQueue[tuple[int, int] | Image.Image | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()

    def shown(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped
        told.put((done, total))

    def work() -> None:
        try:
            told.put(enhance(image, shown))
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=work, name="danqing-upscaler", daemon=True)
    thread.start()
    try:
        while True:
            news = told.get()
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, Image.Image):
                return news
            yield news
    finally:
        stopped.set()
        thread.join()
