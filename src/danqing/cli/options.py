"""Command-line options made from a request class: one per field, so that both always agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

Command = Callable[..., None]

_SHORT = {
    # field -> what people type; the field's own name works as well
    "sampler_name": "--sampler",
    "n_iter": "--batch-count",
    "tiling": "--tiling",
    "eta_noise_seed_delta": "--ensd",
}


def _metavar(annotation: Any) -> str:
    """How a field's type is shown in the help."""
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    inner = [arg for arg in get_args(annotation) if arg is not type(None)]
    if inner:
        return _metavar(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ",".join(annotation.model_fields).upper()
    return {int: "N", float: "X"}.get(annotation, "TEXT")


def request_options(request: type[BaseModel], skip: set[str]) -> list[inspect.Parameter]:
    """A keyword parameter for each field of `request` but those in `skip`.

    All are taken as text: the request class alone says what is valid, in one place and in one form.
    """
    parameters = []
    for name, info in request.model_fields.items():
        if name in skip:
            continue
        flags = [f"--{name.replace('_', '-')}"]
        if name in _SHORT and _SHORT[name] not in flags:
            flags.insert(0, _SHORT[name])
        shown = info.description or ""
        if info.default not in (None, "", "none"):
            shown = f"{shown} [default: {info.default}]".strip()
        option = typer.Option(*flags, metavar=_metavar(info.annotation), help=shown, show_default=False)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
            )
        )
    return parameters


def with_options(parameters: list[inspect.Parameter]) -> Callable[[Command], Command]:
    """Give a command that takes `**fields` the explicit parameters that typer reads."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        every = [*own, *parameters]
        command.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in every}
        return command

    return decorate
