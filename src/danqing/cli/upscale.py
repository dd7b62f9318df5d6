"""`danqing upscale`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danqing.cli.options import FILES, MACHINE, PAINTING, Sectioned, request_options, with_options
from danqing.errors import DanqingError
from danqing.requests import Upscale


def register(app: typer.Typer) -> None:
    app.command("upscale", cls=Sectioned, help="Make pictures larger, and restore faces.")(upscale)


@with_options(request_options(Upscale, skip=set()))
def upscale(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            metavar="PICTURE|FOLDER...",
            help="pictures, or folders of them",
            show_default=False,
            rich_help_panel=PAINTING,
        ),
    ],
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="width and height at once", rich_help_panel=PAINTING)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="a picture's name, or a folder; unset is the settings' output folder",
            rich_help_panel=FILES,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="replace what is there; else a name that is taken becomes name-2", rich_help_panel=FILES
        ),
    ] = False,
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
            "--dtype", metavar="NAME", help="precision: float32, bfloat16 or float16", rich_help_panel=MACHINE
        ),
    ] = None,
    **fields: str | None,
) -> None:
    from danqing.cli.show import finishing_on_interrupt, progress_bar, say
    from danqing.library.settings import load_settings
    from danqing.metadata.files import free_name
    from danqing.pipeline.extras import enhance_file, enhancer, pictures_in
    from danqing.pipeline.naming import is_pattern
    from danqing.pipeline.outputs import check_output, names_picture, parse_size
    from danqing.requests import read

    given = {name: value for name, value in fields.items() if value is not None}
    if size is not None:
        if given.keys() & {"width", "height"}:
            raise DanqingError("size: give it by --size, or by --width and --height, not by both")
        given |= parse_size(size)
    request = read(Upscale, given)
    settings = load_settings()
    if output is not None and is_pattern(str(output)):
        raise DanqingError(f"{output}: patterns name painted pictures; give --output a name or a folder")
    check_output(output, settings)
    sources = pictures_in(pictures)
    one = output if output is not None and names_picture(output) else None
    if one is not None and len(sources) > 1:
        raise DanqingError(f"{one}: there are {len(sources)} pictures; give a folder by --output")
    enhance = enhancer(request, device=device, dtype=dtype, say=say, settings=settings)
    with_metadata = settings.write_metadata if metadata is None else metadata
    failed: list[str] = []
    with finishing_on_interrupt() as asked, progress_bar() as bar:
        whole = bar.add_task("pictures", total=len(sources))
        part = bar.add_task("tiles", total=None)
        for source in sources:
            target = one or (output or settings.output_folder) / f"{source.stem}.{settings.output_format}"
            target = target if overwrite else free_name(target)
            try:
                enhance_file(
                    source,
                    target,
                    enhance,
                    request,
                    lambda done, total: bar.update(part, completed=done, total=total),
                    with_metadata,
                    quality=settings.picture_quality,
                    lossless=settings.picture_lossless,
                )
                typer.echo(f"wrote {target}")
            except DanqingError as error:
                if len(sources) == 1:
                    raise
                failed.append(str(error))
                say(str(error))
            bar.advance(whole)
            if asked:
                raise typer.Exit(130)
    if failed:
        raise DanqingError(f"{len(failed)} of {len(sources)} pictures were left out")
