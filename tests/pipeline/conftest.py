"""The tiny random-weight model, once for all tests of the pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from danqing.families import Model
from tiny_model import tiny_model


@pytest.fixture(scope="session")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_bf16() -> Model:
    return tiny_model(torch.device("cpu"), torch.bfloat16)


@pytest.fixture(scope="session")
def tiny_v(tiny: Model) -> Model:
    process = replace(tiny.process, prediction="v", zero_terminal_snr=True)
    return replace(tiny, family=replace(tiny.family, process=process))
