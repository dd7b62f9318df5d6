"""TAESD's decoders from files: its author's `taesd_decoder.pth`, ComfyUI's files, diffusers' AutoencoderTiny."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from danqing.checkpoints.files import open_component, open_file
from danqing.errors import DanqingError
from danqing.models.tiny_decoder import TinyDecoder

_KEYS = re.compile(r"(?P<whole>decoder\.layers\.|taesd_decoder\.|decoder\.|)(?P<number>\d+)(?P<rest>\..+)")


def load_tiny_decoder(path: Path) -> TinyDecoder:
    """The decoder in a file or a diffusers folder, in float32. Raises DanqingError for anything else.

    Layers are numbered as in the author's own file; diffusers counts without the first, which has no weights.
    """
    opened = open_component(path) if path.is_dir() else open_file(path)
    if opened is None:
        raise DanqingError(f"{path}: a folder without weights")
    state: dict[str, torch.Tensor] = {}
    for key in opened.entries:
        if match := _KEYS.fullmatch(key):
            number = int(match["number"]) + (match["whole"] == "decoder.layers.")
            state[f"layers.{number}{match['rest']}"] = opened.read(key).float()
    first = state.get("layers.1.weight")
    if first is None or first.ndim != 4:
        raise DanqingError(f"{path}: holds no TAESD decoder for previews")
    decoder = TinyDecoder(first.shape[1], first.shape[0])
    try:
        decoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DanqingError(f"{path}: is no whole TAESD decoder: {reason}") from None
    return decoder.eval().requires_grad_(False)
