"""A stage's networks on disk: a folder with `config.json` and `model.safetensors`, float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from danqing.errors import DanqingError


def save_network(network: nn.Module, folder: Path, config: Mapping[str, Any]) -> None:
    """Write the network's weights and what it was made by."""
    folder.mkdir(parents=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """What the network in `folder` was made by. Raises DanqingError where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DanqingError(f"{folder}: no stage's result is there ({error}); train that stage first") from None
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def load_weights(network: nn.Module, folder: Path) -> None:
    """Give `network` the weights in `folder`, in evaluation mode and without gradients."""
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.requires_grad_(False).eval()
