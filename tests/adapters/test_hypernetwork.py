"""Hypernetworks: what AUTOMATIC1111's files hold, what attention makes of it, tags in prompts, what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from danqing.adapters.hypernetwork import ACTIVATIONS, apply, read, with_hypernetworks
from danqing.checkpoints.hashes import sha256
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.metadata.infotext import read_infotext
from danqing.models.conditioning import Conditioning
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.requests import TextToImage
from danqing.sampling.predict import predictor
from lora_files import random
from tiny_model import tiny_model

CLASSES = {name.lower(): getattr(nn, name) for name in dir(nn) if name.lower() in ACTIVATIONS}
CLASSES |= {"swish": nn.Hardswish, "prelu": nn.PReLU}


def net(
    width: int,
    structure: tuple[float, ...] = (1, 2, 1),
    activation: str = "linear",
    norm: bool = False,
    last: bool = False,
    dropout: tuple[float, ...] | None = None,
) -> nn.Sequential:
    """The modules that AUTOMATIC1111 makes, in its order and with its numbers."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(structure)):
        layers.append(nn.Linear(int(width * a), int(width * b)))
        if activation != "linear" and (i < len(structure) - 2 or last):
            layers.append(CLASSES[activation]())
        if norm:
            layers.append(nn.LayerNorm(int(width * b)))
        if dropout is not None and dropout[i + 1] > 0:
            layers.append(nn.Dropout(dropout[i + 1]))
    out = nn.Sequential(*layers).eval().requires_grad_(False)
    for number, parameter in enumerate(out.parameters()):
        parameter.copy_(random(*parameter.shape, seed=number + width, size=0.2))
    return out


def write(path: Path, nets: Mapping[int, tuple[nn.Sequential, nn.Sequential]], **more: Any) -> Path:
    """As its `Hypernetwork.save` writes them."""
    state = {
        width: tuple({f"linear.{key}": value for key, value in half.state_dict().items()} for half in pair)
        for width, pair in nets.items()
    }
    torch.save({**state, "step": 100, "name": path.stem, "optional_info": None, **more}, path)
    return path


def table(structure: tuple[float, ...], activation: str, norm: bool, last: bool) -> dict[str, Any]:
    keys = {"layer_structure": list(structure), "activation_func": activation, "is_layer_norm": norm}
    return {**keys, "activate_output": last, "sd_checkpoint": "ab12cd34", "sd_checkpoint_name": "model"}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("activation", ["linear", "prelu", *ACTIVATIONS])
def test_every_activation(tmp_path: Path, activation: str) -> None:
    pair = net(64, activation=activation), net(64, (1, 0.5, 1), activation)
    found = read(write(tmp_path / "a.pt", {64: pair}, **table((1, 2, 1), activation, False, False)))
    x = random(1, 7, 64, size=1)
    for ours, wanted in zip(found.pairs[64], pair):
        torch.testing.assert_close(apply(found, ours, x), wanted(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dropout", [None, (0, 0.3, 0.1, 0)])
def test_every_structure(tmp_path: Path, norm: bool, last: bool, dropout: tuple[float, ...] | None) -> None:
    structure = (1, 2, 1.5, 1)
    pair = tuple(net(32, structure, "relu", norm, last, dropout) for _ in range(2))
    found = read(write(tmp_path / "a.pt", {32: (pair[0], pair[1])}, **table(structure, "relu", norm, last)))
    assert found.structure == structure
    assert ("layer norms" in found.report) == norm
    x = random(1, 7, 32, size=1)
    torch.testing.assert_close(apply(found, found.pairs[32][1], x), pair[1](x), rtol=1e-5, atol=1e-6)


def test_the_first_days_files(tmp_path: Path) -> None:
    pair = net(64), net(64)
    names = {
        "0.weight": "linear1.weight",
        "0.bias": "linear1.bias",
        "1.weight": "linear2.weight",
        "1.bias": "linear2.bias",
    }
    halves = tuple({names[key]: value for key, value in half.state_dict().items()} for half in pair)
    torch.save({64: halves}, tmp_path / "old.pt")
    found = read(tmp_path / "old.pt")
    x = random(3, 64, size=1)
    torch.testing.assert_close(apply(found, found.pairs[64][0], x), pair[0](x), rtol=1e-5, atol=1e-6)


# --- in the U-Net


def answers(model: Model, context: Tensor) -> Tensor:
    latents = random(1, 4, 8, 8, size=5)
    return predictor(model)(latents, At(3.0, 0), [Conditioning(context)])[0]


def test_keys_and_values_of_every_layer_of_its_width(tmp_path: Path, tiny: Model) -> None:
    """Hooks on to_k and to_v that do what the definition says are the reference: x + s net(x), one behind another."""
    first, second = (net(64, activation="tanh"), net(64, (1, 3, 1), "tanh")), (net(64), net(64, (1, 1)))
    files = [
        read(write(tmp_path / "a.pt", {64: first}, activation_func="tanh", activate_output=False)),
        read(write(tmp_path / "b.pt", {64: second})),
    ]
    said: list[str] = []
    model = with_hypernetworks(tiny, [(files[0], 0.7), (files[1], -0.3)], said.append)
    assert [line[:3] for line in said] == ["a: ", "b: "]
    context = random(1, 77, 64, size=1)
    found = answers(model, context)
    hooks = []
    for name, layer in tiny.denoiser.named_modules():
        if name.endswith(("to_k", "to_v")) and layer.in_features == 64:
            half = name.endswith("to_v")

            def hook(module: nn.Module, given: tuple[Tensor], half: int = half) -> tuple[Tensor]:
                x = given[0] + 0.7 * first[half](given[0])
                return (x - 0.3 * second[half](x),)

            hooks.append(layer.register_forward_pre_hook(hook))
    wanted = answers(tiny, context)
    for each in hooks:
        each.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    plain = answers(tiny, context)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert tiny.patches is None
    assert torch.equal(plain, answers(with_hypernetworks(tiny, [(files[1], 0.0)], said.append), context))
    assert said[-1].startswith("b: changes nothing: its strength is 0")


def test_half_precision_stays(tmp_path: Path) -> None:
    model = tiny_model(torch.device("cpu"), torch.bfloat16)
    file = read(write(tmp_path / "a.pt", {64: (net(64), net(64))}))
    changed = with_hypernetworks(model, [(file, 1.0)])
    assert changed.patches is not None
    keys, values = next(iter(changed.patches.contexts.values()))(*[random(1, 5, 64).bfloat16()] * 2)
    assert keys.dtype == values.dtype == torch.bfloat16


# --- what does not fit


def test_other_families_and_damage_are_one_line(tmp_path: Path, tiny: Model) -> None:
    sizes = {width: (net(width), net(width)) for width in (320, 768)}
    file = read(write(tmp_path / "sd1.pt", sizes))
    with pytest.raises(DanqingError, match=r"sd1\.pt: does not fit .* made for Stable Diffusion 1\.x"):
        with_hypernetworks(tiny, [(file, 1.0)])
    pair = net(64), net(64)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "none.pt")
    for name, words in (
        ("none", "is no hypernetwork"),
        ("odd", "activation 'softmax' is unknown"),
        ("torn", "which does not fit those before it"),
        ("open", "end with 128, not 64"),
        ("nan", "not finite"),
    ):
        path = tmp_path / f"{name}.pt"
        if name == "odd":
            write(path, {64: pair}, activation_func="softmax")
        elif name == "torn":
            write(path, {64: (nn.Sequential(nn.Linear(64, 32), nn.Linear(64, 64)), pair[1])})
        elif name == "open":
            write(path, {64: (nn.Sequential(nn.Linear(64, 128)), pair[1])})
        elif name == "nan":
            bad = net(64)
            bad[0].weight.fill_(torch.nan)
            write(path, {64: (bad, pair[1])})
        with pytest.raises(DanqingError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


# --- in prompts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "models" / "hypernetworks"
    folder.mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    write(folder / "ink.pt", {64: (net(64), net(64))})
    return folder


def painted(model: Model, prompt: str, said: list[str] | None = None, **fields: Any) -> Picture:
    options: dict[str, Any] = {"steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", **fields}
    return paint(TextToImage(prompt=prompt, **options), model, say=([] if said is None else said).append)[0]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, dtype=np.int16)


def test_a_prompts_tag(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    plain, styled = painted(tiny, "a cat"), painted(tiny, "a cat<hypernet:ink:0.5>", said)
    assert said[0].startswith("ink: ")
    assert said[0].endswith("attention layers, sizes 64; layers 1, 2, 1; linear")
    given = painted(with_hypernetworks(tiny, [(read(folder / "ink.pt"), 0.5)]), "a cat")
    assert np.array_equal(pixels(styled), pixels(given))
    assert not np.array_equal(pixels(styled), pixels(plain))
    assert np.array_equal(pixels(painted(tiny, "a cat<hypernet:ink>")), pixels(painted(tiny, "a cat<hypernet:ink:1>")))
    digest = sha256(folder / "ink.pt")
    assert styled.record.others["hypernet:ink"].sha256 == digest
    assert f'Hypernet hashes: "ink: {digest[:12]}"' in styled.infotext
    told = read_infotext(styled.infotext)
    assert told.request.prompt == "a cat<hypernet:ink:0.5>"
    assert told.others["hypernet:ink"].sha256 == digest[:12]
    assert np.array_equal(pixels(painted(tiny, "a cat")), pixels(plain))


def test_tags_that_name_nothing_or_stand_elsewhere(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    found = painted(tiny, "a cat<hypernet:inc:1><hypernet:inc>", said, negative_prompt="<hypernet:ink:1>")
    assert np.array_equal(pixels(found), pixels(painted(tiny, "a cat")))
    assert len([line for line in said if line.startswith("<hypernet:inc>: hypernetwork 'inc' is unknown")]) == 1
    assert "<hypernet:ink:1> is left out: only the prompt's own count" in said
    with pytest.raises(DanqingError, match="'much' is no number"):
        painted(tiny, "<hypernet:ink:much>")


def test_a_hires_prompt_has_its_own(tiny: Model, folder: Path) -> None:
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    plain = painted(tiny, "a cat", **hires, hr_prompt="a cat ")
    second = painted(tiny, "a cat", **hires, hr_prompt="a cat <hypernet:ink>")
    both = painted(tiny, "a cat <hypernet:ink>", **hires)
    different = [not np.array_equal(pixels(a), pixels(b)) for a, b in ((plain, second), (second, both), (plain, both))]
    assert different == [True] * 3


def test_old_infotext_becomes_a_tag() -> None:
    text = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Hypernet: ink, Hypernet strength: 0.8"
    assert read_infotext(text).request.prompt == "a cat<hypernet:ink:0.8>"
