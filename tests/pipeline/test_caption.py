"""Captions by a tiny BLIP of random weights, and prompts by a tiny GPT-2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.settings import load_settings
from danqing.pipeline.caption import find_captioner, language_models, load_captioner
from danqing.pipeline.promptgen import Writing, load_writer

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


def test_prompts_that_a_language_model_writes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = tmp_path / "BLIP" / "writer"
    words = {word: number for number, word in enumerate(["<|endoftext|>", "a", "Ġcat", "Ġred", "Ġbig", "b"])}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(place)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(place)
        file = tmp_path / "config.toml"
        file.write_text(f"folders = [{str(tmp_path)!r}]\nhub_cache = {str(tmp_path / 'none')!r}\n")
        found = language_models(load_settings(file), "gpt2")
        assert [entry.path for entry in found] == [place]
        write = load_writer(place)
        for how in (Writing(count=3, least=6, most=10), Writing(count=2, most=8, mode="Top P", top_p=0.9, beams=2)):
            prompts = write("a", how)
            assert len(prompts) == how.count
            assert all(prompt.startswith("a") for prompt in prompts)
        assert len(write("", Writing(count=1, most=4))) == 1
        with pytest.raises(DanqingError, match="40 tokens"):
            write("a" * 40, Writing())
    with pytest.raises(DanqingError, match="holds no GPT-2"):
        load_writer(tmp_path)
