"""`danqing txt2img`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danqing.cli.options import FILES, MACHINE, PAINTING, Sectioned, request_options, with_options
from danqing.errors import DanqingError
from danqing.requests import TextToImage


def register(app: typer.Typer) -> None:
    app.command("txt2img", cls=Sectioned, help="Paint pictures from a text.")(txt2img)


@with_options(request_options(TextToImage, skip={"prompt", "model"}))
def txt2img(
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
            help="epsilon or v, where the file's own marks mislead",
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
    **fields: str | None,
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
    from danqing.requests import read

    given = {name: value for name, value in {"prompt": prompt, "model": model, **fields}.items() if value is not None}
    if size is not None:
        if given.keys() & {"width", "height"}:
            raise DanqingError("size: give it by --size, or by --width and --height, not by both")
        given |= parse_size(size)
    request = read(TextToImage, given)
    settings = load_settings()
    check_output(output, settings)
    loaded = load(
        request.model, vae=request.vae, device=device, dtype=dtype, prediction=prediction_type, ema=ema, say=say
    )
    job = Job()
    written: list[Path] = []
    pictures: list[Picture] = []
    try:
        with finishing_on_interrupt() as asked, progress_bar() as bar:
            task = bar.add_task("painting", total=None)
            events = stream(request, loaded, say=say, safety_checker=safety_checker)
            for event in events:
                bar.update(task, total=event.batches * event.steps, completed=event.batch * event.steps + event.step)
                for picture in event.pictures:
                    pictures.append(picture)
                    job = replace(
                        job,
                        index=len(pictures) - 1,
                        batch_size=len(event.pictures),
                        n_iter=event.batches,
                        first_seed=pictures[0].resolved.request.seed,
                    )
                    written.append(
                        write_picture(picture, output, settings, job, overwrite=overwrite, metadata=metadata)
                    )
                if asked:
                    events.close()
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
