"""Prompts to conditionings: parts, segments, layers, sizes, caching, on small random towers."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.families import SD1, SD2, SDXL, Family, Model
from danqing.models.clip import CLIPText
from danqing.models.conditioning import Conditioning
from danqing.prompts.encode import Sizes, conditionings, pad_to
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import END, START

SIZES = Sizes(original=(832, 1216), crop=(8, 16), target=(1024, 768))


pytestmark = pytest.mark.usefixtures("one_thread")


class Counted(CLIPText):
    calls = 0

    def forward(self, ids: Tensor, *, embeddings: Tensor | None = None) -> Any:
        self.calls += 1
        assert ids.shape == (1, 77)
        return super().forward(ids, embeddings=embeddings)


def small(family: Family) -> Model:
    """`family` with towers of width 16 and 24 and four layers."""
    encoders, towers = [], {}
    torch.manual_seed(1)
    for index, encoder in enumerate(family.text_encoders):
        projection = 12 if encoder.config.projection else None
        config = replace(
            encoder.config, width=16 + 8 * index, intermediate=32, layers=4, heads=2, projection=projection
        )
        encoders.append(replace(encoder, config=config))
        towers[encoder.name] = Counted(config).requires_grad_(False)
    return Model(replace(family, text_encoders=tuple(encoders)), nn.Identity(), nn.Identity(), towers)


def encode(model: Model, text: str, steps: int = 10, **options: Any) -> tuple[Conditioning, ...]:
    dialect, negative = options.get("dialect", "danqing"), options.get("negative", False)
    prompt = understand(text, steps, dialect=dialect, negative=negative)
    return conditionings(model, prompt, sizes=SIZES, **options)


def calls(model: Model) -> int:
    return sum(tower.calls for tower in model.text_encoders.values())  # type: ignore[misc]


def test_parts_and_segments() -> None:
    model = small(SD1)
    branches = encode(model, "a cat AND [red:blue:3] dog :0.5")
    assert [branch.strength for branch in branches] == [1.0, 0.5, 0.5]
    assert [branch.steps for branch in branches] == [
        (-math.inf, math.inf),
        (-math.inf, 4.0),
        (4.0, math.inf),
    ]
    for branch in branches:
        assert branch.context.shape == (1, 77, 16)
        assert branch.context.dtype == torch.float32
        assert branch.pooled is None
        assert branch.extra == {}
        assert not branch.context.requires_grad
    (alone,) = encode(model, "blue dog")
    assert torch.equal(alone.context, branches[2].context)


def test_each_chunk_is_encoded_once_and_alone() -> None:
    model, cache = small(SD1), {}
    (long,) = encode(model, "cat " * 75 + "dog", cache=cache)
    assert long.context.shape == (1, 154, 16)
    assert calls(model) == 2
    (dog,) = encode(model, "dog", cache=cache)
    assert torch.equal(long.context[:, 77:], dog.context)
    assert calls(model) == 2
    encode(model, "[dog|cow]", cache=cache)
    assert calls(model) == 3
    encode(model, "(dog:1.2) AND [cow|dog]", cache=cache)
    assert calls(model) == 3


def test_segments_of_a_part_are_of_one_length() -> None:
    """AUTOMATIC1111 encodes a part's texts together: the shorter ones get empty chunks."""
    model = small(SD1)
    short, long, other = encode(model, "[a:" + "cat " * 80 + ":3] AND b")
    assert (short.context.shape[1], long.context.shape[1], other.context.shape[1]) == (154, 154, 77)
    (empty,) = encode(model, "")
    assert torch.equal(short.context[:, 77:], empty.context)


def test_pad_to_repeats_the_last_vector() -> None:
    model = small(SD1)
    (padded,) = pad_to(encode(model, "a"), 80)
    (plain,) = pad_to(encode(model, "a"), 77)
    assert torch.equal(padded.context[:, :77], plain.context)
    assert torch.equal(padded.context[:, 77:], plain.context[:, -1:].expand(1, 3, 16))


def test_clip_skip_of_sd1_passes_the_final_norm() -> None:
    model = small(SD1)
    tower = model.text_encoders["text_encoder"]
    ids = torch.tensor([[49406, 2368, *[49407] * 75]])
    out = tower(ids)
    for skip, expected in [
        (None, out.last),
        (1, out.last),
        (2, tower.final_norm(out.hidden[-2])),
        (5, tower.final_norm(out.hidden[0])),
    ]:
        (found,) = encode(model, "cat", clip_skip=skip)
        assert torch.equal(found.context, expected)
    cache: dict[Any, Any] = {}
    assert not torch.equal(
        encode(model, "cat", cache=cache)[0].context, encode(model, "cat", cache=cache, clip_skip=2)[0].context
    )
    with pytest.raises(DanqingError, match="clip_skip 6: text_encoder has only 4 layers"):
        encode(model, "cat", clip_skip=6)


@pytest.mark.parametrize("skip", [None, 2, 3])
def test_clip_skip_leaves_sd2_and_xl(skip: int | None) -> None:
    model = small(SD2)
    ids = torch.tensor([[49406, 2368, 49407, *[0] * 74]])
    (found,) = encode(model, "cat", clip_skip=skip)
    assert torch.equal(found.context, model.text_encoders["text_encoder"](ids).last)

    model = small(SDXL)
    (found,) = encode(model, "cat", clip_skip=skip)
    padded = torch.tensor([[49406, 2368, *[49407] * 75]])
    left, right = model.text_encoders["text_encoder"](padded), model.text_encoders["text_encoder_2"](ids)
    assert torch.equal(found.context, torch.cat([left.hidden[-2], right.hidden[-2]], -1))
    assert found.pooled is not None
    assert torch.equal(found.pooled, right.pooled)


def test_pooled_is_the_first_chunks_and_unweighted() -> None:
    model = small(SDXL)
    (plain,) = encode(model, "red cat")
    (weighted,) = encode(model, "red (cat:1.5) BREAK dog")
    assert plain.pooled is not None
    assert weighted.pooled is not None
    assert plain.pooled.shape == (1, 12)
    assert torch.equal(plain.pooled, weighted.pooled)
    assert weighted.context.shape == (1, 154, 40)


def test_size_ids() -> None:
    (positive,) = encode(small(SDXL), "a")
    assert positive.extra["time_ids"].tolist() == [[832, 1216, 8, 16, 1024, 768]]
    refiner = replace(SDXL, text_encoders=SDXL.text_encoders[1:], size_ids="refiner")
    (positive,) = encode(small(refiner), "a")
    (negative,) = encode(small(refiner), "a", negative=True)
    assert positive.extra["time_ids"].tolist() == [[832, 1216, 8, 16, 6.0]]
    assert negative.extra["time_ids"].tolist() == [[832, 1216, 8, 16, 2.5]]
    with pytest.raises(ValueError, match="needs sizes"):
        conditionings(small(SDXL), understand("a", 10))


@pytest.mark.parametrize(
    ("text", "negative", "dialect", "zero"),
    [
        ("", True, "danqing", True),
        ("", True, "a1111", True),
        ("", True, "diffusers", True),
        ("", True, "comfyui", False),
        ("", False, "danqing", False),
        (" ", True, "danqing", False),
        ("a", True, "danqing", False),
        ("[a:3]", True, "danqing", False),
        ("<lora:x:1>", True, "danqing", True),
    ],
)
def test_an_empty_negative_prompt_of_xl(text: str, negative: bool, dialect: str, zero: bool) -> None:
    first, *_ = encode(small(SDXL), text, negative=negative, dialect=dialect)
    assert first.pooled is not None
    assert first.context.shape == (1, 77, 40)
    assert bool((first.context == 0).all()) is zero
    assert bool((first.pooled == 0).all()) is zero
    assert first.extra["time_ids"].any()


def test_an_empty_negative_prompt_of_sd1_is_encoded() -> None:
    (negative,) = encode(small(SD1), "", negative=True)
    assert negative.context.any()


def test_what_is_cut_is_said_once() -> None:
    said: list[str] = []
    (found,) = encode(small(SDXL), "cat " * 75 + "red bird", dialect="diffusers", say=said.append)
    assert found.context.shape == (1, 77, 40)
    assert said == ["the prompt is 2 tokens too long for the diffusers dialect; cut: red bird"]
    encode(small(SDXL), "cat", dialect="diffusers", say=said.append)
    assert len(said) == 1


def test_weights_of_nothing_are_finite() -> None:
    for text in ("(cat:0)", "(cat:1000000)", "(cat:-1000000)"):
        (found,) = encode(small(SD1), text)
        assert found.context.isfinite().all()


def test_a_checkpoints_own_tokenizer_is_used(tmp_path: Path) -> None:
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", ",</w>", START, END]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    model = small(SD1)
    (own,) = encode(replace(model, tokenizers={"text_encoder": tmp_path}), "ab")
    (bundled,) = encode(model, "ab")
    assert not torch.equal(own.context, bundled.context)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    (carried,) = encode(replace(model, tokenizers={"text_encoder": texts}), "ab")
    assert torch.equal(carried.context, own.context)


def test_a_missing_vocabulary_is_said() -> None:
    model = small(SD1)
    (encoder,) = model.family.text_encoders
    few = replace(model.family, text_encoders=(replace(encoder, config=replace(encoder.config, vocabulary=8)),))
    with pytest.raises(DanqingError, match="its text_encoder has 8 words of its own, which the file does not hold"):
        encode(replace(model, family=few, name="m"), "ab")


def test_half_precision_towers_give_float32() -> None:
    model = small(SD1)
    model.text_encoders["text_encoder"].to(torch.bfloat16)
    (found,) = encode(model, "a (cat:1.1)")
    assert found.context.dtype == torch.float32
