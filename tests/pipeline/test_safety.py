"""The safety checker of a diffusers folder: run when asked for, never dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import danqing
from danqing.checkpoints.save import save
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.clip_vision import CLIPVisionConfig, SafetyChecker

SMALL = CLIPVisionConfig(width=32, intermediate=64, layers=1, heads=2, picture=32, patch=8, projection=16)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def folder_with_checker(tiny: Model, folder: Path, threshold: float) -> Path:
    """The tiny model as a folder whose checker finds every picture above `threshold`: -2 is all, 2 is none."""
    save(tiny, folder, layout="diffusers")
    torch.manual_seed(0)
    checker = SafetyChecker(SMALL)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
    (folder / "safety_checker").mkdir()
    config = {"_class_name": "StableDiffusionSafetyChecker", "vision_config": VISION, "projection_dim": 16}
    (folder / "safety_checker" / "config.json").write_text(json.dumps(config))
    # as published: transformers before 5 wraps the tower twice
    state = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): t for name, t in checker.state_dict().items()
    }
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "safety_checker" / "model.safetensors")
    return folder


def paint(folder: Path, said: list[str], safety_checker: bool) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    fields = {"steps": 1, "width": 64, "height": 64, "seed": 1}
    (picture,) = danqing.paint("x", model, say=said.append, safety_checker=safety_checker, **fields)
    assert picture.resolved.notes == tuple(said)
    return np.asarray(picture.image)


def test_what_it_flags_is_black_and_said(tiny: Model, tmp_path: Path) -> None:
    said: list[str] = []
    assert paint(folder_with_checker(tiny, tmp_path / "strict", -2.0), said, True).max() == 0
    assert any("safety checker flagged" in line for line in said)


def test_what_it_does_not_flag_is_painted(tiny: Model, tmp_path: Path) -> None:
    said: list[str] = []
    assert paint(folder_with_checker(tiny, tmp_path / "lenient", 2.0), said, True).max() > 0
    assert said == []


def test_one_that_is_not_run_is_mentioned(tiny: Model, tmp_path: Path) -> None:
    said: list[str] = []
    assert paint(folder_with_checker(tiny, tmp_path / "strict", -2.0), said, False).max() > 0
    assert any("not run unless asked for" in line for line in said)


def test_asked_for_where_there_is_none_or_a_broken_one(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="has no safety checker"):
        danqing.paint("x", tiny, safety_checker=True, steps=1, say=lambda line: None)
    folder = folder_with_checker(tiny, tmp_path / "broken", 0.0)
    save_file({"a": torch.zeros(1)}, folder / "safety_checker" / "model.safetensors")
    with pytest.raises(DanqingError, match="not a safety checker's"):
        paint(folder, [], True)
    (folder / "safety_checker" / "model.safetensors").unlink()
    with pytest.raises(DanqingError, match="no weights"):
        paint(folder, [], True)
