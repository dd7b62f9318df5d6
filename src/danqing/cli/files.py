"""`danqing inspect`, `danqing convert`, `danqing models`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

SHOWN = 8


def register(app: typer.Typer) -> None:
    app.command("inspect", help="The model doctor: what a file is, and what is wrong with it.")(inspect)
    app.command("convert", help="Write a checkpoint in another layout, losslessly.")(convert)
    models = typer.Typer(help="The models on this machine.", no_args_is_help=True, rich_markup_mode=None)
    models.command("list", help="Show what is known.")(list_models)
    models.command("add", help="Make models known; download what is not here.")(add_model)
    app.add_typer(models, name="models")


def inspect(
    files: Annotated[
        list[str], typer.Argument(help="model files, diffusers folders, names of models", show_default=False)
    ],
    hashes: Annotated[bool, typer.Option("--hashes", help="also read the whole file for its hashes")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    from danqing.checkpoints.inspect import inspect as look

    reports = [look(_path(text), with_hashes=hashes) for text in files]
    if as_json:
        typer.echo(json.dumps([report.as_dict() for report in reports], ensure_ascii=False, indent=2))
    else:
        typer.echo("\n\n".join("\n".join(_lines(report.as_dict())) for report in reports))
    if not all(report.ok for report in reports):
        raise typer.Exit(2)


def _path(text: str) -> Path:
    """What lies there, sound or not; else the model of that name."""
    from danqing.library.names import find
    from danqing.library.settings import load_settings
    from danqing.paths import path_of

    path = path_of(text)
    return path if path.exists() else find(text, None, load_settings()).path


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """What is known, a line each; of long lists the beginning."""
    for name, value in report.items():
        if value in (None, "", (), [], {}):
            continue
        if isinstance(value, dict):
            value = "; ".join(f"{key}: {_short(str(each))}" for key, each in value.items())
        elif isinstance(value, list | tuple):
            more = f" ... {len(value)} in all" if len(value) > SHOWN else ""
            value = ", ".join(str(each) for each in value[:SHOWN]) + more
        elif name in ("bytes", "parameters"):
            value = f"{value:,}"
        yield f"{name.replace('_', ' ')}: {value}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def convert(
    source: Annotated[
        str, typer.Argument(help="checkpoint file, diffusers folder, name of a model", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(help="new .safetensors, .ckpt, or folder", show_default=False)],
    layout: Annotated[
        str | None, typer.Option("--layout", metavar="ldm|diffusers", help="unset: by the target's suffix")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="of the weights: float16, bfloat16 or float32")
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option("--prediction-type", metavar="epsilon|v|sample", help="write this into the result")
    ] = None,
    vae: Annotated[Path | None, typer.Option("--vae", help="put this autoencoder in")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="take the moving average of the U-Net")] = False,
    variant: Annotated[str | None, typer.Option("--variant", help="of a diffusers folder: fp16")] = None,
) -> None:
    from danqing.checkpoints.save import Layout
    from danqing.checkpoints.save import convert as write
    from danqing.cli.show import say
    from danqing.runtime.devices import DTYPES
    from danqing.vocabulary import choose

    chosen = None if layout is None else choose("layout", layout, get_args(Layout))
    precision = None if dtype is None else DTYPES[choose("dtype", dtype, list(DTYPES))]
    done = write(
        _path(source), target,
        layout=chosen, dtype=precision, prediction_type=prediction_type, vae=vae, ema=ema, variant=variant,
    )  # fmt: skip
    typer.echo(f"wrote {done.target}: {done.family}, {done.layout}, {done.tensors} tensors, {done.bytes / 1e6:.1f} MB")
    for note in done.notes:
        say(note)


def list_models(
    kind: Annotated[str | None, typer.Option("--kind", help="checkpoint, lora, vae ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    from danqing.library.folders import BUNDLED, Kind
    from danqing.library.listing import list_models as rows_of
    from danqing.library.settings import load_settings
    from danqing.vocabulary import choose

    settings = load_settings()
    rows = rows_of(settings, None if kind is None else choose("kind", kind, get_args(Kind)))
    if as_json:
        fields = [{**row.__dict__, "path": str(row.path)} for row in rows]
        typer.echo(json.dumps(fields, ensure_ascii=False, indent=2))
        return
    for row in rows:
        problem = f"  ! {row.problem}" if row.problem else ""
        typer.echo(f"{row.name}  {row.kind}  {row.family or '-'}  {row.size / 1e6:.0f} MB  {row.source}{problem}")
    if all(row.path == BUNDLED.path for row in rows):
        typer.echo(
            f"none of yours yet; danqing models add PATH|URL|hf:OWNER/NAME|civitai:ID (settings: {settings.path})"
        )


def add_model(
    source: Annotated[
        str, typer.Argument(help="PATH, https://..., hf:OWNER/NAME[@REVISION][/FILE], civitai:ID", show_default=False)
    ],
    sha256: Annotated[str | None, typer.Option("--sha256", help="what the file must have")] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="the site's access token", envvar="DANQING_TOKEN")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="where the file does not tell: checkpoint, lora ...")
    ] = None,
    full: Annotated[bool, typer.Option("--full-precision", help="of the Hub: not its fp16 files")] = False,
) -> None:
    from danqing.cli.show import download_bar
    from danqing.library.download import add
    from danqing.library.folders import Kind
    from danqing.library.settings import load_settings
    from danqing.vocabulary import choose

    chosen = None if kind is None else choose("kind", kind, get_args(Kind))
    with download_bar() as progress:
        entry = add(
            source,
            settings=load_settings(),
            progress=progress,
            sha256=sha256,
            token=token,
            kind=chosen,
            variant=None if full else "fp16",
        )
    typer.echo(f"{entry.name}: {entry.kind}, {entry.path}")
