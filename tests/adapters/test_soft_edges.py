"""HED: soft edges from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from danqing.adapters.annotators import find_preprocessor
from danqing.errors import DanqingError
from danqing.models.hed import HED


def passing_on() -> dict[str, torch.Tensor]:
    """Weights by which the first scale sees the red channel, and the others nothing."""
    state = {key: torch.zeros_like(tensor) for key, tensor in HED().state_dict().items()}
    state["norm"] += torch.tensor([100.0, 0, 0]).view(1, 3, 1, 1)
    for i in (0, 1):
        state[f"block1.convs.{i}.weight"][0, 0, 1, 1] = 1
    state["block1.projection.weight"][0, 0] = 0.05
    state["block5.projection.bias"][0] = -1.0
    return state


def test_its_answer_by_hand(tmp_path: Path) -> None:
    save_file(passing_on(), tmp_path / "hed.safetensors")
    preprocess = find_preprocessor("softedge_hed", [tmp_path / "hed.safetensors"])
    values = np.arange(40 * 24, dtype=np.int64).reshape(24, 40) % 256
    image = Image.fromarray(np.stack([values, values * 0, 255 - values], -1).astype(np.uint8))
    expected = 255 / (1 + np.exp(-(np.maximum(values - 100, 0) * 0.05 - 1.0) / 5))
    found = np.asarray(preprocess(image)).astype(np.float64)
    assert found.shape == (24, 40, 3)
    assert np.abs(found[..., 0] - np.floor(expected)).max() <= 1
    assert find_preprocessor(str(tmp_path / "hed.safetensors"))(image.resize((9, 5))).size == (9, 5)


def test_names_and_sizes_are_the_published_file_s() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in HED().state_dict().items()}
    assert len(shapes) == 1 + 2 * 13 + 2 * 5
    assert shapes["norm"] == (1, 3, 1, 1)
    assert shapes["block1.convs.0.weight"] == (64, 3, 3, 3)
    assert shapes["block4.convs.2.bias"] == (512,)
    assert shapes["block5.projection.weight"] == (1, 512, 1, 1)


def test_what_does_not_serve_is_said(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in passing_on().items() if key.startswith(("norm", "block1."))}
    save_file(state, tmp_path / "part.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, line in (("part", "is not a whole HED: 30 missing"), ("other", "no preprocessor that Danqing knows")):
        with pytest.raises(DanqingError, match=line):
            find_preprocessor(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(DanqingError, match="no such file"):
        find_preprocessor("gone.pth")
