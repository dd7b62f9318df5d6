"""Captions by a tiny BLIP of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.settings import load_settings
from danqing.pipeline.caption import find_captioner, load_captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "square", "on", "white", "##s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "BLIP" / "captioner"
    place.mkdir(parents=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}  # fmt: skip
    config = transformers.BlipConfig(
        text_config={**sizes, **text}, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BlipForConditionalGeneration(config).save_pretrained(place)
    (place / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return place


def test_a_captioner_is_found_in_the_library_and_writes_words(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"folders = [{str(folder.parents[1])!r}]\nhub_cache = {str(tmp_path)!r}\n")
    found = find_captioner(load_settings(file))
    assert found == folder
    caption = load_captioner(found, least=4, most=8)
    said = caption(Image.new("RGBA", (50, 20), "red"))
    assert said
    assert set(said.replace("##", "").split()) <= {word.replace("##", "") for word in WORDS}
    assert caption(Image.new("RGBA", (50, 20), "red")) == said


def test_without_one_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"hub_cache = {str(tmp_path)!r}\n")
    assert find_captioner(load_settings(file)) is None


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(DanqingError, match="holds no BLIP captioner"):
        load_captioner(tmp_path)
