"""Recipes: those that come along are valid, and what is wrong with another is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.errors import DanqingError
from danqing.train.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """
name = "mine"
[data]
folder = "pictures"
[clip]
steps = 10
[autoencoder]
steps = 10
[diffusion]
steps = 10
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name.startswith("danqing")
    assert recipe.data.folder == path.parent / ".." / "data" / recipe.data.folder.name
    for stage in (recipe.clip, recipe.autoencoder, recipe.diffusion):
        assert stage.warmup < stage.steps
        assert stage.evaluate_every <= stage.steps
    assert recipe.data.size % 2 ** (len(recipe.autoencoder.channels) - 1) == 0
    assert recipe.data.size % recipe.clip.vision.patch == 0


def test_there_are_the_three(tmp_path: Path) -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} >= {"bundled", "bundled-quick", "bundled-large"}


def test_defaults_and_the_folder_beside_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert recipe.data.folder == tmp_path / "pictures"
    assert recipe.clip.batch == 16
    assert recipe.judge is None
    absolute = read_recipe(write(tmp_path, GOOD.replace('"pictures"', '"/srv/pictures"')))
    assert absolute.data.folder == Path("/srv/pictures")
    assert read_recipe(write(tmp_path, GOOD.replace('"pictures"', '"~/x"'))).data.folder == Path("~/x").expanduser()
    nobodys = read_recipe(write(tmp_path, GOOD.replace('"pictures"', '"~nobody-is-called-that/x"')))
    assert nobodys.data.folder == tmp_path / "~nobody-is-called-that/x"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[clip]\nsteps = 10", "[clip]\nstep = 10\nsteps = 10", ("'clip.step' is no key", "did you mean steps?")),
        (
            "[clip]\n",
            "[clip]\nlearning-rate = 1e-3\n",
            ("'clip.learning-rate' is no key", "did you mean learning_rate?"),
        ),
        ("[clip]\n", "[clip]\ntext = { layer = 2 }\n", ("'clip.text.layer' is no key", "did you mean layers?")),
        ("[clip]\n", "[clip]\nzzz = 1\n", ("'clip.zzz' is no key of a recipe",)),
        ("[autoencoder]\n", "[autoencoder]\ndiscriminator = { weigth = 1 }\n", ("discriminator.weigth", "weight?")),
        ("[diffusion]\n", "[diffusion]\naverage = { lenght = 0.1 }\n", ("average.lenght", "did you mean length?")),
        ("[clip]\n", "[clipp]\n", ("'clipp' is no key of a recipe; did you mean clip?",)),
        ("[data]\nfolder", "[dat]\nfolder", ("'dat' is no key of a recipe; did you mean data?",)),
        ('[data]\nfolder = "pictures"\n', "", ("'data' is missing",)),
        ("[diffusion]\nsteps = 10\n", "", ("'diffusion' is missing",)),
        ("[diffusion]\nsteps = 10\n", "[diffusion]\n", ("'diffusion.steps' is missing",)),
        ("[clip]\nsteps = 10", '[clip]\nsteps = "many"', ("clip.steps", "'many'")),
        ("[clip]\nsteps = 10", "[clip]\nsteps = 0", ("clip.steps", "greater than 0", "not 0")),
        ("[clip]\n", '[clip]\nschedule = "linear"\n', ("clip.schedule", "'cosine'", "not 'linear'")),
        ("[clip]\n", "[clip]\naugment = { flip = 2 }\n", ("clip.augment.flip", "less than or equal to 1")),
        ('"mine"', '"my model"', ("name", "not 'my model'")),
        ("[clip]", "[clip", ("is no TOML",)),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, words: tuple[str, ...]) -> None:
    assert before in GOOD
    path = write(tmp_path, GOOD.replace(before, after))
    with pytest.raises(DanqingError) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"gone\.toml: No such file"):
        read_recipe(tmp_path / "gone.toml")
    with pytest.raises(DanqingError, match="Is a directory"):
        read_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DanqingError, match=r"binary\.toml: is no TOML"):
        read_recipe(tmp_path / "binary.toml")
