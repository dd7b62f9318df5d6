"""`danqing txt2img`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danqing.cli.options import request_options, with_options
from danqing.requests import TextToImage


def register(app: typer.Typer) -> None:
    app.command("txt2img", help="Paint pictures from a text.")(txt2img)


@with_options(request_options(TextToImage, skip={"prompt", "model"}))
def txt2img(
    prompt: Annotated[str, typer.Argument(help="what to paint", show_default=False)] = "",
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="PATH|NAME", help="checkpoint")] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="width and height at once")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="a picture's name, or a folder")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is there")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="also write all pictures as one")] = False,
    metadata: Annotated[bool | None, typer.Option("--metadata/--no-metadata", help="what a picture says of itself")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda|mps")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="auto|float32|bfloat16|float16")] = None,
    prediction_type: Annotated[
        str | None, typer.Option("--prediction-type", metavar="epsilon|v", help="where the file's own marks mislead")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="use the checkpoint's EMA weights")] = False,
    safety_checker: Annotated[bool, typer.Option("--safety-checker", help="run the checkpoint's own")] = False,
    **fields: str | None,
) -> None:
    from danqing.cli.show import paint_and_save

    given = {name: value for name, value in fields.items() if value is not None}
    paint_and_save(
        {"prompt": prompt, "model": model, **given},
        size=size,
        output=output,
        overwrite=overwrite,
        grid=grid,
        metadata=metadata,
        device=device,
        dtype=dtype,
        prediction=prediction_type,
        ema=ema,
        safety_checker=safety_checker,
    )
