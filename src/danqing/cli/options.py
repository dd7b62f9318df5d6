"""Command-line options made from a request class: one per field, so that both always agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

Command = Callable[..., None]

_SHORT = {
    # field -> what people type; the field's own name works as well
    "sampler_name": "--sampler",
    "n_iter": "--batch-count",
    "eta_noise_seed_delta": "--ensd",
    "styles": "--style",
}
_REPEATED = {"styles"}
"""Fields of many values, whose option is given once for each."""
UNASKED = {"template"}
"""Fields that Danqing writes itself."""


PAINTING, FILES, MACHINE = "What to paint", "Where pictures go", "How it runs"
ENGINE = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="what runs the denoiser: auto, eager, compile or openvino [default: the settings', eager]",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
QUANTIZE = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="NAME",
        help="its eight bits, by OpenVINO or torchao: none, int8-weights, int8; fp8 on new GPUs",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
_SECTIONS = {
    # A request's fields come in blocks, each under a heading of the help: its first field -> the heading.
    "prompt": PAINTING,
    "subseed": "Seeds and noise",
    "clip_skip": "How the prompt is read, and whose details are followed",
    "guidance_rescale": "Guidance",
    "eta": "Details of samplers and schedules",
    "original_width": "What SDXL is told of the picture",
    "model": PAINTING,
    "refiner_checkpoint": "Refiner and detailers",
    "enable_hr": "Hires fix",
    "image": "The picture to begin with",
    "mask_blur": "Mask",
    "left": "Where to paint on",
}


class Sectioned(TyperCommand):
    """A command whose help shows its options under headings: typer's own do so only in boxes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Other", []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _bare(annotation: Any) -> Any:
    """A field's type without Annotated and None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return annotation
    inner = [arg for arg in get_args(annotation) if arg is not type(None)]
    return _bare(inner[0]) if inner else annotation


def _metavar(kind: Any) -> str:
    """How a field's type is shown in the help."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return ",".join("X" for _ in kind.model_fields)
    return {int: "N", float: "X", bool: "yes|no", str: "TEXT"}.get(kind, "NAME")


def _help(description: str, kind: Any, default: Any) -> str:
    if get_origin(kind) is Literal:
        description += f": {', '.join(get_args(kind))}"
    return f"{description} [default: {default}]" if default and default != "none" else description


def request_options(request: type[BaseModel], skip: set[str]) -> list[inspect.Parameter]:
    """A keyword parameter for each field of `request` but those in `skip`.

    All are taken as text: the request class alone says what is valid, in one place and in one form.
    """
    parameters = []
    section = None
    for name, info in request.model_fields.items():
        section = _SECTIONS.get(name, section)
        if name in skip | UNASKED:
            continue
        kind = _bare(info.annotation)
        flags = [f"--{name.replace('_', '-')}"]
        if name in _SHORT:
            flags.insert(0, _SHORT[name])
        many = name in _REPEATED
        option = typer.Option(
            *flags,
            metavar=_metavar(kind),
            help=_help(info.description or "", kind, info.default),
            show_default=False,
            rich_help_panel=section,
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[list[str] | None if many else str | None, option],
            )
        )
    return parameters


def with_options(
    parameters: list[inspect.Parameter], first: list[inspect.Parameter] | None = None
) -> Callable[[Command], Command]:
    """Give a command that takes `**fields` the explicit parameters that typer reads; `first` come before its own."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        every = [*(first or []), *own, *parameters]
        command.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in every}
        return command

    return decorate
