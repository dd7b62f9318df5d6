"""`danqing txt2img`, `img2img`, `inpaint` and `outpaint`: one command, with the options of each kind of request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danqing.cli.options import ENGINE, FILES, MACHINE, PAINTING, QUANTIZE, Sectioned, request_options, with_options
from danqing.errors import DanqingError
from danqing.requests import REQUESTS, Kind, Masked, Painting, TextToImage
from danqing.runtime.start import gc_paused

if TYPE_CHECKING:
    from danqing.families import Model
    from danqing.pipeline.naming import Job
    from danqing.pipeline.picture import Picture
    from danqing.pipeline.series import Event

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
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="3GB", help="the most that painting takes; less is slower", rich_help_panel=MACHINE
        ),
    ] = None,
    engine: ENGINE = None,
    quantize: QUANTIZE = None,
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
    with gc_paused():
        from danqing.cli.show import say
        from danqing.library.settings import load_settings
        from danqing.pipeline.models import load
        from danqing.pipeline.naming import Job
        from danqing.pipeline.outputs import check_output, grid_path, parse_size, picture_path, write_picture
        from danqing.pipeline.picture import Picture
        from danqing.pipeline.picture import grid as make_grid
        from danqing.pipeline.series import check_files, paint_all
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
    if total > 1:
        check_files(requests, settings)
        if settings.output_pattern == type(settings).model_fields["output_pattern"].default:
            alone = first.batch_size * first.n_iter == 1 and first.dynamic != "all"
            settings = settings.model_copy(update={"output_pattern": "[basename]" if alone else "[basename]-[seed]"})
    loading = partial(load, device=device, dtype=dtype, memory=memory, engine=engine, quantize=quantize, say=say)
    loaded = loading(first.model, vae=first.vae, prediction=prediction_type, ema=ema)

    def again(name: str | None) -> Model:
        return loaded if name == first.model else loading(name)

    written: list[Path] = []
    pictures: list[Picture] = []

    def write(picture: Picture, job: Job) -> None:
        pictures.append(picture)
        # what this very command has written is never replaced
        replaces = overwrite and picture_path(picture, output, settings, job, True) not in written
        written.append(write_picture(picture, output, settings, job, overwrite=replaces, metadata=metadata))

    try:
        events = partial(paint_all, load=again, say=say, safety_checker=safety_checker)
        errors, stopped = _follow(events, requests, write)
        failed += errors
        if grid and pictures:
            sheet = Picture(make_grid([p.image for p in pictures]), pictures[0].resolved, pictures[0].hashes)
            path = grid_path(output, written[0])
            written.append(write_picture(sheet, path, settings, Job(), overwrite=overwrite, metadata=metadata))
    finally:
        for path in written:
            typer.echo(f"wrote {path}")
    if stopped:
        raise typer.Exit(130)
    if failed:
        raise DanqingError(f"image: {len(failed)} of {total} pictures were left out; see above")


def _follow(
    paint: Callable[..., Generator[Event, None, None]],
    requests: Sequence[Painting],
    write: Callable[[Picture, Job], None],
) -> tuple[list[str], bool]:
    """`paint` the requests and show how they come along, `write` their pictures; (what went wrong, whether Ctrl-C ended it).

    Raises the error of a single request; of several, one that fails is told and stops no other.
    """
    from danqing.cli.show import finishing_on_interrupt, progress_bar, say
    from danqing.pipeline.naming import Job

    failed: list[str] = []
    sources = [Path(str(getattr(request, "image", ""))) for request in requests]
    count, done, job = len(requests), 0, Job()
    with finishing_on_interrupt() as asked, progress_bar() as bar:
        whole = bar.add_task("pictures", total=None, visible=False)
        part = bar.add_task("painting", total=None)
        side = bar.add_task("", total=None, visible=False)

        def aside(what: str, done: int, total: int) -> None:
            bar.update(side, description=what, completed=done, total=total, visible=done < total)

        events = paint(requests, aside=aside)
        for event in events:
            if event.error is not None:
                if count == 1:
                    raise event.error
                failed.append(str(event.error))
                say(f"left out: {sources[event.index]}: {event.error}")
            elif (progress := event.progress) is not None:
                size, batches = len(progress.latents), progress.batches * count
                finished = event.index * progress.batches + progress.batch + progress.step / progress.steps
                bar.update(whole, total=size * batches, completed=size * finished, visible=size * batches > 1)
                bar.update(part, total=progress.steps, completed=progress.step)
                for picture in progress.pictures:
                    first_seed = picture.resolved.request.seed if done == 0 else job.first_seed
                    job = replace(
                        job,
                        index=done,
                        batch_size=len(progress.pictures),
                        n_iter=batches,
                        first_seed=first_seed,
                        basename=sources[event.index].stem,
                    )
                    write(picture, job)
                    done += 1
            if asked:
                events.close()
                break
    return failed, bool(asked)


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
