"""Whole pictures steered by ControlNets and T2I-Adapters, against diffusers' pipelines: same files, same picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import danqing
from danqing.adapters.control import Unit
from danqing.adapters.preprocess import to_hint
from danqing.checkpoints.controls import load_control
from danqing.requests import TextToImage
from tests.parity import pipelines
from tests.parity.test_image_pipelines import NEGATIVE, PROMPT, photograph, reference

Parity = Callable[[str, str, float, float], None]


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Its zero convolutions no longer zero, so that it says something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return network.eval()


@dataclass(frozen=True)
class Small:
    pipeline: Any
    folder: Path
    networks: tuple[Any, ...]
    """diffusers' own."""
    paths: tuple[Path, ...]


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("control")
    (root / "sd1").mkdir()
    pipeline = pipelines.sd1(root / "sd1")
    adapter = diffusers.T2IAdapter(channels=(32, 64), num_res_blocks=2)
    networks = [diffusers.ControlNetModel.from_unet(pipeline.unet) for _ in range(2)]
    whole = [randomised(network, seed) for seed, network in enumerate([*networks, adapter])]
    paths = [root / f"control{number}" for number in range(3)]
    for network, path in zip(whole, paths):
        network.save_pretrained(path)
    return Small(pipeline, root / "sd1", tuple(whole), tuple(paths))


def ours(folder: Path, shown: Sequence[tuple[Path, Image.Image, dict[str, Any]]], **fields: Any) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    request = TextToImage(
        prompt=PROMPT, negative_prompt=NEGATIVE, sampler_name="DDIM", steps=10, cfg_scale=5.0, seed=11,
        dialect="diffusers", width=64, height=64, **fields,
    )  # fmt: skip
    units = [Unit(load_control(path, model), (to_hint(image),), **more) for path, image, more in shown]
    (picture,) = danqing.paint(request, model, say=lambda line: None, units=units)
    return np.asarray(picture.image, dtype=np.float64)


def compare(parity: Parity, subject: str, name: str, got: np.ndarray, expected: np.ndarray, free: np.ndarray) -> None:
    assert np.abs(expected - free).max() > 8, "the control has no effect: nothing is compared"
    parity(subject, f"diffusers {name}", np.abs(got - expected).max() / 255, 1 / 255)


CASES: dict[str, tuple[list[int], dict[str, Any], list[dict[str, Any]]]] = {
    "one ControlNet": ([0], {"controlnet_conditioning_scale": 0.8}, [{"weight": 0.8}]),
    "ControlNet, start and end": (
        [0],
        {"control_guidance_start": 0.2, "control_guidance_end": 0.65, "controlnet_conditioning_scale": 2.0},
        [{"start": 0.2, "end": 0.65, "weight": 2.0}],
    ),
    "ControlNet, guess mode": ([0], {"guess_mode": True}, [{"mode": "guess"}]),
    "two ControlNets": (
        [0, 1],
        {"controlnet_conditioning_scale": [0.7, 0.4], "control_guidance_end": [0.5, 1.0]},
        [{"weight": 0.7, "end": 0.5}, {"weight": 0.4}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sd1(name: str, sd1: Small, parity: Parity) -> None:
    which, settings, mine = CASES[name]
    hints = [photograph(), photograph().rotate(90)][: len(which)]
    networks = [sd1.networks[i] for i in which]
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        **sd1.pipeline.components,
        controlnet=networks[0] if len(networks) == 1 else networks,
        requires_safety_checker=False,
    )
    expected = reference(pipeline, "DDIM", image=hints[0] if len(hints) == 1 else hints, **settings)
    free = reference(sd1.pipeline, "DDIM", height=64, width=64)
    got = ours(sd1.folder, [(sd1.paths[i], hint, more) for i, hint, more in zip(which, hints, mine)])
    compare(parity, f"{name}, whole picture", "StableDiffusionControlNetPipeline", got, expected, free)


def test_sdxl(tmp_path: Path, parity: Parity) -> None:
    (tmp_path / "sdxl").mkdir()
    plain = pipelines.sdxl(tmp_path / "sdxl")
    network = randomised(diffusers.ControlNetModel.from_unet(plain.unet), 3)
    network.save_pretrained(tmp_path / "control")
    pipeline = diffusers.StableDiffusionXLControlNetPipeline(**plain.components, controlnet=network)
    expected = reference(pipeline, "DDIM", image=photograph(), controlnet_conditioning_scale=0.9)
    free = reference(plain, "DDIM", height=64, width=64)
    got = ours(tmp_path / "sdxl", [(tmp_path / "control", photograph(), {"weight": 0.9})])
    compare(parity, "ControlNet, SDXL, whole picture", "StableDiffusionXLControlNetPipeline", got, expected, free)


def test_t2i_adapter(sd1: Small, parity: Parity) -> None:
    parts = {name: part for name, part in sd1.pipeline.components.items() if name != "image_encoder"}
    pipeline = diffusers.StableDiffusionAdapterPipeline(**parts, adapter=sd1.networks[2], requires_safety_checker=False)
    expected = reference(pipeline, "DDIM", image=photograph(), adapter_conditioning_scale=0.8)
    free = reference(sd1.pipeline, "DDIM", height=64, width=64)
    got = ours(sd1.folder, [(sd1.paths[2], photograph(), {"weight": 0.8})])
    compare(parity, "T2I-Adapter, whole picture", "StableDiffusionAdapterPipeline", got, expected, free)
