"""`danqing plot` and `danqing styles`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danqing.cli.options import FILES, MACHINE, PAINTING, Sectioned, request_options, with_options
from danqing.errors import DanqingError
from danqing.requests import REQUESTS

if TYPE_CHECKING:
    from danqing.pipeline.plot import Plot

PLOT = "What to compare"
_X = "columns, as TITLE=VALUES: a field of the request or AUTOMATIC1111's label, and its values: Steps=10-30 (+10)"


def register(app: typer.Typer) -> None:
    app.command("plot", cls=Sectioned, help="Paint a prompt many times over, and a labelled grid of it all.")(plot)
    app.command("styles", help="List styles and wildcards.")(styles)


def _every_option() -> list[inspect.Parameter]:
    """One option for each field of any kind of request."""
    options = [option for kind in REQUESTS.values() for option in request_options(kind, skip={"prompt", "model"})]
    return list({option.name: option for option in reversed(options)}.values())[::-1]


def _plot_option(*flags: str, help: str, **more: Any) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=PLOT, **more)


@with_options(_every_option())
def plot(
    prompt: Annotated[
        str, typer.Argument(help="in AUTOMATIC1111's prompt language", show_default=False, rich_help_panel=PAINTING)
    ] = "",
    x: Annotated[str, _plot_option("--x", help=_X, show_default=False)] = "",
    y: Annotated[str, _plot_option("--y", help="rows, likewise", show_default=False)] = "",
    z: Annotated[str, _plot_option("--z", help="grids side by side, likewise", show_default=False)] = "",
    matrix: Annotated[
        bool, _plot_option("--matrix", help="prompt matrix: `a | b | c` is a with every subset of b and c")
    ] = False,
    matrix_negative: Annotated[bool, _plot_option("--matrix-negative", help="the same of the negative prompt")] = False,
    prompts_file: Annotated[
        Path | None, _plot_option("--prompts-file", help="a prompt on each line, or a line of --option value")
    ] = None,
    kind: Annotated[str, _plot_option("--kind", metavar="NAME", help=f"what is painted: {', '.join(REQUESTS)}")] = (
        "txt2img"
    ),
    vary_seeds: Annotated[
        str, _plot_option("--vary-seeds", metavar="xyz", help="axes along which the seed counts up", show_default=False)
    ] = "",
    random_seeds: Annotated[
        bool, _plot_option("--random-seeds", help="draw a seed for each picture; else all have one")
    ] = False,
    iterate_seeds: Annotated[
        bool, _plot_option("--iterate-seeds", help="--prompts-file and --matrix: count seeds from line to line")
    ] = False,
    legend: Annotated[bool, _plot_option("--legend/--no-legend", help="whether the grid has labels")] = True,
    margin: Annotated[int, _plot_option("--margin", min=0, max=500, help="pixels between the grid's pictures")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="PATH|NAME", help="checkpoint", rich_help_panel=PAINTING)
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
            help="the grid's name, or a folder; each picture's name adds its column and row",
            rich_help_panel=FILES,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace what is there", rich_help_panel=FILES)
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
        typer.Option("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16", rich_help_panel=MACHINE),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="3GB", help="the most that painting takes; less is slower", rich_help_panel=MACHINE
        ),
    ] = None,
    **fields: Any,
) -> None:
    from functools import partial

    from danqing.cli.show import say
    from danqing.library.settings import load_settings
    from danqing.pipeline import plot as plots
    from danqing.pipeline.models import load
    from danqing.pipeline.outputs import check_output, names_picture, parse_size
    from danqing.requests import read
    from danqing.vocabulary import choose

    if sum([bool(x or y or z), matrix or matrix_negative, prompts_file is not None]) != 1:
        raise DanqingError("plot: give axes (--x, --y, --z), --matrix or --prompts-file: one of them")
    if iterate_seeds and (x or y or z):
        raise DanqingError("iterate_seeds: along axes seeds count up by --vary-seeds xyz")
    if (vary_seeds or random_seeds) and not (x or y or z):
        raise DanqingError("vary_seeds, random_seeds: need an axis; --iterate-seeds is for the others")
    given = {name: value for name, value in {"prompt": prompt, "model": model, **fields}.items() if value is not None}
    if size is not None:
        if given.keys() & {"width", "height"}:
            raise DanqingError("size: give it by --size, or by --width and --height, not by both")
        given |= parse_size(size)
    request = read(REQUESTS[choose("kind", kind, list(REQUESTS))], given)
    settings = load_settings()
    check_output(output, settings)
    if prompts_file is not None:
        made = plots.from_file(request, prompts_file, iterate_seeds=iterate_seeds, say=say)
    elif matrix or matrix_negative:
        made = plots.matrix(request, negative=matrix_negative, different_seeds=iterate_seeds)
    else:
        made = plots.xyz(request, x, y, z, fixed_seeds=not random_seeds, vary_seeds=vary_seeds)
    loading = partial(load, device=device, dtype=dtype, memory=memory)
    with_metadata = settings.write_metadata if metadata is None else metadata
    output = output or settings.output_folder
    target = output if names_picture(output) else output / f"plot.{settings.output_format}"
    quality = {"quality": settings.picture_quality, "lossless": settings.picture_lossless}
    _paint(made, loading, target, overwrite, with_metadata, quality, legend, margin)


def _paint(
    made: Plot,
    loading: Any,
    target: Path,
    overwrite: bool,
    with_metadata: bool,
    quality: dict[str, Any],
    legend: bool,
    margin: int,
) -> None:
    """Paint and write each picture as it comes; then the grid of all there are."""
    from danqing.cli.show import finishing_on_interrupt, progress_bar, say
    from danqing.metadata import files
    from danqing.pipeline.picture import Picture
    from danqing.pipeline.plot import Place, paint_plot, sheet, sheet_infotext

    target = target if overwrite else files.free_name(target)
    pictures: dict[Place, list[Picture]] = {}
    errors: list[DanqingError] = []
    try:
        with finishing_on_interrupt() as asked, progress_bar() as bar:
            whole = bar.add_task("pictures", total=made.count)
            part = bar.add_task("painting", total=None)
            events = paint_plot(made, load=loading, say=say)
            for event in events:
                if event.error is not None:
                    errors.append(event.error)
                    say(f"{_where(made, event.cell.place)} is left white: {event.error}")
                    bar.update(whole, completed=event.index + 1)
                elif (progress := event.progress) is not None:
                    share = (progress.batch + progress.step / progress.steps) / progress.batches
                    bar.update(whole, completed=event.index + share)
                    bar.update(part, total=progress.steps, completed=progress.step)
                    for picture in progress.pictures:
                        found = pictures.setdefault(event.cell.place, [])
                        found.append(picture)
                        name = "-".join([target.stem, *_numbers(made, event.cell.place, len(found))])
                        path = target.with_name(name + target.suffix)
                        path = picture.save(path, metadata=with_metadata, overwrite=overwrite, **quality)
                        typer.echo(f"wrote {path}")
                if asked:
                    events.close()
                    break
    finally:
        if pictures:
            images = {place: [picture.image for picture in found] for place, found in pictures.items()}
            grid = sheet(made, images, legend=legend, margin=margin, note=say)
            first = pictures[min(pictures, key=lambda place: place[::-1])][0]
            files.save(grid, target, sheet_infotext(made, first) if with_metadata else None, None, **quality)
            typer.echo(f"wrote {target}")
    if asked:
        raise typer.Exit(130)
    if errors:
        raise DanqingError(f"plot: {len(errors)} of {made.count} could not be painted; the first: {errors[0]}")


def _numbers(made: Plot, place: tuple[int, int, int], count: int) -> list[str]:
    """What a picture's name adds to the grid's: column, row and sheet from 1, and its number in a cell of several."""
    digits = [str(n + 1) for n, many in zip(place, (True, True, len(made.sheets) > 1)) if many]
    return [*digits, f"n{count}"] if count > 1 else digits


def _where(made: Plot, place: tuple[int, int, int]) -> str:
    """A cell in words."""
    return f"column {place[0] + 1}, row {place[1] + 1}" + (f", grid {place[2] + 1}" if len(made.sheets) > 1 else "")


def styles(
    file: Annotated[Path | None, typer.Argument(help="a .csv or .json of styles; unset is all that are known")] = None,
) -> None:
    from danqing.library.settings import load_settings
    from danqing.pipeline.expand import roots, style_places, wildcard_places
    from danqing.prompts.styles import all_styles

    settings = load_settings()
    found = all_styles([file] if file else style_places(settings))
    for style in found:
        typer.echo(f"{style.name}  ({style.path})")
        for label, text in (("prompt", style.prompt), ("negative", style.negative_prompt)):
            if text:
                typer.echo(f"    {label}: {' '.join(text.split())}")
    if file is not None:
        return
    folders = wildcard_places(settings)
    for folder in folders:
        typer.echo(f"wildcards in {folder}:")
        for path in sorted(folder.rglob("*")):
            if path.suffix == ".txt":
                typer.echo(f"    __{path.relative_to(folder).with_suffix('').as_posix()}__")
            elif path.suffix in (".json", ".yaml"):
                typer.echo(f"    {path.relative_to(folder).as_posix()}")
    if not found or not folders:
        missing = " and ".join(["styles"] * (not found) + ["wildcards"] * (not folders))
        places = ", ".join(map(str, roots(settings)))
        typer.echo(f"no {missing} found; put styles.csv, styles/*.json or wildcards/NAME.txt into one of: {places}")
