"""What a picture tells of how it was made, whichever tool made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from danqing.errors import DanqingError
from danqing.request_parts import Reference
from danqing.requests import REQUESTS, Kind, Painting, ResolvedRequest, read
from danqing.vocabulary import quoted

UNRECORDED = Reference(name="")
"""Stands for a picture that took part, of which the metadata tells nothing."""


@dataclass(frozen=True)
class Told:
    """A picture's request, as far as its metadata tells."""

    tool: str
    """`Danqing`, `AUTOMATIC1111`, `ComfyUI` ..."""
    request: Painting
    checkpoint: Reference | None = None
    """Another tool's hash is often the first 10 digits only."""
    vae: Reference | None = None
    others: Mapping[str, Reference] = field(default_factory=dict)
    """As `ResolvedRequest.others`."""
    notes: tuple[str, ...] = ()
    """What could not be told, or has no counterpart here."""
    resolved: ResolvedRequest | None = None
    """Danqing's own record, where the picture carries one."""


def build(kind: Kind, fields: Mapping[str, Any], notes: list[str]) -> Painting:
    """The request with all of `fields` that are valid; each that is not is left out, and `notes` says so.

    Raises DanqingError where without a field that is not valid there is no request at all.
    """
    cls = REQUESTS[kind]
    given = {name: value for name, value in fields.items() if value is not None}
    if "image" in cls.model_fields:
        given.setdefault("image", UNRECORDED)
    if _problem(cls, given) is None:
        return read(cls, given)
    needed = ("image", "left", "right", "up", "down")  # without which no other field can be tried
    kept = {name: given[name] for name in needed if name in given}
    problems: dict[str, str] = {}
    for name in (*given, *given):  # twice: some are valid only beside others
        problem = _problem(cls, {**kept, name: given[name]}, name)
        if problem is None:
            kept[name] = given[name]
            problems.pop(name, None)
        else:
            problems[name] = problem
    notes += problems.values()
    return read(cls, kept)


def _problem(cls: type[Painting], fields: Mapping[str, Any], name: str = "") -> str | None:
    """Why `fields` are no request; `name` is the one that is to blame."""
    try:
        cls.model_validate(fields)
    except DanqingError as error:
        return f"{name}: left to the default: {error}"
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Input ").removeprefix("Value error, ")
        return f"{name}: left to the default: {what}, but it is {quoted(fields.get(name))}"
    return None


def load_json(text: str, what: str) -> Any:
    """The JSON that `text` holds. Raises DanqingError where it is none, or nested without end."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DanqingError(f"{what}: no valid JSON: {str(error).splitlines()[0]}") from None


def load_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object that `text` holds. Raises DanqingError where it is none."""
    value = load_json(text, what)
    if not isinstance(value, dict):
        raise DanqingError(f"{what}: should be a JSON object, but it is {quoted(value)}")
    return value
