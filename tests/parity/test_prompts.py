"""Prompts against AUTOMATIC1111 (recorded), ComfyUI's formula, transformers' tokenizer and diffusers' encoding."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig as ReferenceConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from danqing.adapters.embedding import read as read_embedding
from danqing.adapters.embedding import with_embeddings
from danqing.families import FAMILIES, Family, Model
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.prompts.chunks import chunks
from danqing.prompts.encode import Sizes, conditionings
from danqing.prompts.grammar import schedule, split_and, strip_comments, take_tags, understand, weigh
from danqing.prompts.tokenizer import clip, from_folder

DIFFUSERS = f"diffusers {diffusers.__version__}"
TRANSFORMERS = f"transformers {transformers.__version__}"
A1111 = "AUTOMATIC1111 82a973c0"
COMFYUI = "ComfyUI a125cd84"
BOUND = 1e-5
Parity = Callable[[str, str, float, float], None]
SIZES = Sizes(original=(832, 1216), crop=(8, 16), target=(1024, 768))


pytestmark = pytest.mark.usefixtures("one_thread")


# --- The language


def test_language(parity: Parity) -> None:
    """The table that tests/prompts goes through case by case, as rows: how many cases differ."""
    cases = json.loads((Path(__file__).parents[1] / "prompts" / "cases.json").read_text("utf-8"))

    def differing(kind: str, ours: Callable[[dict], Any], key: str) -> int:
        return sum(json.loads(json.dumps(ours(case))) != case[key] for case in cases[kind])

    def entries(case: dict) -> list:
        return schedule(
            case["text"], case["calls"], old_scheduling=case.get("old", False), first_pass=case.get("first_pass")
        )

    for subject, reference, count in [
        ("schedules", A1111, differing("schedule", entries, "entries")),
        ("weights", A1111, differing("weigh", lambda case: weigh(case["text"]), "pieces")),
        ("weights, comfyui", COMFYUI, differing("weigh_comfyui", lambda c: weigh(c["text"], "comfyui"), "pieces")),
        ("AND", A1111, differing("and", lambda case: split_and(case["text"]), "parts")),
        ("tags", A1111, differing("tags", lambda case: take_tags(case["text"])[0], "rest")),
        ("comments", A1111, differing("comments", lambda case: strip_comments(case["text"]), "rest")),
    ]:
        parity(f"prompt {subject}, recorded cases that differ", reference, count, 0)


# --- The tokenizer


@pytest.fixture(scope="module")
def reference_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """transformers' own, from the same words and merges."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model = json.loads(clip()._backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]))
    return CLIPTokenizer.from_pretrained(str(folder))


WORDS = st.sampled_from(
    [
        "a",
        "photo",
        "of",
        "1girl,",
        "masterpiece",
        "红苹果",
        "丹青",
        "😀",
        "👩\u200d🎨",
        "é",
        "É",
        "İ",
        "ß",
        "ǅ",
        "1234",
        "½",
        "it's",
        "I'LL",
        "don't",
        "<|endoftext|>",
        "<|startoftext|>",
        "\u3000",
        "\xa0",
        "\x00",
        "\u200b",
        "\t\n",
        "...",
        "--",
        "((x:1.2))",
        "ɐ",
        "Ω",
        "ａ",
        "１",
        "ﬁ",
        "é",
        ",",
        ".",
        "한국어",
        "日本語",
        "ру",
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(),
        st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)),
        st.lists(WORDS, max_size=20).map(" ".join),
        st.lists(WORDS, max_size=20).map("".join),
    )
)
def test_tokenizer(text: str, reference_tokenizer: CLIPTokenizer, parity: Parity) -> None:
    wanted = reference_tokenizer(text, add_special_tokens=False)["input_ids"]
    parity("tokenizer, texts that differ", f"{TRANSFORMERS} CLIPTokenizer", float(clip().encode(text) != wanted), 0)


@pytest.mark.parametrize("kept", [["vocab.json", "merges.txt"], ["tokenizer.json"]], ids=" ".join)
def test_tokenizer_folders(kept: list[str], reference_tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    reference_tokenizer.save_pretrained(str(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps(reference_tokenizer.get_vocab()))
    merges = json.loads(clip()._backend.to_str())["model"]["merges"]
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges))
    for file in tmp_path.iterdir():
        if file.name not in kept:
            file.unlink()
    own = from_folder(tmp_path)
    for text in ("a photo of a cat, 红苹果 😀", "It's <|endoftext|> X", ""):
        assert own.encode(text) == clip().encode(text)


# --- Plain prompts: diffusers' encode_prompt


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def reference_tower(config: CLIPTextConfig) -> nn.Module:
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    reference = ReferenceConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act=config.activation,
        projection_dim=config.projection or 8,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    return kind(reference).eval().requires_grad_(False)


def towers(name: str) -> tuple[Model, dict[str, nn.Module]]:
    """Danqing's small random towers of a family, and transformers' with the same weights."""
    torch.manual_seed(3)
    family: Family = FAMILIES[name]
    encoders, ours, references = [], {}, {}
    for index, encoder in enumerate(family.text_encoders):
        projection = 12 if encoder.config.projection else None
        config = replace(
            encoder.config, width=16 + 8 * index, intermediate=32, layers=5, heads=2, projection=projection
        )
        encoders.append(replace(encoder, config=config))
        ours[encoder.name] = CLIPText(config).requires_grad_(False)
        references[encoder.name] = reference_tower(config)
        for parameter in references[encoder.name].parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        state = references[encoder.name].state_dict()
        prefix = "" if any(key.startswith("text_model.") for key in state) else "text_model."
        moved = {key if key.startswith("text_projection") else prefix + key: value for key, value in state.items()}
        ours[encoder.name].load_state_dict(moved)
    return Model(replace(family, text_encoders=tuple(encoders)), nn.Identity(), nn.Identity(), ours), references


def with_pad(tokenizer: CLIPTokenizer, pad: int) -> CLIPTokenizer:
    word = "!" if pad == 0 else "<|endoftext|>"
    other = CLIPTokenizer.from_pretrained(tokenizer.name_or_path, pad_token=word, model_max_length=77)
    assert other.pad_token_id == pad
    return other


TEXTS = ["", "a photo of a (cat:1.3), [red|blue] AND 红苹果", "cat, " * 60]


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS, ids=["empty", "brackets", "too long"])
@pytest.mark.parametrize(("name", "skip"), [("sd1", None), ("sd1", 2), ("sd1", 4), ("sd2", None)])
def test_encode_prompt(
    name: str, skip: int | None, text: str, reference_tokenizer: CLIPTokenizer, parity: Parity
) -> None:
    model, references = towers(name)
    (encoder,) = model.family.text_encoders
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=references["text_encoder"],
        tokenizer=with_pad(reference_tokenizer, encoder.pad_token),
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if not hasattr(references["text_encoder"], "text_model"):  # where diffusers looks for the final norm
        object.__setattr__(references["text_encoder"], "text_model", references["text_encoder"])
    # diffusers counts the layers that are left out, AUTOMATIC1111 from 1
    left_out = None if skip is None else skip - 1
    wanted, _ = pipeline.encode_prompt(text, "cpu", 1, False, clip_skip=left_out)
    prompt = understand(text, 20, dialect="diffusers")
    (found,) = conditionings(model, prompt, emphasis="none", clip_skip=skip, dialect="diffusers")
    parity(f"prompt encoding, {model.family.title}", f"{DIFFUSERS} encode_prompt", error(found.context, wanted), BOUND)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_textual_inversion(name: str, reference_tokenizer: CLIPTokenizer, tmp_path: Path, parity: Parity) -> None:
    """Three vectors from AUTOMATIC1111's file (SDXL: of both towers), the words around them, and an end that is cut."""
    model, references = towers(name)
    vectors = {e.name: torch.randn(3, e.config.width) for e in model.family.text_encoders}
    base: dict[str, Any] = {"vae": None, "unet": None, "scheduler": None}
    if name == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            text_encoder=references["text_encoder"],
            text_encoder_2=references["text_encoder_2"],
            tokenizer=with_pad(reference_tokenizer, 49407),
            tokenizer_2=with_pad(reference_tokenizer, 0),
            add_watermarker=False,
            **base,
        )
        path = tmp_path / "toy.safetensors"
        save_file({"clip_l": vectors["text_encoder"], "clip_g": vectors["text_encoder_2"]}, path)
        for tower, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
            parts = {"text_encoder": getattr(pipeline, tower), "tokenizer": getattr(pipeline, tokenizer)}
            pipeline.load_textual_inversion({"<toy>": vectors[tower]}, **parts)
    else:
        (encoder,) = model.family.text_encoders
        pipeline = StableDiffusionPipeline(
            text_encoder=references["text_encoder"],
            tokenizer=with_pad(reference_tokenizer, encoder.pad_token),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **base,
        )
        path = tmp_path / "toy.pt"
        torch.save({"string_to_param": {"*": vectors["text_encoder"]}, "name": "toy"}, path)
        pipeline.load_textual_inversion(str(tmp_path), weight_name="toy.pt", token="<toy>", use_safetensors=False)
    speaking = with_embeddings(model, [read_embedding(path, model.family, "<toy>")])
    for text in ("a photo of <toy> on a table", "cat " * 73 + "<toy>"):
        wanted = pipeline.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[
            0
        ]
        options: dict[str, Any] = {"emphasis": "none", "dialect": "diffusers", "sizes": SIZES}
        (found,) = conditionings(speaking, understand(text, 20, dialect="diffusers"), **options)
        subject, reference = f"textual inversion, {model.family.title}", f"{DIFFUSERS} load_textual_inversion"
        parity(subject, reference, error(found.context, wanted), BOUND)


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS, ids=["empty", "brackets", "too long"])
@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
def test_encode_prompt_xl(name: str, text: str, reference_tokenizer: CLIPTokenizer, parity: Parity) -> None:
    model, references = towers(name)
    base = name == "sdxl"
    left = references["text_encoder"] if base else None
    kind = StableDiffusionXLPipeline if base else StableDiffusionXLImg2ImgPipeline
    pipeline = kind(
        vae=None,
        text_encoder=left,
        text_encoder_2=references["text_encoder_2"],
        tokenizer=with_pad(reference_tokenizer, 49407) if base else None,
        tokenizer_2=with_pad(reference_tokenizer, 0),
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    wanted, wanted_negative, pooled, pooled_negative = pipeline.encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    options: dict[str, Any] = {"emphasis": "none", "dialect": "diffusers", "sizes": SIZES}
    (found,) = conditionings(model, understand(text, 20, dialect="diffusers"), **options)
    subject, reference = f"prompt encoding, {model.family.title}", f"{DIFFUSERS} encode_prompt"
    parity(subject, reference, error(found.context, wanted), BOUND)
    assert found.pooled is not None
    parity(f"{subject}, pooled", reference, error(found.pooled, pooled), BOUND)
    if base:  # the refiner's pipeline is told not to zero an absent negative prompt by its checkpoint's file
        (nothing,) = conditionings(model, understand("", 20, dialect="diffusers"), negative=True, **options)
        assert torch.equal(nothing.context, wanted_negative)
        assert nothing.pooled is not None
        assert torch.equal(nothing.pooled, pooled_negative)


# --- Weights: the tools' formulas, spelled out token by token

WEIGHTED = ["a (red:1.4) cat, [blue] (((dog)))", "(a:0.3) " + "cat " * 80 + "(b:1.7)", "a (b:0) (c:-0.5)", "plain"]


def bare(model: Model, made: Any) -> list[Tensor]:
    """Each chunk's (77, C) hidden states of the first tower."""
    (encoder, *_) = model.family.text_encoders
    tower = model.text_encoders[encoder.name]
    rows = [tower(torch.tensor([chunk.ids])) for chunk in made]
    return [row.last[0] if encoder.layer == -1 else row.hidden[encoder.layer][0] for row in rows]


@torch.no_grad()
@pytest.mark.parametrize("text", WEIGHTED, ids=range(len(WEIGHTED)))
@pytest.mark.parametrize("emphasis", ["original", "no norm", "ignore"])
def test_emphasis(emphasis: Any, text: str, parity: Parity) -> None:
    model, _ = towers("sd1")
    made, _ = chunks(text, clip(), 49407)
    wanted = []
    for chunk, hidden in zip(made, bare(model, made)):
        rows = torch.stack([row * (1.0 if emphasis == "ignore" else w) for row, w in zip(hidden, chunk.weights)])
        wanted.append(rows * (hidden.mean() / rows.mean()) if emphasis == "original" else rows)
    (found,) = conditionings(model, understand(text, 20), emphasis=emphasis)
    parity(
        f"emphasis, {emphasis}", f"{A1111} sd_emphasis, closed form", error(found.context[0], torch.cat(wanted)), BOUND
    )
    if emphasis == "original":
        for index, hidden in enumerate(bare(model, made)):
            mean = found.context[0, 77 * index : 77 * index + 77].mean()
            assert mean == pytest.approx(float(hidden.mean()), rel=1e-4, abs=1e-6)


@torch.no_grad()
def test_no_emphasis_reads_brackets_as_text() -> None:
    model, _ = towers("sd1")
    (found,) = conditionings(model, understand("(cat:1.3)", 20), emphasis="none")
    made, _ = chunks("\\(cat:1.3\\)", clip(), 49407)
    assert torch.equal(found.context[0], bare(model, made)[0])


@torch.no_grad()
@pytest.mark.parametrize("text", WEIGHTED, ids=range(len(WEIGHTED)))
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_comfyui(name: str, text: str, parity: Parity) -> None:
    model, _ = towers(name)
    encoder = model.family.text_encoders[0]
    made, _ = chunks(text, clip(), 49407, "comfyui")
    empty = bare(model, chunks("", clip(), 49407, "comfyui")[0])[0]
    wanted = [
        (row - nothing) * weight + nothing
        for chunk, hidden in zip(made, bare(model, made))
        for row, nothing, weight in zip(hidden, empty, chunk.weights)
    ]
    prompt = understand(text, 20, dialect="comfyui")
    (found,) = conditionings(model, prompt, emphasis="comfyui", dialect="comfyui", sizes=SIZES)
    ours = found.context[0, :, : encoder.config.width]
    parity("emphasis, comfyui", f"{COMFYUI} encode_token_weights, closed form", error(ours, torch.stack(wanted)), BOUND)
