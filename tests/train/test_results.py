"""Networks on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from danqing.errors import DanqingError
from danqing.train.results import load_weights, read_config, save_network


def test_there_and_back(tmp_path: Path) -> None:
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_network(network.to(memory_format=torch.contiguous_format), tmp_path / "net", {"channels": (1, 2), "name": "x"})
    assert read_config(tmp_path / "net") == {"channels": (1, 2), "name": "x"}
    load_weights(other, tmp_path / "net")
    assert torch.equal(network.weight, other.weight)
    assert not other.training
    assert not any(p.requires_grad for p in other.parameters())


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"nothing: no stage's result is there .*train that stage first") as caught:
        read_config(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_channels_last_weights_are_written_plainly(tmp_path: Path) -> None:
    network, other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    network.to(memory_format=torch.channels_last)
    save_network(network, tmp_path / "net", {})
    load_weights(other, tmp_path / "net")
    assert torch.equal(network.weight, other.weight)
