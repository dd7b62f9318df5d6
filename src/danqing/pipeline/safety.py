"""The safety checker that comes with a diffusers folder: run where it is asked for, and never passed over in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from danqing.checkpoints.files import open_component, read_json
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.clip_vision import CLIPVisionConfig, SafetyChecker, prepare
from danqing.runtime.blank import without_weights

_FIELDS = {
    "hidden_size": "width",
    "intermediate_size": "intermediate",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "image_size": "picture",
    "patch_size": "patch",
}


def folder_of(model: Model) -> Path | None:
    """Where the model's checkpoint has a safety checker; None where it has none."""
    folder = Path(model.path or "") / "safety_checker"
    return folder if model.path and (folder / "config.json").is_file() else None


def load_checker(model: Model) -> SafetyChecker:
    """The checkpoint's own checker, in float32 on the CPU. Raises DanqingError where there is none, or it is damaged."""
    folder = folder_of(model)
    if folder is None:
        where = model.path or model.name
        raise DanqingError(f"{where}: has no safety checker; only a diffusers folder with safety_checker/ brings one")
    config = read_json(folder / "config.json")
    vision = config.get("vision_config") or {}
    given = {ours: vision[theirs] for theirs, ours in _FIELDS.items() if theirs in vision}
    checker = CLIPVisionConfig(**{**_VIT_L, **given, "projection": config.get("projection_dim", 768)})
    file = open_component(folder)
    if file is None:
        raise DanqingError(f"{folder}: has a config.json but no weights")
    with without_weights():
        network = SafetyChecker(checker)
    # transformers before 5 wraps the tower twice
    state = {
        key.replace("vision_model.vision_model.", "vision_model."): entry.load().float()
        for key, entry in file.entries.items()
        if not key.endswith("position_ids")
    }
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise DanqingError(
            f"{folder}: the weights are not a safety checker's: {str(error).splitlines()[-1].strip()}"
        ) from None
    return network.requires_grad_(False).eval()


_VIT_L = {"width": 1024, "intermediate": 4096, "layers": 24, "heads": 16, "patch": 14, "picture": 224}


@torch.no_grad()
def flag(checker: SafetyChecker, image: Image.Image) -> bool:
    """Whether the checker finds something in the picture."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    return checker.flagged(prepare(pixels, checker.config.picture))[0]
