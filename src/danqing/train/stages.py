"""The stages of a recipe, in their order: what `danqing train clip | autoencoder | diffusion | recipe` run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.train.autoencoder import AutoencoderStage
from danqing.train.clip import ClipStage
from danqing.train.dataset import Item, read_dataset, split
from danqing.train.diffusion import DiffusionStage
from danqing.train.loop import FREE, RESULT, Show, Stage, run
from danqing.train.recipe import Loop, Recipe

STAGES = ("clip", "autoencoder", "diffusion")


def train(
    recipe: Recipe,
    stages: tuple[str, ...],
    runs: Path,
    *,
    show: Callable[[str], Show],
    say: Callable[[str], None],
    stop_after: float | None = None,
) -> bool:
    """Train the stages of the recipe in turn, in `runs/<recipe's name>/<stage>`; what is finished is passed over.

    show: for a stage's name, what its progress is told to. stop_after: seconds for all of them. Returns whether all
    are finished. Raises DanqingError: unknown stage, bad data, a stage whose predecessor has not finished, another
    recipe's state.
    """
    import time

    end = None if stop_after is None else time.monotonic() + stop_after
    items = read_dataset(recipe.data.folder)
    empty = [item.path.name for item in items if not any(caption.strip() for caption in item.captions)]
    if empty:
        names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        raise DanqingError(f"{recipe.data.folder}: {len(empty)} pictures have no caption: {names}")
    folder = runs / recipe.name
    for name in stages:
        settings: Loop = getattr(recipe, name)
        if (folder / name / RESULT).is_dir():
            say(f"{name}: is finished; its result is in {folder / name / RESULT}")
            continue
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        stage = make_stage(name, recipe, items, folder)
        if not run(stage, settings, folder / name, identity(name, recipe), show=show(name), say=say, stop_after=left):
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
    raise DanqingError(f"'{name}' is no stage; there are {', '.join(STAGES)}")


def identity(name: str, recipe: Recipe) -> Mapping[str, Any]:
    """What decides a stage's weights: a state is gone on with only where all of it is the same."""
    settings = getattr(recipe, name).model_dump(mode="json", exclude=set(FREE))
    return {"stage": name, name: settings, "data": recipe.data.model_dump(mode="json", exclude={"cache_gb"})}
