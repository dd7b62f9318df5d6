"""`danqing pnginfo`, `danqing replay`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("pnginfo", help="Print how pictures were made, whichever tool made them.")(pnginfo)
    app.command("replay", help="Paint pictures again, and say whether they came out the same.")(replay)


def pnginfo(
    files: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="the pictures", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print the whole record as JSON, a line each")] = False,
) -> None:
    from danqing.cli.show import say
    from danqing.metadata.files import read_picture
    from danqing.metadata.read import as_dict, as_infotext, tell

    for path in files:
        file = read_picture(path)
        told = tell(file)
        if as_json:
            typer.echo(json.dumps(as_dict(told), ensure_ascii=False))
            continue
        if len(files) > 1:
            typer.echo(f"# {path}")
        written = file.texts.get("parameters", "")
        typer.echo(written if written and not written.lstrip().startswith("{") else as_infotext(told))
        if told.tool != "Danqing":
            say(f"painted by {told.tool}")
            for note in told.notes:
                say(note)


def replay(
    files: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="the pictures", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="also write what was painted, as txt2img does")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="PATH|NAME", help="checkpoint, in place of the recorded one"),
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="the picture it was painted from")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="the mask it was painted with")] = None,
    subimage: Annotated[Path | None, typer.Option("--subimage", help="the second picture of an inversion")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="NAME", help="unset is the recorded one")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="unset is the recorded one")] = None,
) -> None:
    from danqing.cli.show import say
    from danqing.library.settings import load_settings
    from danqing.pipeline.naming import Job
    from danqing.pipeline.outputs import check_output, write_picture
    from danqing.pipeline.replay import replay as paint_again

    settings = load_settings()
    if output is not None:
        check_output(output, settings)
    given = {"image": image, "mask": mask, "subimage": subimage}
    same = True
    for index, path in enumerate(files):
        again = paint_again(
            path,
            name=model,
            images={field: source for field, source in given.items() if source is not None},
            device=device,
            dtype=dtype,
            say=say,
        )
        words = {True: "identical", False: "differs", None: "painted; the file's pixels are not as they were painted"}
        typer.echo(f"{path}: {words[again.identical]}")
        for line in again.differences:
            typer.echo(f"  {line}")
        if output is not None:
            where = write_picture(again.picture, output, settings, Job(index, len(files)))
            typer.echo(f"wrote {where}")
        same = same and again.identical is not False
    if not same:
        raise typer.Exit(1)
