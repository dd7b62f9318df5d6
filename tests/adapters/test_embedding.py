"""Textual inversion: every layout of its files, what does not fit, and words in prompts, from tokens to pictures."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from danqing.adapters.embedding import bundled, read, with_embeddings
from danqing.checkpoints.files import open_file
from danqing.checkpoints.hashes import sha256
from danqing.cli import main
from danqing.errors import DanqingError
from danqing.families import FAMILIES, SD1, SD2, SDXL, Model
from danqing.metadata.infotext import read_infotext
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.prompts.chunks import FIRST_VECTOR, called, chunks, mentioned
from danqing.prompts.encode import conditionings
from danqing.prompts.explain import explain, render
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import clip
from danqing.requests import TextToImage
from danqing.vocabulary import Dialect
from lora_files import random, write
from tiny_model import tiny_model

V = FIRST_VECTOR


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def a1111(vectors: Tensor) -> dict[str, Any]:
    table = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x", "step": 500}
    return {**table, "sd_checkpoint": "ab12cd34", "sd_checkpoint_name": "model"}


# --- files


def test_every_layout_is_read(tmp_path: Path) -> None:
    one, two, big = random(768), random(2, 768, seed=1), random(2, 1280, seed=2)
    torch.save(a1111(two), tmp_path / "a1111.pt")
    torch.save(torch.nn.ParameterDict({"*": two}), tmp_path / "old.pt")
    torch.save({"<cat-toy>": one}, tmp_path / "diffusers.bin")
    torch.save(two, tmp_path / "plain.pt")
    write(tmp_path / "kohya.safetensors", {"emb_params": two})
    for name in ("a1111.pt", "old.pt", "plain.pt", "kohya.safetensors"):
        found = read(tmp_path / name, SD1)
        assert (found.name, found.count) == (name.split(".")[0], 2)
        assert torch.equal(found.vectors["text_encoder"], two)
    alone = read(tmp_path / "diffusers.bin", FAMILIES["sd1-inpaint"], "toy")
    assert (alone.name, alone.count) == ("toy", 1)
    assert torch.equal(alone.vectors["text_encoder"], one[None])
    for keys in (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")):
        path = write(tmp_path / "xl.safetensors", dict(zip(keys, (two, big))))
        found = read(path, SDXL)
        assert torch.equal(found.vectors["text_encoder"], two)
        assert torch.equal(found.vectors["text_encoder_2"], big)
        assert list(read(path, FAMILIES["sdxl-refiner"]).vectors) == ["text_encoder_2"]
    assert read(write(tmp_path / "h.safetensors", {"emb_params": random(3, 1024)}), SD2).count == 3


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    path = write(tmp_path / "half.safetensors", {"emb_params": random(2, 768).half()})
    assert read(path, SD1).vectors["text_encoder"].dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"emb_params": random(2, 1024)}, "its vectors are 1024 wide, not 768; it is made for Stable Diffusion 2.x"),
        ({"clip_l": random(2, 768), "clip_g": random(2, 1280)}, "768 and 1280 wide, not 768; it is made for Stable Diffusion XL"),
        ({"emb_params": random(2, 99)}, "99 wide, not 768"),
        ({"emb_params": random(80, 768)}, "holds 80 vectors, but a chunk of a prompt has room for 75"),
        ({"emb_params": random(2, 2, 768)}, "of no shape that makes sense"),
        ({"emb_params": random(0, 768)}, "of no shape that makes sense"),
        ({"emb_params": random(2, 768) / 0}, "numbers that are not finite"),
        ({"a": random(2, 768), "b": random(2, 768)}, "holds several words"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "holds no vectors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(DanqingError) as caught:
        read(path, SD1)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_towers_of_unlike_counts_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="no shape that makes sense"):
        read(write(tmp_path / "x.safetensors", {"clip_l": random(2, 768), "clip_g": random(3, 1280)}), SDXL)
    with pytest.raises(DanqingError, match="made for Stable Diffusion 1"):
        read(write(tmp_path / "y.safetensors", {"emb_params": random(2, 768)}), SDXL)


def test_an_embedding_of_other_towers_is_refused(tmp_path: Path, tiny: Model) -> None:
    other = read(write(tmp_path / "x.safetensors", {"emb_params": random(2, 768)}), SD1)
    with pytest.raises(DanqingError, match="was read for other text encoders than tiny"):
        with_embeddings(tiny, [other])


def test_embeddings_inside_a_lora(tmp_path: Path) -> None:
    tensors = {"bundle_emb.cat.string_to_param.*": random(2, 768), "lora_unet_x.alpha": torch.tensor(1.0)}
    (found,) = bundled(open_file(write(tmp_path / "x.safetensors", tensors)), SD1)
    assert (found.name, found.count) == ("cat", 2)


# --- tokens


def ids(text: str, words: dict[str, int], dialect: Dialect = "danqing") -> list[tuple[int, ...]]:
    return [chunk.ids[1 : chunk.used + 1] for chunk in chunks(text, clip(), 0, dialect, words=words)[0]]


def plain(text: str) -> tuple[int, ...]:
    return tuple(clip().encode(text))


def test_bare_names_stand_for_their_vectors_longest_first() -> None:
    words = {"bad": 1, "bad hands": 2, "Bad-Prompt_v2": 3}
    assert ids("bad cat", words) == [(V, *plain("cat"))]
    assert ids("very BAD  hands, bad", words) == [(*plain("very"), V + 1, V + 2, *plain(","), V)]
    assert ids("(bad-prompt_v2:1.2)", words) == [(V + 3, V + 4, V + 5)]
    assert ids("badly", words) == [plain("badly")]
    assert ids("bad hands", words, "comfyui") == [plain("bad hands")]
    assert ids("bad hands", words, "diffusers") == [(V + 1, V + 2)]
    (chunk,) = chunks("a (bad:1.5)", clip(), 0, words=words)[0]
    assert chunk.weights[1:4] == (1.0, 1.5, 1.0)


def test_comfyuis_calls() -> None:
    words = {"embedding:x": 2, "embedding:sub/y.pt": 1, "z": 1}
    text = "a embedding:x, b\nembedding:sub/y.pt (embedding:z:1.2) embedding:none c"
    wanted = (*plain("a"), V, V + 1, *plain(", b"), V + 2, V + 3, *plain("c"))
    assert ids(text, words) == [wanted]
    assert ids(text, words, "comfyui") == [wanted]
    assert called(understand(text, 1), "danqing") == ("x", "sub/y.pt", "z", "none")
    assert called(understand(text, 1), "a1111") == ()
    assert ids("myembedding:x", words) == [plain("myembedding:x")]
    assert ids("x embedding:z", words, "a1111") == [(*plain("x embedding:"), V + 3)]


def test_an_embedding_moves_whole_into_the_next_chunk() -> None:
    """AUTOMATIC1111 moves it; ComfyUI does so only below 8 vectors."""
    text, words = "cat " * 73 + "x", {"x": 8, "embedding:x": 8}
    first, second = ids(text, words)
    assert first == plain("cat " * 73)
    assert second == tuple(range(V, V + 8))
    cut = ids("cat " * 73 + "embedding:x", words, "comfyui")
    assert [len(each) for each in cut] == [75, 6]
    assert [len(each) for each in ids("cat " * 70 + "embedding:x", {"embedding:x": 6}, "comfyui")] == [70, 6]


def test_mentions_are_told_by_tokens() -> None:
    words = {"cat": 1, "red": 2}
    assert mentioned(understand("[red:blue:5] concatenate", 10), clip(), words, "danqing") == ("red",)
    assert mentioned(understand("a cat AND red", 10), clip(), words, "danqing") == ("cat", "red")


def test_explained() -> None:
    page = render(explain("a (toy:1.2)", SD1, 4, words={"toy": 2}))
    assert "  chunk 1 of 1: 3 of 75 tokens" in page
    assert [line.split()[-2:] for line in page.splitlines()[-2:]] == [["toy", "1/2"], ["toy", "2/2"]]
    told = explain("cat " * 74 + "toy", SD1, 4, "diffusers", words={"toy": 2}).parts[0].segments[0]
    assert (told.tokens, told.cut) == (75, "toy 2/2")


# --- encoding


def test_vectors_take_the_tokens_places(tiny: Model) -> None:
    """A word whose vectors are those of other words is those words."""
    tower = tiny.text_encoders["text_encoder"]
    table = tower.text_model.embeddings.token_embedding.weight
    vectors = table[list(plain("red apple"))].clone()
    model = replace(tiny, embeddings={"zzq": {"text_encoder": vectors}})
    for text, same in (("a zzq on a (zzq:1.3) table", "a red apple on a (red apple:1.3) table"), ("zzq", "red apple")):
        (found,), (wanted,) = (conditionings(m, understand(t, 10)) for m, t in ((model, text), (tiny, same)))
        assert torch.equal(found.context, wanted.context)
    (before,), (after,) = (conditionings(m, understand("a zzq", 10)) for m in (tiny, model))
    assert not torch.equal(before.context, after.context)
    (found,) = conditionings(model, understand("a cat", 10))
    assert torch.equal(found.context, conditionings(tiny, understand("a cat", 10))[0].context)


# --- pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "models" / "embeddings"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    torch.save(a1111(random(2, 64, size=1)), folder / "ugly.pt")
    write(folder / "sub" / "toy.safetensors", {"emb_params": random(3, 64, seed=3, size=1)})
    write(folder / "wide.safetensors", {"emb_params": random(2, 768)})
    return folder


def painted(model: Model, prompt: str, said: list[str] | None = None, **fields: Any) -> Picture:
    options: dict[str, Any] = {"steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", **fields}
    return paint(TextToImage(prompt=prompt, **options), model, say=([] if said is None else said).append)[0]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, dtype=np.int16)


def test_a_prompts_embeddings_change_the_picture_and_are_recorded(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    styled = painted(tiny, "a toy", said, negative_prompt="Ugly")
    loaded = [read(folder / "ugly.pt", tiny.family), read(folder / "sub" / "toy.safetensors", tiny.family)]
    given = painted(with_embeddings(tiny, loaded), "a toy", negative_prompt="ugly")
    assert np.array_equal(pixels(styled), pixels(given))
    assert not np.array_equal(pixels(styled), pixels(painted(tiny, "a toyy", negative_prompt="Ugly")))
    assert said[:2] == ["toy: an embedding of 3 vectors", "ugly: an embedding of 2 vectors"]
    digests = {name: sha256(folder / file)[:12] for name, file in (("toy", "sub/toy.safetensors"), ("ugly", "ugly.pt"))}
    assert f'TI hashes: "toy: {digests["toy"]}, ugly: {digests["ugly"]}"' in styled.infotext
    told = read_infotext(styled.infotext)
    assert {key: file.sha256 for key, file in told.others.items()} == {f"embedding:{n}": d for n, d in digests.items()}
    assert styled.record.others["embedding:toy"].sha256 == sha256(folder / "sub" / "toy.safetensors")
    assert not tiny.embeddings


def test_a_file_that_is_made_again_is_read_again(tiny: Model, folder: Path) -> None:
    cache: dict[Any, Any] = {}
    options: dict[str, Any] = {"steps": 1, "width": 64, "height": 64, "seed": 1}

    def toy() -> np.ndarray[Any, Any]:
        return pixels(paint(TextToImage(prompt="a toy", **options), tiny, say=lambda line: None, cache=cache)[0])

    before = toy()
    assert np.array_equal(before, toy())
    write(folder / "sub" / "toy.safetensors", {"emb_params": random(3, 64, seed=4, size=1)})
    assert not np.array_equal(before, toy())


def test_a_call_by_name_and_folder(tiny: Model, folder: Path) -> None:
    bare = pixels(painted(tiny, "a toy"))
    for name in ("toy", "sub/toy", "sub/toy.safetensors", str(folder / "sub" / "toy.safetensors")):
        assert np.array_equal(bare, pixels(painted(tiny, f"a embedding:{name}")))


def test_names_without_files_are_words_or_said_once(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    found = painted(tiny, "a cat embedding:tooy, embedding:tooy", said)
    (line,) = [line for line in said if "tooy" in line]
    assert line.startswith("embedding:tooy: embedding 'tooy' is unknown; ")
    assert line.endswith("; it is left out")
    assert np.array_equal(pixels(found), pixels(painted(tiny, "a cat,")))
    assert not any("embedding" in line for line in [*painted(tiny, "tooy concatoy").record.notes])


def test_a_file_of_another_family_stays_words_or_is_an_error(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    found = painted(tiny, "wide angle", said)
    assert any(line.endswith("Stable Diffusion 1.x; 'wide' stays ordinary words") for line in said)
    (folder / "wide.safetensors").unlink()
    assert np.array_equal(pixels(found), pixels(painted(tiny, "wide angle")))
    write(folder / "wide.safetensors", {"emb_params": random(2, 768)})
    with pytest.raises(DanqingError, match="does not fit tiny random weights"):
        painted(tiny, "embedding:wide")


def test_folders_that_cannot_be_read_do_not_keep_from_painting(tiny: Model, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text("a: b: c\n")
    (tmp_path / "config.toml").write_text(
        f"data_dir = {json.dumps(str(tmp_path))}\nfolders = [{json.dumps(str(tmp_path / 'extra_model_paths.yaml'))}]\n"
    )
    said: list[str] = []
    painted(tiny, "a toy", said)
    assert any(line.endswith("; names of embeddings stay ordinary words") for line in said)


def test_the_second_pass_and_regions_know_them_too(tiny: Model, folder: Path) -> None:
    region = {"prompt": "toy", "x": 0, "y": 0, "width": 0.5, "height": 1}
    found = painted(tiny, "a", regions=(region,))
    assert "embedding:toy" in found.record.others
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "hr_negative_prompt": "ugly"}
    assert list(painted(tiny, "a", **hires).record.others) == ["embedding:ugly"]


def test_the_prompts_command_counts_their_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["danqing", "prompt", "a (wide:1.2) embedding:wide embedding:no", "--dialect", "danqing"]
    )
    with suppress(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert "chunk 1 of 1: 5 of 75 tokens" in out
    assert "wide 2/2" in out
    assert "embedding:no: embedding 'no' is unknown" in err
