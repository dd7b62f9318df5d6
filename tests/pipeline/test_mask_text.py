"""Masks from words, by a CLIPSeg of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.checkpoints.save import write_tokenizer
from danqing.errors import DanqingError
from danqing.families import SDXL
from danqing.pipeline.mask_text import mask_from_text


def test_words_become_a_mask(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "clipseg"
    write_tokenizer(folder, SDXL.text_encoders[0])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.CLIPSegConfig(
        text_config={**tower, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    torch.manual_seed(0)
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    image = Image.radial_gradient("L").resize((48, 40)).convert("RGB")
    assert mask_from_text(image, "a hat", str(folder), 0.0).getextrema() == (255, 255)
    soft = np.asarray(mask_from_text(image, "a hat, a dog", str(folder), 0.0, binary=False))
    assert soft.shape == (40, 48)
    level = float(soft.mean()) / 255
    cut = np.asarray(mask_from_text(image, "a hat, a dog", str(folder), level))
    assert set(np.unique(cut)) == {0, 255}
    with pytest.raises(DanqingError, match="should name what to mask"):
        mask_from_text(image, " , ", str(folder))


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="is no folder of a CLIPSeg model"):
        mask_from_text(Image.new("RGB", (8, 8)), "a hat", str(tmp_path))
