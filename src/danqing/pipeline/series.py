"""Many requests painted one after another: what they share is loaded and encoded once, one that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from danqing.checkpoints.load import with_autoencoder
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.adapters import aesthetic_files
from danqing.pipeline.controls import control_files, module_files
from danqing.pipeline.detect import detector_file
from danqing.pipeline.image_prompts import adapter_files
from danqing.pipeline.models import Say, find_vae, print_note
from danqing.pipeline.models import load as load_model
from danqing.pipeline.paint import Progress, stream, upscaler_files
from danqing.pipeline.run import Aside, unseen
from danqing.prompts.encode import Cache
from danqing.requests import Painting

Load = Callable[[str | None], Model]
"""A checkpoint by path or name; None is the default one."""
_OTHERS = ("refiner_checkpoint", "hr_checkpoint_name")
_NAMING = ("enable_hr", "hr_upscaler", "sd_upscale", "controls", "image_prompts", "detailers", "aesthetic")
"""Further fields that name files of models."""
_CACHED = 256
"""Encoded chunks of text that are kept; one is about half a megabyte."""


@dataclass(frozen=True, eq=False)
class Event:
    """A step of one of the requests, or its end by an error."""

    index: int
    """Of the request, from 0, in the order they were given."""
    count: int
    progress: Progress | None
    error: DanqingError | None = None


def check_files(requests: Sequence[Painting], settings: Settings | None = None) -> None:
    """Whether all files of models that the requests' fields name are there: known before any is painted.

    What tags in prompts name is not looked for, as a picture is painted without it. Raises DanqingError for the first that
    is missing.
    """
    settings = settings or load_settings()
    named = {field: {getattr(each, field, None) for each in requests} for field in ("model", *_OTHERS, "vae")}
    for field, names in named.items():
        for name in sorted(filter(None, names)):
            find(name, "vae" if field == "vae" else "checkpoint", settings)
    different = {tuple(getattr(each, field, None) for field in _NAMING): each for each in requests}
    for request in different.values():
        for look in (upscaler_files, control_files, module_files, adapter_files, aesthetic_files):
            look(request)
        for detailer in request.detailers:
            detector_file(detailer.detector)


def paint_all(
    requests: Sequence[Painting],
    model: Model | None = None,
    *,
    load: Load | None = None,
    say: Say = print_note,
    safety_checker: bool = False,
    aside: Aside = unseen,
) -> Generator[Event, None, None]:
    """Paint all requests in their order. Closing the iterator stops after the step; what was yielded stays good.

    `model` paints the requests that name none. A checkpoint is loaded (by `load`) when a request names another than
    the one before it, an autoencoder likewise, and a prompt is encoded once: so equal ones should stand together.
    A request that cannot be painted yields its error, and the next goes on. `say` is told everything once,
    `aside` what `paint.stream` tells it.
    """
    shared = _Shared(load or load_model, model)
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    for index, request in enumerate(requests):
        try:
            used = shared.model_for(request)
            others = shared.others_for(request)
            for progress in stream(
                request,
                used,
                say=once,
                safety_checker=safety_checker,
                cache=shared.cache,
                models=others,
                aside=aside,
            ):
                yield Event(index, len(requests), progress)
        except DanqingError as error:
            yield Event(index, len(requests), None, error)


class _Shared:
    """The model and the autoencoder that were used last, and what its text towers made of prompts."""

    def __init__(self, load: Load, given: Model | None) -> None:
        self.load = load
        self.given = given
        self.name: str | None = None
        self.base: Model | None = None
        self.other: tuple[str, Model] | None = None
        """The base with the autoencoder of that path in the place of its own."""
        self.others: dict[str, Model] = {}
        self.cache: Cache = {}

    def others_for(self, request: Painting) -> dict[str, Model]:
        """The refiner and the model of the second pass, by name, kept while requests go on naming them."""
        names = {getattr(request, field, None) for field in _OTHERS}
        self.others = {name: model for name, model in self.others.items() if name in names}
        for name in names - {None} - self.others.keys():
            self.others[str(name)] = self.load(name)
        return self.others

    def model_for(self, request: Painting) -> Model:
        if self.base is None or request.model != self.name:
            self.base = self.other = None  # two at once might not fit in memory
            self.cache = {}
            self.name = request.model
            self.base = self.given if self.given is not None and request.model is None else self.load(request.model)
        if len(self.cache) > _CACHED:
            self.cache = {}
        path = find_vae(request.vae) if request.vae else None
        if path is None or path == self.base.vae_path:
            return self.base
        if self.other is None or self.other[0] != path:
            self.other = (path, with_autoencoder(self.base, path))
        return self.other[1]
