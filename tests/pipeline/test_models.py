"""Models by name or path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import danqing
from danqing.checkpoints.save import save
from danqing.families import Model
from danqing.pipeline.models import load


def test_an_autoencoder_that_overflows_is_widened_alone(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.pipeline.models.widened", lambda dtype, device: torch.bfloat16)
    for overflows in (True, False):
        family = replace(tiny.family, autoencoder_overflows=overflows)
        path = tmp_path / f"{overflows}.safetensors"
        save(replace(tiny, family=family), path)
        model = load(path, device="cpu", dtype="float32")
        assert model.family.autoencoder_overflows == overflows
        assert model.dtype == torch.float32
        wide = next(model.autoencoder.parameters()).dtype
        assert wide == (torch.bfloat16 if overflows else torch.float32)
        (picture,) = danqing.paint("a pear", model, steps=1, width=64, height=64, say=lambda line: None)
        assert picture.image.size == (64, 64)
