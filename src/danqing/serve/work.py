"""What the engine and those who paint for it hand each other. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from danqing.errors import DanqingError
from danqing.request_parts import PictureSource, Text
from danqing.requests import (
    REQUESTS,
    ImageToImage,
    Inpaint,
    Kind,
    Outpaint,
    ResolvedRequest,
    TextToImage,
    Upscale,
)
from danqing.serve.store import Job


class Enlarge(Upscale):
    """Pictures to make larger: `Upscale`, and what it is done to."""

    images: tuple[PictureSource, ...] = Field(min_length=1, max_length=256, description="the pictures")


class Comparison(BaseModel):
    """One request painted many times over, and a labelled sheet of it all, which is the job's last picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field("txt2img", description="what is painted")
    request: TextToImage | ImageToImage | Inpaint | Outpaint = Field(description="what all cells have in common")
    x: Text = Field("", description="columns, as TITLE=VALUES: Steps=10-30 (+10), Sampler=Euler,Heun")
    y: Text = Field("", description="rows, likewise")
    z: Text = Field("", description="sheets side by side, likewise")
    matrix: Literal["prompt", "negative_prompt"] | None = Field(
        None, description="in place of axes: `a | b | c` is a with every subset of b and c"
    )
    prompts: tuple[Text, ...] = Field(
        (), max_length=1000, description="in place of axes: prompts, or lines of --option value"
    )
    fixed_seeds: bool = Field(True, description="all cells have one seed")
    vary_seeds: str = Field("", pattern="^[xyz]{0,3}$", description="axes along which the seed counts up")
    iterate_seeds: bool = Field(False, description="matrix and prompts: the seed counts up")
    legend: bool = Field(True, description="whether the sheet has labels")
    margin: int = Field(0, ge=0, le=500, description="pixels between the sheet's pictures")

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, given: Any) -> Any:
        """The request by its kind, for an image to paint over does not tell img2img from inpaint."""
        if isinstance(given, Mapping) and isinstance(given.get("request"), Mapping):
            kind = given.get("kind", "txt2img")
            if kind in tuple(REQUESTS):
                return {**given, "request": REQUESTS[kind].model_validate(given["request"])}
        return given

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if type(self.request) is not REQUESTS[self.kind]:
            raise DanqingError(f"kind: {self.kind} is said, but the request is another kind's")
        ways = [bool(self.x or self.y or self.z), self.matrix is not None, bool(self.prompts)]
        if sum(ways) != 1:
            raise DanqingError("x: give axes (x, y, z), or matrix, or prompts")
        return self


KINDS: dict[str, type[BaseModel]] = {
    **{str(kind): request for kind, request in REQUESTS.items()},
    "upscale": Enlarge,
    "plot": Comparison,
}
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
    hurry: Callable[[], None] | None = None
    """Ends the batch early: the ticks that are left come in no time, the last with its pictures as they are by now."""
    kept: Callable[[], None] | None = None
    """To be called, from any thread, once `finished` is in the gallery."""
    left: Callable[[int], None] | None = None
    """Of a shared run: the job of that number is painted no more, and nothing is kept to go on with it."""
    unfinished: Callable[[int], Finished] | None = None
    """Of a shared run: the picture of the job of that number, as it is by now."""


def painted_kind(job: Job) -> str:
    """What a job's parts are requests of."""
    return str(job.request.get("kind", "txt2img")) if job.kind == "plot" else job.kind


def picture_path(job: Job, index: int) -> str:
    """Where a job's picture is, relative to the data folder."""
    day = time.strftime("%Y-%m-%d", time.gmtime(job.created))
    return f"pictures/{day}/{job.id}-{index:04d}.png"


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
