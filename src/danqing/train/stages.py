"""The stages of a recipe, in their order: what `danqing train clip | autoencoder | diffusion | recipe` run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.train.autoencoder import AutoencoderStage
from danqing.train.check import refuse
from danqing.train.clip import ClipStage
from danqing.train.dataset import Item, read_dataset, split
from danqing.train.diffusion import DiffusionStage
from danqing.train.judge import JudgeStage
from danqing.train.loop import FREE, RESULT, STATES, Show, Stage, run
from danqing.train.recipe import Loop, Recipe

STAGES = ("clip", "autoencoder", "diffusion", "judge")


def planned(recipe: Recipe) -> tuple[str, ...]:
    """The stages that the recipe has a section for, in their order."""
    return tuple(name for name in STAGES if getattr(recipe, name) is not None)


def train(
    recipe: Recipe,
    stages: tuple[str, ...],
    runs: Path,
    *,
    show: Callable[[str], Show],
    say: Callable[[str], None],
    stop_after: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train the stages of the recipe in turn, in `runs/<recipe's name>/<stage>`; what is finished is passed over.

    show: for a stage's name, what its progress is told to. stop_after: seconds for all of them; `stop` is asked after
    each update whether to end as well. Returns whether all are finished. Raises DanqingError: unknown stage, bad data,
    a stage whose predecessor has not finished, another recipe's state.
    """
    end = None if stop_after is None else time.monotonic() + stop_after
    items = read_dataset(recipe.data.folder)
    folder = runs / recipe.name
    checked = False
    for name in stages:
        if name not in planned(recipe):
            raise DanqingError(f"the recipe '{recipe.name}' has no section [{name}]; add one to train that stage")
        settings: Loop = getattr(recipe, name)
        if (folder / name / RESULT).is_dir():
            say(f"{name}: is finished; its result is in {folder / name / RESULT}")
            continue
        left = None if end is None else end - time.monotonic()
        if stop() or (left is not None and left <= 0):
            return False
        if not checked and not (folder / name / STATES).is_dir():  # a stage's first start
            refuse(items, recipe.data.folder)
            checked = True
        stage = make_stage(name, recipe, items, folder)
        about = identity(name, recipe, items)
        if not run(stage, settings, folder / name, about, show=show(name), say=say, stop_after=left, stop=stop):
            return False
    return True


def make_stage(name: str, recipe: Recipe, items: list[Item], folder: Path) -> Stage:
    """The stage of that name; what it builds on is read from `folder`, the recipe's."""
    training, held_out = split(items)
    if len(training) < 2:
        raise DanqingError(f"{recipe.data.folder}: {len(training)} picture to train on; give two at least")
    clip = folder / "clip" / RESULT
    if name == "clip":
        return ClipStage(recipe.clip, recipe.data, training, held_out, folder / name)
    if name == "autoencoder":
        wanted = recipe.autoencoder.perceptual_weight > 0
        return AutoencoderStage(
            recipe.autoencoder, recipe.data, training, held_out, clip / "image_encoder" if wanted else None
        )
    if name == "diffusion":
        return DiffusionStage(
            recipe, training, held_out, clip, folder / "autoencoder" / RESULT, folder / name / "cache"
        )
    if name == "judge" and recipe.judge is not None:
        return JudgeStage(recipe.judge, recipe.data, training, held_out)
    raise DanqingError(f"'{name}' is no stage; there are {', '.join(STAGES)}")


def identity(name: str, recipe: Recipe, items: Sequence[Item]) -> Mapping[str, Any]:
    """What decides a stage's weights: a state is gone on with only where all of it is the same.

    The pictures count by their names and order; where their folder lies does not.
    """
    settings = getattr(recipe, name).model_dump(mode="json", exclude=set(FREE))
    training, held_out = split(items)
    names = "\n".join(f"{item.path.relative_to(recipe.data.folder).as_posix()} {item.held_out}" for item in items)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    data = recipe.data.model_dump(mode="json", exclude={"cache_gb", "folder"})
    data["pictures"] = f"{len(training)} and {len(held_out)} held out (list {digest})"
    return {"stage": name, name: settings, "data": data}
