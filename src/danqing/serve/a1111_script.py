"""What AUTOMATIC1111's scripts are here: titles, arguments, and what each does to a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from danqing.library.settings import Settings
from danqing.pipeline.plot import Plot
from danqing.requests import ImageToImage, Painting, TextToImage
from danqing.serve.a1111_controlnet import Opened
from danqing.serve.a1111_options import Fields

Values = Mapping[str, Any]
"""A script's arguments by their labels, with defaults where none were given."""


@dataclass(frozen=True)
class Arg:
    """An argument, in the order in which they are given."""

    label: str
    value: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None


@dataclass
class Work:
    """A request in the making."""

    kind: type[Painting]
    fields: Fields
    notes: list[str]
    opened: Opened
    settings: Settings


@dataclass(frozen=True)
class Layout:
    """What is answered of a plot's pictures."""

    plot: Plot
    legend: bool = True
    margin: int = 0
    sheet: bool = True
    """Whether all of them in one stand before the others."""
    sub_grids: bool = False
    lone: bool = True


@dataclass(frozen=True)
class Script:
    """A script as clients see it: exactly one of `change` and `plot` says what it does."""

    title: str
    args: tuple[Arg, ...] = ()
    tabs: tuple[type[Painting], ...] = (TextToImage, ImageToImage)
    change: Callable[[Work, Values], None] | None = None
    """Alters the request's fields."""
    plot: Callable[[Painting, Values, Settings, list[str]], Layout] | None = None
    alwayson: bool = False
    rest: bool = False
    """Takes any number of arguments, as `args`."""


def script_values(script: Script, given: Sequence[Any]) -> Values:
    """`given` by their labels. Raises HTTPException where there are too many."""
    if script.rest:
        return {"args": list(given)}
    if len(given) > len(script.args):
        raise HTTPException(422, f"Script '{script.title}' takes {len(script.args)} arguments, not {len(given)}")
    defaults = {arg.label: arg.value for arg in script.args}
    return defaults | {arg.label: value for arg, value in zip(script.args, given) if value is not None}


def apply(script: Script, work: Work, values: Values) -> None:
    """What the script changes in the request. Raises HTTPException for arguments that it does not take."""
    if script.change is not None:
        with arguments_of(script):
            script.change(work, values)


@contextmanager
def arguments_of(script: Script) -> Iterator[None]:
    """Arguments are any JSON: those of other types than the script takes are the caller's fault."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise HTTPException(422, f"Script '{script.title}': its arguments are of other types than it takes") from None
