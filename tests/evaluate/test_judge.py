"""Opinions to verdicts, verdicts to shares, and judges that do not open."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from danqing.errors import DanqingError
from danqing.evaluate.judge import check_labels, judged, load_judge, look, ratio, share
from danqing.models.judge import JudgeConfig, JudgeNetwork, Opinion

CONFIG = JudgeConfig(("apple", "pear", "plum"), ("3d", "flat"), 16, (8, 16), (1, 1), 4, 12)


def judge() -> JudgeNetwork:
    torch.manual_seed(0)
    return JudgeNetwork(CONFIG).eval()


def write(folder: Path, table: object = None, state: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(CONFIG) if table is None else table))
    save_file(judge().bfloat16().state_dict() if state is None else state, folder / "model.safetensors")
    return folder


def test_verdicts_by_hand() -> None:
    concepts = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    styles = torch.tensor([[0.0, 1.0]] * 4)
    pairs = [("apple", "flat"), ("pear", "3d"), ("plum", "flat"), ("apple", "3d")]
    verdict = judged(CONFIG, Opinion(concepts, styles, concepts), pairs)
    assert verdict.rank.tolist() == [0, 1, 2, 2]  # the last is blind
    assert verdict.style.tolist() == [True, False, True, False]
    assert verdict.within(2).tolist() == [True, True, False, False]


def test_looking_in_batches_and_in_bytes() -> None:
    pixels = torch.randint(0, 256, (70, 3, 20, 20), dtype=torch.uint8)
    network = judge()
    opinion = look(network, pixels)
    assert opinion.concepts.shape == (70, 3)
    with torch.no_grad():
        last = network(pixels[-1:].float() / 127.5 - 1)
    for found, wanted in zip(opinion, last):
        assert torch.allclose(found[-1:], wanted, atol=1e-5)


def test_shares_and_their_intervals() -> None:
    draws = np.random.default_rng(0).random((400, 1)) < 0.3
    found = share(draws)
    assert found.value == draws.mean()
    wanted = 1.96 * math.sqrt(found.value * (1 - found.value) / 400)  # the normal approximation
    assert found.high - found.value == pytest.approx(wanted, rel=0.1)
    assert found.value - found.low == pytest.approx(wanted, rel=0.1)
    four = share(np.repeat(draws, 4, axis=1))  # the same again tells nothing new
    assert (four.low, four.high) == (found.low, found.high)
    assert share(draws) == found


def test_ratios() -> None:
    below = np.random.default_rng(0).random((300, 1)) < 0.6
    above = np.repeat(below, 4, axis=1)
    above[:, 1::2] = False  # exactly half as often, pair by pair
    found = ratio(above, below)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    apart = ratio(np.random.default_rng(1).random((300, 4)) < 0.3, below)
    assert apart.low < 0.5 < apart.high
    assert math.isnan(ratio(above, np.zeros((300, 1), bool)).value)
    few = ratio(above[:2], np.array([[True], [False]]))  # some resamples divide by nothing
    assert math.isfinite(few.high)


def test_a_judge_opens_as_it_was_written(tmp_path: Path) -> None:
    opened = load_judge(write(tmp_path / "judge"))
    assert opened.config == CONFIG
    assert not opened.training
    own = judge().bfloat16().state_dict()
    assert all(torch.equal(value, own[name].float()) for name, value in opened.state_dict().items())


def test_judges_that_do_not_open(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"nothing: no judge is there \(.*No such file"):
        load_judge(tmp_path / "nothing")
    for name, table in (("list", []), ("strange", {**asdict(CONFIG), "depth": 3}), ("bare", {"concepts": ["a"]})):
        with pytest.raises(DanqingError, match=rf"{name}.*is of no judge"):
            load_judge(write(tmp_path / name, table))
    with pytest.raises(DanqingError, match=r"other.*do not fit"):
        load_judge(write(tmp_path / "other", {**asdict(CONFIG), "concepts": ["a", "b"]}))
    with pytest.raises(DanqingError, match=r"odd.*do not fit"):
        load_judge(write(tmp_path / "odd", {**asdict(CONFIG), "groups": 3}))
    with pytest.raises(DanqingError, match=r"half.*do not fit"):
        load_judge(write(tmp_path / "half", state={"stem.weight": torch.zeros(3)}))
    cut = write(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:200])
    with pytest.raises(DanqingError, match="cut: the judge's files are damaged"):
        load_judge(cut)
    (cut / "config.json").write_text("{")
    with pytest.raises(DanqingError, match="cut: the judge's files are damaged"):
        load_judge(cut)


def test_a_judge_of_other_things() -> None:
    check_labels(judge(), [("pear", "flat")], "judge")
    with pytest.raises(DanqingError, match=r"^judge: the judge does not know 2 of the 3 concepts .*\(cat, dog\)"):
        check_labels(judge(), [("cat", "3d"), ("dog", "3d"), ("pear", "3d")], "judge")
    with pytest.raises(DanqingError, match=r"1 of the 1 styles asked for \(noto\)"):
        check_labels(judge(), [("pear", "noto")], "judge")
