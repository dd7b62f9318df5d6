"""`danqing evaluate bundled`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="Scores of models.", no_args_is_help=True, rich_markup_mode=None)
    commands.callback()(lambda: None)  # a group even while there is one command in it
    commands.command("bundled", help="Measure a model of the emoji drawings on pairs it was never trained on.")(bundled)
    app.add_typer(commands, name="evaluate")


def bundled(
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="made by danqing dataset emoji", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="PATH|NAME", help="unset is the bundled model")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option("--judge", metavar="FOLDER", help="a trained judge; unset is the bundled one")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", metavar="FILE", help="list of pairs; unset is the bundled one")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="pictures of each pair in each language")] = 4,
    pairs: Annotated[int | None, typer.Option("--pairs", metavar="N", help="so many pairs; unset is all")] = None,
    frechet: Annotated[
        int, typer.Option("--frechet", metavar="N", help="pictures for the Fréchet distance; 0 leaves it out")
    ] = 1000,
    cfg_pairs: Annotated[
        int, typer.Option("--cfg-pairs", metavar="N", help="pairs painted at CFG 1, 3, 5 and 7; 0 leaves that out")
    ] = 80,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="sampling steps; unset is the model's")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="PICTURE", help="write painted, real and nearest training pictures"),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the scores there")] = None,
) -> None:
    from danqing.cli.show import progress_bar, say
    from danqing.evaluate.bundled import HELD_OUT, JUDGE, Amount, Row, evaluate, read_held_out, write_scores
    from danqing.evaluate.judge import load_judge
    from danqing.evaluate.sheet import contact_sheet
    from danqing.metadata.files import check_suffix, save
    from danqing.pipeline.models import load
    from danqing.train.held_out import drawings

    if sheet is not None:
        check_suffix(sheet)
    amount = Amount(seeds=seeds, pairs=pairs, frechet=frechet, cfg_pairs=cfg_pairs, steps=steps)
    asked = read_held_out(held_out or HELD_OUT)
    network = load_judge(judge or JUDGE)
    loaded = load(model)
    training, real = drawings(data, asked, loaded.family.defaults.width)
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        typer.echo(str(row))

    with progress_bar() as bar:
        task = bar.add_task("painting", total=None)
        shown = evaluate(
            loaded, network, training, real, amount,
            tell=tell, show=lambda done, total: bar.update(task, completed=done, total=total), say=say,
        )  # fmt: skip
    typer.echo("In brackets: 95% of 2,000 bootstrap resamples of the pairs.")
    if sheet is not None:
        save(contact_sheet(shown), sheet, None, None)
        typer.echo(f"wrote {sheet}")
    if as_json is not None:
        write_scores(rows, as_json)
        typer.echo(f"wrote {as_json}")
