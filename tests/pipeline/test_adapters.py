"""LoRAs that a prompt names: found by name and alias, applied, recorded; what names no file is said once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from danqing.adapters.apply import Use, apply
from danqing.adapters.lora import read
from danqing.adapters.schedule import averaged, between, by_places, in_turn, scheduled
from danqing.checkpoints.hashes import addnet_hash, sha256
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.models.conditioning import Conditioning
from danqing.models.weights import ByStep
from danqing.pipeline.adapters import tags, wanted
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.requests import ResolvedRequest, TextToImage
from danqing.sampling.predict import predictor
from lora_files import CONV, QUERY, TEXT, keyed, lora, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """A library with one LoRA, `ink`, that its trainer called `spilled`."""
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    shapes = {QUERY: (64, 64), CONV: (64, 32, 3, 3), TEXT: (64, 64)}
    layers = {name: lora(shape) for name, shape in shapes.items()}
    write(tmp_path / "models" / "loras" / "ink.safetensors", keyed(layers), {"ss_output_name": "spilled"})
    return tmp_path / "models" / "loras"


def painted(model: Model, prompt: str, said: list[str] | None = None, **fields: Any) -> Picture:
    options: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler"}
    words = [] if said is None else said
    return paint(TextToImage(prompt=prompt, **options, **fields), model, say=words.append)[0]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, dtype=np.int16)


def test_a_prompts_lora_changes_the_picture_and_is_recorded(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    plain, styled = painted(tiny, "a cat"), painted(tiny, "a cat <lora:ink:0.8>", said)
    assert np.abs(pixels(plain) - pixels(styled)).max() > 2
    assert said[0].startswith("ink: 3 of 3 layers, rank 4, effect ")
    assert not any("left out" in line for line in said)
    path = folder / "ink.safetensors"
    reference = styled.record.others["lora:ink"]
    assert (reference.name, reference.autov3, reference.sha256) == ("ink", addnet_hash(path), sha256(path))
    assert f'Lora hashes: "ink: {addnet_hash(path)[:12]}"' in styled.infotext
    assert ResolvedRequest.model_validate_json(styled.record.model_dump_json()) == styled.record
    again = painted(tiny, "a cat")
    assert np.array_equal(pixels(plain), pixels(again))


def test_names_aliases_and_paths_are_one(tiny: Model, folder: Path) -> None:
    names = ["ink", "INK", "spilled", str(folder / "ink.safetensors")]
    pictures = [pixels(painted(tiny, f"a cat <lora:{name}:0.8>")) for name in names]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures[1:])


def test_a_name_that_is_no_files_is_said_once(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    picture = painted(tiny, "a cat <lora:inc:0.8> <lora:inc:0.5>", said)
    (line,) = [line for line in said if "inc" in line]
    assert line.startswith("<lora:inc>: lora 'inc' is unknown; ")
    assert line.endswith("; painted without it")
    assert np.array_equal(pixels(picture), pixels(painted(tiny, "a cat")))
    assert not picture.record.others


def test_a_file_that_does_not_fit_is_an_error(tiny: Model, folder: Path) -> None:
    write(folder / "wide.safetensors", keyed({QUERY: lora((320, 320))}))
    with pytest.raises(DanqingError, match=r"wide\.safetensors: does not fit"):
        painted(tiny, "a cat <lora:wide:1>")


def test_weights_of_text_encoder_and_unet(tiny: Model, folder: Path) -> None:
    assert np.array_equal(pixels(painted(tiny, "a cat <lora:ink:0>")), pixels(painted(tiny, "a cat")))
    one, other = (pixels(painted(tiny, f"a cat <lora:ink:{weights}>")) for weights in ("1:0", "0:1"))
    assert not np.array_equal(one, other)
    assert np.array_equal(one, pixels(painted(tiny, "a cat <lyco:ink:te=1:unet=0>")))


@pytest.mark.parametrize(
    ("tag", "te", "unet"),
    [("x", 1, 1), ("x:0.5", 0.5, 0.5), ("x:0.5:0.2", 0.5, 0.2), ("x:unet=0.2", 1, 0.2), ("x:te=0:unet=-1", 0, -1)],
)
def test_what_a_tag_asks_for(tag: str, te: float, unet: float) -> None:
    (found,) = tags(f"a <lora:{tag}>", TextToImage())
    asked = wanted(found, 20, lambda line: None)
    assert (asked.name, asked.te, asked.unet) == ("x", te, unet)


def test_steps_blocks_and_what_has_no_effect() -> None:
    said: list[str] = []
    (found,) = tags("<lora:x:1:lbw=OUTALL:start=0.25:stop=15:dyn=4>", TextToImage())
    asked = wanted(found, 20, said.append)
    assert [asked.holds(step) for step in (4, 5, 14, 15)] == [False, True, True, False]
    assert asked.blocks is not None
    assert asked.blocks["OUT03"] == 1
    assert asked.blocks["IN01"] == 0
    assert said == ["<lora:x:1:lbw=OUTALL:start=0.25:stop=15:dyn=4>: 'dyn=4' has no effect"]
    for text in ("<lora:x:much>", "<lora:x:1:start=soon>", "<lora:x:1:lbw=SOME>", "<lora:x:nan>"):
        with pytest.raises(DanqingError):
            wanted(tags(text, TextToImage())[0], 20, said.append)


def test_a_strength_that_changes_from_step_to_step_is_the_tag_again(tiny: Model, folder: Path) -> None:
    ink = read(folder / "ink.safetensors", tiny.family)
    changing = painted(tiny, "a cat <lora:ink:1:0.2:stop=1> <lora:ink:0:0.8:start=1:stop=2> <lora:ink:0:-0.5:start=2>")
    uses = [(Use(ink, 1, 0.2), between(0, 1)), (Use(ink, 0, 0.8), between(1, 2)), (Use(ink, 0, -0.5), between(2, 9))]
    assert np.array_equal(pixels(changing), pixels(painted(scheduled(tiny, uses, 3), "a cat  ")))
    assert list(changing.record.others) == ["lora:ink"]
    assert not np.array_equal(pixels(changing), pixels(painted(tiny, "a cat <lora:ink:1:0.2>")))


def test_tags_elsewhere_are_left_out_and_said(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    picture = painted(tiny, "a cat", said, negative_prompt="<lora:ink:1>")
    assert "<lora:ink:1> is left out: only the prompt's own count" in said
    assert np.array_equal(pixels(picture), pixels(painted(tiny, "a cat")))


def test_a_hires_prompt_has_its_own(tiny: Model, folder: Path) -> None:
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    plain = painted(tiny, "a cat", **hires, hr_prompt="a cat ")
    second = painted(tiny, "a cat", **hires, hr_prompt="a cat <lora:ink:1>")
    both = painted(tiny, "a cat <lora:ink:1>", **hires)
    different = [not np.array_equal(pixels(a), pixels(b)) for a, b in ((plain, second), (second, both), (plain, both))]
    assert different == [True] * 3
    assert list(second.record.others) == ["lora:ink"]


def test_steps_choose_the_network(tiny: Model, folder: Path) -> None:
    unet = "te=0:unet=1"
    never = painted(tiny, f"a cat <lora:ink:{unet}:start=5>")
    always = painted(tiny, f"a cat <lora:ink:{unet}:start=0:stop=3>")
    early = painted(tiny, f"a cat <lora:ink:{unet}:stop=1>")
    assert np.array_equal(pixels(never), pixels(painted(tiny, "a cat")))
    assert np.array_equal(pixels(always), pixels(painted(tiny, f"a cat <lora:ink:{unet}>")))
    assert not np.array_equal(pixels(early), pixels(never))
    assert not np.array_equal(pixels(early), pixels(always))


def test_taking_turns_is_a_function_of_the_step(tiny: Model, folder: Path) -> None:
    write(folder / "oil.safetensors", keyed({QUERY: lora((64, 64), seed=7)}))
    uses = [Use(read(folder / f"{name}.safetensors", tiny.family), te=0) for name in ("ink", "oil")]
    model = scheduled(tiny, in_turn(uses, 2), 8)
    assert isinstance(model.denoiser, ByStep)
    assert len(model.denoiser.networks) == 2
    order = [model.denoiser.at(step) is model.denoiser.networks[0] for step in (0, 1.5, 2, 3, 4, 5, 6, 7, 99)]
    assert order == [True, True, False, False, True, True, False, False, False]
    latents, context = torch.randn(1, 4, 8, 8), Conditioning(torch.randn(1, 77, 64))
    for step, use in ((0, uses[0]), (2, uses[1])):
        alone = replace(scheduled(tiny, [(use, between(0, 9))], 1), name="alone")
        (got,), (want) = (predictor(each)(latents, At(1.0, step), [context]) for each in (model, alone))
        assert torch.equal(got, want[0])


def test_a_refiner_of_the_family_wears_them_too(tiny: Model, folder: Path) -> None:
    fields: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler"}
    fields |= {"refiner_checkpoint": "r", "refiner_switch_at": 0.1}
    stranger = replace(tiny, family=replace(tiny.family, name="stranger"))
    said: list[str] = []

    def refined(refiner: Model) -> np.ndarray[Any, Any]:
        request = TextToImage(prompt="a cat <lora:ink:0:1>", **fields)
        return pixels(paint(request, tiny, say=said.append, models={"r": refiner})[0])

    assert np.array_equal(refined(tiny), pixels(painted(tiny, "a cat <lora:ink:0:1>")))
    assert not any("paints without" in line for line in said)
    assert not np.array_equal(refined(stranger), refined(tiny))
    assert any(line.startswith("refiner_checkpoint: tiny random weights paints without") for line in said)


def test_answers_are_averaged_or_shared_by_places(tiny: Model, folder: Path) -> None:
    write(folder / "oil.safetensors", keyed({QUERY: lora((64, 64), seed=7)}))
    uses = [Use(read(folder / f"{name}.safetensors", tiny.family), te=0) for name in ("ink", "oil")]
    x, step, context = torch.randn(1, 4, 8, 8), torch.tensor([300.0]), torch.randn(1, 77, 64)
    alone = [apply(tiny, [use]).denoiser(x, step, context) for use in uses]
    plain = tiny.denoiser(x, step, context)
    mean = averaged(tiny, uses).denoiser(x, step, context)
    assert torch.allclose(mean, (alone[0] + alone[1]) / 2, atol=1e-6)
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    bottom = torch.zeros(16, 16)
    bottom[8:] = 1
    shared = by_places(tiny, list(zip(uses, (left, bottom)))).denoiser(x, step, context)
    assert torch.allclose(shared[..., :4, :4], alone[0][..., :4, :4], atol=1e-6)
    assert torch.allclose(shared[..., 4:, 4:], alone[1][..., 4:, 4:], atol=1e-6)
    assert torch.allclose(shared[..., 4:, :4], mean[..., 4:, :4], atol=1e-6)
    assert torch.allclose(shared[..., :4, 4:], plain[..., :4, 4:], atol=1e-6)
    for masks in ((left, bottom[:8]), (left * 2, bottom)):
        with pytest.raises(DanqingError, match="masks of adapters"):
            by_places(tiny, list(zip(uses, masks)))
    picture = painted(averaged(tiny, uses), "a cat")
    assert not np.array_equal(pixels(picture), pixels(painted(tiny, "a cat")))
