"""Many prompts at once are what each alone would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danqing.errors import DanqingError
from danqing.evaluate.painting import Job, paint_many
from danqing.families import Model
from danqing.pipeline.paint import paint
from tiny_model import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def test_as_each_alone(model: Model) -> None:
    """Also prompts of two parts, of two lengths, and at another CFG scale; in the order that was asked."""
    long = "a " + "very " * 90 + "red apple"
    jobs = [
        Job("a red apple", 1), Job("a green pear", 2), Job("a (plum:1.3) AND a dog", 3), Job(long, 4),
        Job("a green pear", 5), Job("a red apple", 1, 3.0),
    ]  # fmt: skip
    done: list[int] = []
    found = paint_many(jobs, model, steps=1, done=done.append)
    assert found.shape == (6, 3, 128, 128)
    assert found.dtype == torch.uint8
    assert sum(done) == 6
    for job, picture in zip(jobs, found):
        options = {} if job.cfg_scale is None else {"cfg_scale": job.cfg_scale}
        alone = paint(job.prompt, model, seed=job.seed, steps=1, **options)[0]
        wanted = torch.from_numpy(np.array(alone.image)).permute(2, 0, 1)
        assert (picture.int() - wanted.int()).abs().max() <= 1


def test_steps_are_checked(model: Model) -> None:
    with pytest.raises(DanqingError, match="steps"):
        paint_many([Job("a", 1)], model, steps=0)
