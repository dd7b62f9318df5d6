"""The committed list of held-out pairs is what the dataset chooses, and its pictures are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.evaluate.bundled import Pair, read_held_out
from danqing.train.emoji import STYLES, Concept, captions, held_out, is_held_out
from danqing.train.held_out import drawings, write_held_out


def emoji_like(folder: Path, concepts: int = 60) -> set[tuple[str, str]]:
    """A folder as `danqing dataset emoji` writes it; returns the pairs that are held out."""
    made = [Concept(str(i), f"thing-{i}", f"thing {i}", (), f"东西{i}", (), True) for i in range(concepts)]
    out = held_out([(concept.name, style.name) for concept in made for style in STYLES])
    rows = []
    for number, concept in enumerate(made):
        for style in STYLES:
            name = f"{style.name}/{concept.name}.png"
            (folder / style.name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, len(style.name), 9)).save(folder / name)
            labels = {"concept": concept.name, "style": style.name, "held_out": (concept.name, style.name) in out}
            rows.append({"file_name": name, "text": captions(concept, style), **labels})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return out


def test_the_committed_list_is_the_datasets_choice() -> None:
    pairs = read_held_out()
    names = [(pair.concept, pair.style) for pair in pairs]
    assert len(set(names)) == len(names) == 324  # of 6,754
    assert all(is_held_out(*name) for name in names)
    words = {style.name: (style.words[0], style.words_zh[0]) for style in STYLES}
    for pair in pairs:
        assert pair.english.endswith(f", {words[pair.style][0]}")
        assert pair.chinese.endswith(f"，{words[pair.style][1]}")


def test_a_list_is_written_and_read(tmp_path: Path) -> None:
    out = emoji_like(tmp_path / "data")
    count = write_held_out(tmp_path / "data", tmp_path / "list.json")
    pairs = read_held_out(tmp_path / "list.json")
    assert {(pair.concept, pair.style) for pair in pairs} == out
    assert count == len(pairs) > 5
    assert pairs[0].english.startswith("thing ")
    assert pairs[0].chinese.startswith("东西")


def test_drawings_are_split_by_the_list(tmp_path: Path) -> None:
    emoji_like(tmp_path / "data", 3)
    asked = [Pair("thing-2", "noto", "a", "b"), Pair("thing-0", "3d", "c", "d")]
    training, held = drawings(tmp_path / "data", asked, 16)
    assert held.pairs == tuple(asked)
    assert held.pixels[:, 0, 0, 0].tolist() == [2, 0]
    assert held.pixels[:, 1, 0, 0].tolist() == [4, 2]
    assert len(training.pairs) == 10
    assert not set(training.labels) & set(held.labels)
    assert training.rows([3, 1]).pairs == (training.pairs[3], training.pairs[1])


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    emoji_like(tmp_path / "data", 3)
    strange = Pair("castle", "3d", "castle", "城堡")
    with pytest.raises(DanqingError, match=r"1 of the 1 held-out pictures are not there \(3d/castle\)"):
        drawings(tmp_path / "data", [strange], 16)
    every = [Pair(f"thing-{i}", style.name, "", "") for i in range(3) for style in STYLES]
    with pytest.raises(DanqingError, match="all pictures are held out"):
        drawings(tmp_path / "data", every, 16)


def test_pictures_without_labels(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(DanqingError, match=r"a\.png: metadata\.jsonl should give its concept"):
        drawings(tmp_path, [Pair("cat", "3d", "cat", "猫")], 16)
