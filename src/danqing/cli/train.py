"""`danqing train clip | autoencoder | diffusion | judge | recipe`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from danqing.errors import DanqingError

WHOLE = "recipe"
COMMANDS = {
    "clip": "Train CLIP's two towers and their vocabulary.",
    "autoencoder": "Train the autoencoder. Its likeness is measured by the CLIP stage.",
    "diffusion": "Train the U-Net, on the results of both stages before.",
    "judge": "Train the network that names what was painted, for `danqing evaluate`.",
    WHOLE: "Train all stages that the recipe has, in turn.",
}


def register(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="Train a model from nothing. What was stopped goes on from its last saved state.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, text in COMMANDS.items():
        commands.command(name, help=text)(_command(name))
    app.add_typer(commands, name="train")


def _command(name: str) -> Callable[..., None]:
    """The command of one stage, or of all."""

    def command(
        recipe: Annotated[Path, typer.Argument(help="a recipe (TOML); recipes/ has some", show_default=False)],
        runs: Annotated[
            Path, typer.Option("--runs", metavar="FOLDER", help="where states and results go, by the recipe's name")
        ] = Path("runs"),
        minutes: Annotated[
            float | None, typer.Option("--for", metavar="MINUTES", help="then save the state and stop")
        ] = None,
    ) -> None:
        _train(recipe, name, runs, minutes)

    return command


def _train(path: Path, name: str, runs: Path, minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise DanqingError(f"for: {minutes:g} minutes; give more than 0")
    for module in ("accelerate", "tensorboard"):
        if find_spec(module) is None:
            raise DanqingError(f"training needs {module}: pip install 'danqing[train]'")
    from danqing.train.recipe import read_recipe

    recipe = read_recipe(path)
    # the networks are imported when it is known what to do with them
    from danqing.cli.show import finishing_on_interrupt, training_bar
    from danqing.train.stages import planned, train

    stages = planned(recipe) if name == WHOLE else (name,)
    seconds = None if minutes is None else 60 * minutes
    other = os.environ.get("RANK", "0") != "0"  # `accelerate launch` starts a process for each device; one tells
    with finishing_on_interrupt("the state is saved") as asked, training_bar(quiet=other) as (show, say):
        finished = train(recipe, stages, runs, show=show, say=say, stop_after=seconds, stop=lambda: bool(asked))
    lines = [f"finished: {runs / recipe.name / stage / 'result'}" for stage in stages]
    if not other:
        typer.echo("\n".join(lines) if finished else "not finished; the same command goes on")
    if asked and not finished:
        raise typer.Exit(130)
