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
    metadata: Annotated[
        bool | None, typer.Option("--metadata/--no-metadata", help="whether pictures say how they were made")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda|mps")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="auto|float32|bfloat16|float16")] = None,
    prediction_type: Annotated[
        str | None, typer.Option("--prediction-type", metavar="epsilon|v", help="where the file's own marks mislead")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="use the checkpoint's EMA weights")] = False,
    safety_checker: Annotated[bool, typer.Option("--safety-checker", help="run the checkpoint's own")] = False,
    **fields: str | None,
) -> None:
    from danqing.cli.show import console, finishing_on_interrupt, progress_bar, say
    from danqing.library.settings import load_settings
    from danqing.pipeline.models import load
    from danqing.pipeline.outputs import check_output, parse_size, picture_path
    from danqing.pipeline.paint import stream
    from danqing.pipeline.picture import Picture
    from danqing.pipeline.picture import grid as make_grid
    from danqing.requests import read

    given = {"prompt": prompt, "model": model, **(parse_size(size) if size else {}), **fields}
    request = read(TextToImage, {name: value for name, value in given.items() if value is not None})
    check_output(output)
    settings = load_settings()
    with_metadata = settings.write_metadata if metadata is None else metadata
    loaded = load(
        request.model, vae=request.vae, device=device, dtype=dtype, prediction=prediction_type, ema=ema, say=say
    )
    total = request.batch_size * request.n_iter
    written: list[Path] = []
    pictures: list[Picture] = []
    with finishing_on_interrupt() as asked, progress_bar() as bar:
        task = bar.add_task("painting", total=None)
        events = stream(request, loaded, say=say, safety_checker=safety_checker)
        for event in events:
            bar.update(task, total=event.batches * event.steps, completed=event.batch * event.steps + event.step)
            for picture in event.pictures:
                seed = picture.resolved.request.seed or 0
                path = picture_path(output, settings.output_folder, seed, len(written), total, overwrite)
                written.append(picture.save(path, metadata=with_metadata))
                pictures.append(picture)
            if asked:
                events.close()
                break
    if grid and pictures:
        sheet = Picture(make_grid([p.image for p in pictures]), pictures[0].resolved, pictures[0].hashes)
        path = written[0].with_stem(f"{written[0].stem}-grid")
        written.append(sheet.save(path, metadata=with_metadata, overwrite=overwrite))
    for path in written:
        console.print(f"wrote {path}", markup=False)
    if asked:
        raise KeyboardInterrupt
