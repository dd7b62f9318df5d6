"""Styles and wildcards are written out before painting, and what was asked for is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.expand import expand
from danqing.pipeline.paint import paint
from danqing.pipeline.resolve import resolve
from danqing.request_parts import Reference, Template
from danqing.requests import TextToImage


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nOil,oil of {prompt},photo\n")
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "colour.txt").write_text("red\nblue\ngreen\n")


def test_nothing_to_expand_is_the_request_itself() -> None:
    request = TextToImage(prompt="a {b|c} __colour__")
    assert expand(request)[0] is request


def test_styles_and_the_template() -> None:
    (made,) = expand(TextToImage(prompt="a cat", styles=("oil",), hr_prompt="a lion", batch_size=2))
    assert (made.prompt, made.negative_prompt, made.hr_prompt, made.hr_negative_prompt) == (
        "oil of a cat",
        "photo",
        "oil of a lion",
        "",
    )
    assert made.template == Template(prompt="a cat", styles=("oil",))
    assert made.batch_size == 2
    assert expand(made)[0] is made


def test_each_picture_draws_by_its_seed() -> None:
    batch = expand(TextToImage(prompt="a __colour__ cat", dynamic="random", seed=5, batch_size=3, n_iter=2))
    assert [each.seed for each in batch] == [5, 6, 7, 8, 9, 10]
    for each in batch:
        (alone,) = expand(TextToImage(prompt="a __colour__ cat", dynamic="random", seed=each.seed))
        assert alone.prompt == each.prompt
    assert len({each.prompt for each in batch}) > 1


def test_all_combinations_count_seeds_on() -> None:
    made = expand(TextToImage(prompt="a {cat|dog}", negative_prompt="__colour__", dynamic="all", seed=5, batch_size=2))
    assert [each.seed for each in made] == [5, 7, 9, 11, 13, 15]
    assert (made[0].prompt, made[0].negative_prompt) == ("a cat", "red")
    varied = expand(TextToImage(prompt="{a|b}", dynamic="all", seed=5, subseed=2, subseed_strength=0.5))
    assert [(each.seed, each.subseed) for each in varied] == [(5, 2), (5, 3)]


def test_resolve_takes_one_request(tiny: Model) -> None:
    with pytest.raises(DanqingError, match="2 requests come of this one"):
        resolve(TextToImage(prompt="{a|b}", dynamic="all"), tiny.family, Reference(name="x"))
    resolved = resolve(TextToImage(prompt="a cat", styles=("Oil",)), tiny.family, Reference(name="x"))
    assert resolved.request.prompt == "oil of a cat"


def test_painted_pictures_tell_both_prompts_and_paint_again(tiny: Model) -> None:
    fields = {"width": 64, "height": 64, "steps": 1, "seed": 5, "dynamic": "all", "styles": ("Oil",)}
    pictures = paint("a {cat|dog}", tiny, say=lambda line: None, **fields)
    assert len(pictures) == 2
    last = pictures[1]
    assert last.infotext.startswith("oil of a dog\nNegative prompt: photo\n")
    assert "Template: a {cat|dog}" in last.infotext
    (again,) = paint(last.resolved.request, tiny, say=lambda line: None)
    assert again.image.tobytes() == last.image.tobytes()
