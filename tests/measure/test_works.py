from __future__ import annotations

import pytest

from danqing.errors import DanqingError
from danqing.measure.report import Setting, planned
from danqing.measure.works import Work, read_works

FAMILIES = ["danqing", "sd1", "sdxl"]


def test_kinds_alone_have_their_usual_models() -> None:
    assert read_works(["step", "train", "decode:sdxl"], FAMILIES) == [
        ("step", "sd1"),
        ("train", "danqing"),
        ("decode", "sdxl"),
    ]


@pytest.mark.parametrize(
    ("name", "told"), [("stop", "step"), ("step:sd", "sd1"), ("step:", "names no model"), ("paint", "picture")]
)
def test_what_is_unknown_is_told_with_what_there_is(name: str, told: str) -> None:
    with pytest.raises(DanqingError, match=told):
        read_works([name], FAMILIES)


def test_every_precision_and_batch_is_a_work() -> None:
    setting = Setting("cpu", ("fp32", "bfloat16", "float32"), batches=(1, 8))
    works = planned([("step", "sd1"), ("train", "danqing")], setting)
    assert len(works) == 2 * 2 * 2
    assert works[0] == Work("step", "sd1", 512, 1, 20, "float32", "cpu")
    assert str(works[-1]) == "train danqing 128x128 bfloat16, batch 8"


def test_training_has_a_batch_of_its_own() -> None:
    step, train = planned([("step", "sdxl"), ("train", "danqing")], Setting("cpu", ("float32",)))
    assert (step.batch, step.size) == (1, 1024)
    assert train.batch > 1


@pytest.mark.parametrize(("family", "size", "told"), [("sd1-inpaint", None, "base model"), ("sd1", 500, "choose 512")])
def test_works_that_cannot_be(family: str, size: int | None, told: str) -> None:
    with pytest.raises(DanqingError, match=told):
        planned([("step", family)], Setting("cpu", ("float32",), size))
