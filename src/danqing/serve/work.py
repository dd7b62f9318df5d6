"""What the engine and those who paint for it hand each other. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image
from pydantic import BaseModel, Field

from danqing.request_parts import PictureSource
from danqing.requests import REQUESTS, ResolvedRequest, Upscale
from danqing.serve.store import Job


class Enlarge(Upscale):
    """Pictures to make larger: `Upscale`, and what it is done to."""

    images: tuple[PictureSource, ...] = Field(min_length=1, max_length=256, description="the pictures")


KINDS: dict[str, type[BaseModel]] = {**{str(kind): request for kind, request in REQUESTS.items()}, "upscale": Enlarge}
"""The request class of each kind of job."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A picture that is painted."""

    index: int
    """In its job, from 0."""
    image: Image.Image
    record: ResolvedRequest | None = None
    infotext: str = ""


@dataclass(frozen=True, eq=False)
class Tick:
    """A finished step of a job; with the last one of a batch come its pictures."""

    first: int
    """Index of the batch's first picture."""
    count: int
    """Pictures of the batch."""
    step: int
    """Steps done in this batch, from 1."""
    steps: int
    preview: Callable[[], Image.Image] | None = None
    """Makes a small picture of what there is; may be called from any thread."""
    finished: tuple[Finished, ...] = field(default=())


Paint = Callable[[Job, frozenset[int], Callable[[str], None]], Iterator[Tick]]
"""(job, indices of pictures that are there or skipped, told of notes) -> ticks, batch after batch.

Closing the iterator stops after the step. It raises DanqingError for what the person can mend.
"""


@dataclass(frozen=True)
class Sharing:
    """How jobs of one picture each are painted in one run of the sampler."""

    most: int
    """Jobs in a run."""
    paint: Callable[[Sequence[Job], Callable[[int, str], None]], Iterator[Tick]]
    """(jobs, told of notes with the number of the job) -> ticks, the last with a picture for each job, in order.

    It raises where they are to be painted one by one after all.
    """
