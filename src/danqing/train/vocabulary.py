"""A byte-level BPE vocabulary of one's own, in CLIP's format (Sennrich et al. 2016, Radford et al. 2021)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from danqing.checkpoints.write import beside, write_json
from danqing.prompts.tokenizer import END, START, build, byte_letters


def train_vocabulary(texts: Iterable[str], size: int, folder: Path) -> None:
    """Learn merges from `texts` and write them as `folder`, as transformers' CLIPTokenizer reads it.

    The `size` words are the 256 bytes, the bytes that end a word, the merges in their order, start and end of text, so
    that any text has tokens. Fewer where the texts have no more to merge. Raises DanqingError: the folder is not
    empty, the disk is full.
    """
    letters = list(byte_letters())
    base = [*letters, *(letter + "</w>" for letter in letters)]
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pipeline = build({START: 0, END: 1}, [])
    learner.normalizer, learner.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - 2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][: size - 2 - len(base)]
    words = [*base, *("".join(pair) for pair in merges), START, END]
    numbered = {word: index for index, word in enumerate(dict.fromkeys(words))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    with beside(folder, 0) as new:
        new.mkdir()
        (new / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), "utf-8")
        (new / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        write_json(new / "special_tokens_map.json", special)
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        write_json(new / "tokenizer_config.json", special | settings | {"add_prefix_space": False, "errors": "replace"})
