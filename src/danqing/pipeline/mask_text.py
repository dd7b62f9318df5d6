"""Masks from words, by CLIPSeg (Lüddecke & Ecker 2022); the extra [caption] brings the library that runs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from danqing.errors import DanqingError
from danqing.paths import path_of


def mask_from_text(
    image: Image.Image, text: str, folder: str, threshold: float = 0.4, binary: bool = True
) -> Image.Image:
    """A mask (L, of the picture's size) of what `text` names; commas part several things, of which each counts.

    `folder` holds a CLIPSeg model as transformers writes it, with safetensors weights. A pixel is masked where the
    model's share is at least `threshold`; not `binary`, its share is the mask's value there, and 0 below.
    Raises DanqingError where the folder holds no such model, or transformers is missing.
    """
    place = path_of(folder)
    if not (place / "config.json").is_file():
        raise DanqingError(f"mask_model: '{folder}' is no folder of a CLIPSeg model (there is no config.json)")
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise DanqingError("mask_text: needs the extra [caption]; install danqing[caption]") from None
    words = [part.strip() for part in text.split(",") if part.strip()]
    if not words:
        raise DanqingError("mask_text: should name what to mask, but it is empty")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(place, local_files_only=True)
        model = transformers.CLIPSegForImageSegmentation.from_pretrained(
            place, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise DanqingError(f"mask_model: '{folder}' holds no CLIPSeg model: {str(error).splitlines()[0]}") from None
    side = int(model.config.vision_config.image_size)
    tokens = tokenizer(words, padding=True, return_tensors="pt")
    pixels = _normalised(image, side).expand(len(words), -1, -1, -1)
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits
    share = logits.reshape(len(words), *logits.shape[-2:]).float().sigmoid().amax(0)
    grey = Image.fromarray(share.numpy().astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    values = np.asarray(grey)
    found = np.where(values >= threshold, 255 if binary else values.clip(0, 1) * 255, 0)
    return Image.fromarray(found.round().astype(np.uint8))


def _normalised(image: Image.Image, side: int) -> torch.Tensor:
    """(1, 3, side, side): stretched, with the mean and deviation of ImageNet, as CLIPSeg's ViTImageProcessor does."""
    values = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    normal = (values - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(normal.astype(np.float32)).permute(2, 0, 1)[None]
