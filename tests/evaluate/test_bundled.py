"""The scores of a whole model, their rows, and the sheet."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from danqing.errors import DanqingError
from danqing.evaluate.bundled import (
    JUDGE,
    Amount,
    Drawings,
    Pair,
    Row,
    Shown,
    chosen,
    evaluate,
    frechet_rows,
    nearest,
    painted_rows,
    read_held_out,
    without_twins,
    write_scores,
)
from danqing.evaluate.judge import check_labels, load_judge
from danqing.evaluate.sheet import contact_sheet
from danqing.families import Model
from danqing.models.judge import JudgeConfig, JudgeNetwork
from tiny_model import tiny_model

CONCEPTS, STYLES = ("apple", "pear", "plum"), ("3d", "flat")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Model:
    """The tiny model at 64 x 64."""
    tiny = tiny_model(torch.device("cpu"), torch.float32)
    defaults = replace(tiny.family.defaults, width=64, height=64)
    return replace(tiny, family=replace(tiny.family, defaults=defaults))


def judge() -> JudgeNetwork:
    torch.manual_seed(0)
    return JudgeNetwork(JudgeConfig(CONCEPTS, STYLES, 16, (8, 16), (1, 1), 4, 12)).eval()


def drawings(count: int, first: int = 0) -> Drawings:
    pairs = tuple(
        Pair(CONCEPTS[i % 3], STYLES[i % 2], f"{CONCEPTS[i % 3]}, {STYLES[i % 2]}", "果") for i in range(count)
    )
    generator = torch.Generator().manual_seed(first)
    return Drawings(pairs, torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8))


def test_all_scores(model: Model) -> None:
    rows: list[Row] = []
    told: list[tuple[int, int]] = []
    amount = Amount(seeds=2, frechet=4, cfg_pairs=1, steps=1)
    shown = evaluate(
        model, judge(), drawings(6, 1), drawings(3), amount,
        tell=rows.append, show=lambda *counts: told.append(counts),
    )  # fmt: skip
    assert told[-1] == (2 * 3 * 2 + 4 + 4, 2 * 3 * 2 + 4 + 4)
    pictures = {row.name: row.pictures for row in rows}
    assert len(pictures) == len(rows) == 2 + 3 + 6 + 6 + 1 + 1 + 12
    assert pictures["autoencoder, PSNR"] == pictures["real, held out, first"] == 3
    assert pictures["painted, English, first"] == pictures["painted, Chinese, style, to English"] == 6
    assert pictures["Fréchet distance, painted to real"] == 4
    assert pictures["CFG 7, within five"] == 1
    five = next(row for row in rows if row.name == "painted, Chinese, within five, to English")
    assert (five.value, five.interval) == (1.0, (1.0, 1.0))  # there are three concepts
    assert "chance 0.33" in str(next(row for row in rows if row.name == "real, held out, first"))
    assert shown.painted.shape == shown.real.shape == shown.nearest.shape == (3, 3, 64, 64)
    assert contact_sheet(shown, 2).size == (2 * (3 * 64 + 8) - 8, 20 + 2 * (64 + 8) - 8)


def test_what_costs_long_can_be_left_out(model: Model) -> None:
    rows: list[Row] = []
    amount = Amount(seeds=1, pairs=1, frechet=0, cfg_pairs=0, steps=1)
    evaluate(model, judge(), drawings(4, 1), drawings(3), amount, tell=rows.append)
    assert not [row for row in rows if row.name.startswith(("Fréchet", "CFG"))]
    assert {row.pictures for row in rows} == {1}


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (Amount(seeds=0), "seeds"),
        (Amount(pairs=0), "pairs"),
        (Amount(frechet=1), "frechet"),
        (Amount(cfg_pairs=-1), "cfg-pairs"),
        (Amount(steps=0), "steps"),
    ],
)
def test_numbers_that_make_no_sense(model: Model, amount: Amount, words: str) -> None:
    with pytest.raises(DanqingError, match=words):
        evaluate(model, judge(), drawings(4, 1), drawings(3), amount, tell=lambda row: None)


def test_twins_are_left_out() -> None:
    said: list[str] = []
    training, held_out = drawings(5, 1), drawings(3)
    held_out.pixels[1] = training.pixels[4]
    kept = without_twins(held_out, training, said.append)
    assert kept.pairs == (held_out.pairs[0], held_out.pairs[2])
    assert said == ["1 held-out pictures equal one that is trained on: left out"]
    with pytest.raises(DanqingError, match="no held-out picture"):
        without_twins(held_out.rows([1]), training, said.append)


def test_fewer_pairs_are_always_the_same() -> None:
    some = chosen(drawings(50), 7)
    assert len(some.pairs) == 7
    assert torch.equal(some.pixels, chosen(drawings(50), 7).pixels)
    assert len(chosen(drawings(5), 9).pairs) == len(chosen(drawings(5), None).pairs) == 5


def test_ratios_stand_beside_shares() -> None:
    real = {kind: np.ones((4, 1), bool) for kind in ("first", "within five", "style")}
    half = {kind: np.array([[True, False]] * 4) for kind in real}
    rows = {row.name: row for row in painted_rows("English", half, "real", real)}
    assert rows["painted, English, first"].value == 0.5
    assert rows["painted, English, first"].beside == "real 1.000"
    assert rows["painted, English, style, to real"].value == 0.5
    assert rows["painted, English, style, to real"].pictures == 8


def test_frechet_tells_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    real, alike, other = (torch.randn(600, 4, generator=generator) for _ in range(3))
    near = next(iter(frechet_rows(alike[:100], real)))
    far = next(iter(frechet_rows(other[:100] + 1, real)))
    assert near.value < 0.3 < 3.5 < far.value
    assert "100 real ones" in near.beside


def test_nearest_is_by_angle() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    rows, distance = nearest(torch.tensor([[5.0, 1.0], [0.0, 0.1]]), known)
    assert rows.tolist() == [0, 1]
    assert distance.tolist() == pytest.approx([1 - 5 / 26**0.5, 0.0], abs=1e-6)


def test_the_sheet_shows_all_three() -> None:
    pairs = drawings(60).pairs
    painted, real, near = (torch.full((60, 3, 8, 8), value, dtype=torch.uint8) for value in (10, 20, 30))
    sheet = contact_sheet(Shown(pairs, painted, real, near), 4)
    assert sheet.size == (4 * 32 - 8, 20 + 12 * 16 - 8)  # 48 of the 60
    assert [sheet.getpixel((x, 25)) for x in (4, 12, 20)] == [(10,) * 3, (20,) * 3, (30,) * 3]


def test_scores_are_written(tmp_path: Path) -> None:
    write_scores([Row("a", 0.5, "b", 3, (0.1, math.inf)), Row("c", math.nan, "d", 1)], tmp_path / "out.json")
    table = json.loads((tmp_path / "out.json").read_text())
    assert table[0] == {
        "name": "a", "value": 0.5, "beside": "b", "pictures": 3, "interval": [0.1, None], "unit": "",
    }  # fmt: skip
    assert table[1]["value"] is None


def test_lists_that_do_not_open(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"none\.json: the list of held-out pairs cannot be read"):
        read_held_out(tmp_path / "none.json")
    for text in ("[1]", '[{"concept": "a"}]', "{", "3"):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(DanqingError, match=r"list\.json: is no list of held-out pairs"):
            read_held_out(tmp_path / "list.json")


def test_the_judge_in_the_package_knows_every_held_out_pair() -> None:
    check_labels(load_judge(JUDGE), [(pair.concept, pair.style) for pair in read_held_out()], "judge")
    assert sum(file.stat().st_size for file in JUDGE.iterdir()) < 8e6
