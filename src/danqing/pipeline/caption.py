"""What a picture shows, in words, by BLIP (Li et al. 2022); the extra [caption] brings the library that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.folders import Entry
from danqing.library.names import known
from danqing.library.settings import Settings

Caption = Callable[[Image.Image], str]
"""An RGB picture -> a sentence."""
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, by which BLIP's are normalised too (its `blip_image_processor`)."""


def language_models(settings: Settings, kind: str) -> list[Entry]:
    """The library's folders of a kind of model as transformers writes them: `blip`, `gpt2` ..."""
    places = (entry for entry in known(settings) if entry.kind in ("other", "unknown") and entry.path.is_dir())
    return [entry for entry in places if _kind_of(entry.path) == kind]


def _kind_of(folder: Path) -> object:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def find_captioner(settings: Settings) -> Path | None:
    """The first folder of a BLIP captioner in the library; None where there is none."""
    return next((entry.path for entry in language_models(settings, "blip")), None)


def load_captioner(folder: Path, *, beams: int = 1, least: int = 24, most: int = 48) -> Caption:
    """The captioner of a folder with safetensors weights; a caption has from `least` to `most` tokens.

    Raises DanqingError where the folder holds no BLIP, or transformers is missing.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise DanqingError("interrogate: needs the extra [caption]; install danqing[caption]") from None
    try:
        tokenizer = transformers.BertTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.BlipForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise DanqingError(f"{folder}: holds no BLIP captioner: {str(error).splitlines()[0]}") from None
    side = int(model.config.vision_config.image_size)

    def caption(image: Image.Image) -> str:
        with torch.no_grad():
            tokens = model.generate(_pixels(image, side), num_beams=beams, min_length=least, max_length=most)
        return str(tokenizer.decode(tokens[0], skip_special_tokens=True)).strip()

    return caption


def _pixels(image: Image.Image, side: int) -> torch.Tensor:
    """(1, 3, side, side): stretched and normalised."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    values = (np.asarray(small, dtype=np.float32) / 255 - np.array(_MEAN)) / np.array(_DEVIATION)
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
