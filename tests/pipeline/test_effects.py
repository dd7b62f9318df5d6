"""Adapters act on a real model as they were taught: small ones, fitted to the bundled model in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

import danqing
from danqing.adapters.preprocess import to_hint
from danqing.families import Model
from danqing.models.controlnet import from_unet
from danqing.models.patches import Patches
from danqing.prompts.encode import conditionings
from danqing.prompts.grammar import understand
from danqing.train.objectives import noised
from lora_files import kohya

BLUE = (30, 90, 230)
TAGS = (" <lora:./blue.safetensors:0.5>", " <lora:./blue.safetensors:1>")


@pytest.fixture(scope="module")
def model() -> Model:
    return danqing.load(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def fit(
    model: Model, weights: list[Tensor], pictures: list[Image.Image], rate: float, ask: Callable[..., Tensor]
) -> None:
    """Train `weights` until `ask(noisy, level, context, which pictures)` tells these pictures from noise."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = model.autoencoder.encode(torch.cat([to_hint(picture) for picture in pictures]) * 2 - 1).mode()
        (empty,) = conditionings(model, understand("", 1))
    optimizer = torch.optim.Adam(weights, rate)
    for _ in range(25):
        rows = torch.randint(len(pictures), (4,), generator=generator)
        levels = torch.randint(700, 1000, (4,), generator=generator)
        noise = torch.randn(clean[rows].shape, generator=generator)
        noisy, target, told = noised(model.process, clean[rows], noise, levels)
        optimizer.zero_grad()
        (ask(noisy, told, empty.context, rows) - target).square().mean().backward()
        optimizer.step()


def painted(model: Model, prompt: str, **fields: object) -> NDArray[np.float64]:
    """(128, 128, 3), from 0 to 255."""
    options = {"seed": 1, "steps": 8, "cfg_scale": 1.0, **fields}
    return np.asarray(danqing.paint(prompt, model, say=lambda line: None, **options)[0].image, dtype=np.float64)


def test_a_lora_taught_blue_paints_blue(model: Model) -> None:
    unet = model.denoiser
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".attn" in name]
    base = {f"{name}.weight": unet.get_submodule(name).weight.detach() for name in layers}
    generator = torch.Generator().manual_seed(0)
    down = {name: torch.randn(4, base[f"{name}.weight"].shape[1], generator=generator) * 0.05 for name in layers}
    up = {name: torch.zeros(base[f"{name}.weight"].shape[0], 4) for name in layers}
    weights = [tensor.requires_grad_() for tensor in (*down.values(), *up.values())]

    def ask(noisy: Tensor, told: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        changed = {f"{name}.weight": base[f"{name}.weight"] + up[name] @ down[name] for name in layers}
        return functional_call(unet, changed, (noisy, told, context))

    fit(model, weights, [Image.new("RGB", (128, 128), BLUE)], 1e-2, ask)
    keys = {f"{kohya(name)}.lora_down.weight": down[name].detach() for name in layers}
    keys |= {f"{kohya(name)}.lora_up.weight": up[name].detach() for name in layers}
    save_file(keys | {f"{kohya(name)}.alpha": torch.tensor(4.0) for name in layers}, "blue.safetensors")

    def blueness(prompt: str) -> float:
        picture = painted(model, prompt)
        return float((picture[..., 2] - picture[..., 0]).mean())

    plain, half, whole = (blueness(f"a red apple, flat style{tag}") for tag in ("", *TAGS))
    assert half > plain + 20
    assert whole > plain + 60
    assert blueness("a red apple, flat style") == plain


def test_a_controlnet_taught_places_paints_there(model: Model) -> None:
    def half(left: bool, paper: str, ink: str | tuple[int, int, int]) -> Image.Image:
        picture = Image.new("RGB", (128, 128), paper)
        ImageDraw.Draw(picture).rectangle((0, 0, 63, 127) if left else (64, 0, 127, 127), fill=ink)
        return picture

    hints = torch.cat([to_hint(half(left, "black", "white")) for left in (True, False)])
    network = from_unet(model.denoiser)

    def ask(noisy: Tensor, told: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        added = network(noisy, told, context, [network.hint(hints[rows])])
        residuals = {"mid_block": added.pop("mid_block")}
        return model.denoiser(noisy, told, context, patches=Patches(residuals=residuals, skips=added))

    fit(model, list(network.parameters()), [half(left, "white", BLUE) for left in (True, False)], 3e-3, ask)
    save_file(network.state_dict(), "places.safetensors")
    for left, name in ((True, "left.png"), (False, "right.png")):
        half(left, "black", "white").save(name)
    unit = "places.safetensors,{},none,1"
    sides = []
    for name in ("left.png", "right.png"):
        dark = 255 - painted(model, "a red apple, flat style", controls=unit.format(name)).mean(-1)
        sides.append(float(dark[:, :64].mean() - dark[:, 64:].mean()))
    assert sides[0] > 20
    assert sides[1] < -20
