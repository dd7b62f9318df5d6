"""`danqing txt2img`, `img2img`, `inpaint` and `outpaint`: one command, with the options of each kind of request."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from danqing.cli.options import FILES, MACHINE, PAINTING, Sectioned, request_options, with_options
from danqing.errors import DanqingError
from danqing.requests import REQUESTS, Kind, Masked, Painting, TextToImage

HELP: dict[Kind, str] = {
    "txt2img": "Paint pictures from a text.",
    "img2img": "Paint pictures over.",
    "inpaint": "Paint anew what a mask covers.",
    "outpaint": "Paint on beyond a picture's edges.",
}
_IMAGE = inspect.Parameter(
    "image",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="the picture to begin with, or a folder of them", rich_help_panel=PAINTING
        ),
    ],
)


def _command(kind: type[Painting]) -> Callable[..., None]:
    """The command that paints requests of one kind."""

    @wraps(_paint)
    def command(**arguments: Any) -> None:
        _paint(kind, **arguments)

    signature = inspect.signature(_paint, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "kind"]
    command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    return command


def _paint(
    kind: type[Painting],
    prompt: Annotated[
        str, typer.Argument(help="in AUTOMATIC1111's prompt language", show_default=False, rich_help_panel=PAINTING)
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH|NAME",
            help="checkpoint; unset is the settings' default, else the bundled model",
            rich_help_panel=PAINTING,
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="width and height at once", rich_help_panel=PAINTING)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="a picture's name (.png, .jpg, .webp, .avif, .jxl), a folder, or a pattern: [date]/[seed].png",
            rich_help_panel=FILES,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="replace what is there; else a name that is taken becomes name-2", rich_help_panel=FILES
        ),
    ] = False,
    grid: Annotated[bool, typer.Option("--grid", help="also write all pictures as one", rich_help_panel=FILES)] = False,
    metadata: Annotated[
        bool | None,
        typer.Option("--metadata/--no-metadata", help="whether pictures say how they were made", rich_help_panel=FILES),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps", rich_help_panel=MACHINE),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="NAME", help="precision: auto, float32, bfloat16 or float16", rich_help_panel=MACHINE
        ),
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            "--prediction-type",
            metavar="NAME",
            help="epsilon, v or sample, where the file's own marks mislead",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="use the checkpoint's EMA weights", rich_help_panel=MACHINE)
    ] = False,
    safety_checker: Annotated[
        bool,
        typer.Option(
            "--safety-checker", help="run the checkpoint's own, and blacken what it flags", rich_help_panel=MACHINE
        ),
    ] = False,
    **fields: Any,
) -> None:
    from dataclasses import replace

    from danqing.cli.show import finishing_on_interrupt, progress_bar, say
    from danqing.library.settings import load_settings
    from danqing.pipeline.models import load
    from danqing.pipeline.naming import Job
    from danqing.pipeline.outputs import check_output, grid_path, parse_size, write_picture
    from danqing.pipeline.paint import stream
    from danqing.pipeline.picture import Picture
    from danqing.pipeline.picture import grid as make_grid
    from danqing.pipeline.sources import read_all

    given = {name: value for name, value in {"prompt": prompt, "model": model, **fields}.items() if value is not None}
    if size is not None:
        if given.keys() & {"width", "height"}:
            raise DanqingError("size: give it by --size, or by --width and --height, not by both")
        given |= parse_size(size)
    requests, failed = read_all(kind, given)
    total = len(requests) + len(failed)
    for line in failed:
        say(f"left out: {line}")
    settings = load_settings()
    check_output(output, settings)
    first = requests[0]
    loaded = load(first.model, vae=first.vae, device=device, dtype=dtype, prediction=prediction_type, ema=ema)
    job = Job()
    written: list[Path] = []
    pictures: list[Picture] = []
    try:
        with finishing_on_interrupt() as asked, progress_bar() as bar:
            task = bar.add_task("painting", total=None)
            for number, request in enumerate(requests):
                try:
                    events = stream(request, loaded, say=say, safety_checker=safety_checker)
                except DanqingError as error:
                    if len(requests) == 1:
                        raise
                    failed.append(str(error))
                    say(f"left out: {error}")
                    continue
                for event in events:
                    whole = event.batches * event.steps
                    done = event.batch * event.steps + event.step
                    bar.update(task, total=len(requests) * whole, completed=number * whole + done)
                    for picture in event.pictures:
                        pictures.append(picture)
                        job = replace(
                            job,
                            index=len(pictures) - 1,
                            batch_size=len(event.pictures),
                            n_iter=event.batches * len(requests),
                            first_seed=pictures[0].resolved.request.seed,
                        )
                        written.append(
                            write_picture(picture, output, settings, job, overwrite=overwrite, metadata=metadata)
                        )
                    if asked:
                        events.close()
                        break
                if asked:
                    break
        if grid and pictures:
            sheet = Picture(make_grid([p.image for p in pictures]), pictures[0].resolved, pictures[0].hashes)
            path = grid_path(output, written[0])
            written.append(write_picture(sheet, path, settings, Job(), overwrite=overwrite, metadata=metadata))
    finally:
        for path in written:
            typer.echo(f"wrote {path}")
    if asked:
        raise typer.Exit(130)
    if failed:
        raise DanqingError(f"image: {len(failed)} of {total} pictures were left out; see above")


_ELSEWHERE = {"prompt", "model", "image"}
"""Fields with an option or argument above."""
COMMANDS = {
    kind: with_options(
        request_options(request, skip=_ELSEWHERE | ({"sd_upscale"} if issubclass(request, Masked) else set())),
        first=[] if request is TextToImage else [_IMAGE],
    )(_command(request))
    for kind, request in REQUESTS.items()
}
"""The command of each kind of request."""


def register(app: typer.Typer) -> None:
    for kind, command in COMMANDS.items():
        app.command(kind, cls=Sectioned, help=HELP[kind])(command)
