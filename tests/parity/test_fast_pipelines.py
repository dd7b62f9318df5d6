"""Whole pictures by guidance from attention and by models of few steps, against diffusers' pipelines: same folder, seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import danqing
from tests.parity import pipelines
from tests.parity.test_image_pipelines import NEGATIVE, PROMPT, reference

Parity = Callable[[str, str, float, float], None]
SIZE = {"width": 64, "height": 64}


def ours(folder: Path, say: Callable[[str], None] = lambda line: None, **fields: Any) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    (picture,) = danqing.paint(PROMPT, model, seed=11, dialect="diffusers", say=say, **SIZE, **fields)
    return np.asarray(picture.image, dtype=np.float64)


def compare(parity: Parity, subject: str, name: str, got: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 5
    parity(f"{subject}, whole picture", f"diffusers {name}", np.abs(got - expected).max() / 255, 1 / 255)


GUIDED: dict[str, Any] = {"negative_prompt": NEGATIVE, "sampler_name": "DDIM", "steps": 10, "cfg_scale": 5.0}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def sd1(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    folder = tmp_path_factory.mktemp(f"sd1-{request.param}")
    return pipelines.sd1(folder, request.param), folder, request.param


PAG: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # case: (the pipeline's, the call's, ours)
    "PAG": ({}, {"pag_scale": 3.0}, {"pag": "3"}),
    "PAG, adaptive, two blocks": (
        {"pag_applied_layers": ["mid", "down_blocks.0"]},
        {"pag_scale": 4.0, "pag_adaptive_scale": 0.006},
        {"pag": "4,0.006,mid+down_blocks.0"},
    ),
    "PAG without CFG": ({}, {"pag_scale": 3.0, "guidance_scale": 1.0}, {"pag": "3", "cfg_scale": 1.0}),
}


@pytest.mark.parametrize("case", PAG)
def test_pag(case: str, sd1: tuple[Any, Path, str], parity: Parity) -> None:
    pipeline, folder, prediction = sd1
    made, call, mine = PAG[case]
    theirs = diffusers.StableDiffusionPAGPipeline(**pipeline.components, requires_safety_checker=False, **made)
    try:
        expected = reference(theirs, "DDIM", **SIZE, **call)
    finally:
        pipeline.unet.set_default_attn_processor()  # the pipeline leaves its own behind
    free = ours(folder, **{**GUIDED, "cfg_scale": mine.get("cfg_scale", 5.0)})
    assert np.abs(expected - free).max() > 8
    got = ours(folder, **{**GUIDED, **mine})
    compare(parity, f"{case}, {prediction}", "StableDiffusionPAGPipeline", got, expected)


def test_pag_sdxl(tmp_path: Path, parity: Parity) -> None:
    pipeline = pipelines.sdxl(tmp_path)
    theirs = diffusers.StableDiffusionXLPAGPipeline(**pipeline.components)
    expected = reference(theirs, "DDIM", pag_scale=2.5, guidance_rescale=0.5, **SIZE)
    assert np.abs(expected - ours(tmp_path, guidance_rescale=0.5, **GUIDED)).max() > 3
    got = ours(tmp_path, pag="2.5", guidance_rescale=0.5, **GUIDED)
    compare(parity, "PAG with CFG rescale, SDXL", "StableDiffusionXLPAGPipeline", got, expected)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_sag(cfg: float, sd1: tuple[Any, Path, str], parity: Parity) -> None:
    pipeline, folder, prediction = sd1
    theirs = diffusers.StableDiffusionSAGPipeline(**pipeline.components, requires_safety_checker=False)
    expected = reference(theirs, "DDIM", sag_scale=0.9, guidance_scale=cfg, **SIZE)
    assert np.abs(expected - ours(folder, **{**GUIDED, "cfg_scale": cfg})).max() > 3
    got = ours(folder, **{**GUIDED, "cfg_scale": cfg, "sag": "0.9"})
    subject = f"SAG{'' if cfg > 1 else ' without CFG'}, {prediction}"
    compare(parity, subject, "StableDiffusionSAGPipeline", got, expected)


# --- few steps --------------------------------------------------------------------------------------------------------


def test_lcm(tmp_path: Path, parity: Parity) -> None:
    """Nothing is said of how to paint: the U-Net's guidance embedding tells."""
    plain = pipelines.sd1(tmp_path)
    torch.manual_seed(4)
    unet = pipelines._unet(time_cond_proj_dim=32)
    unet.save_pretrained(tmp_path / "unet")
    parts = {name: part for name, part in plain.components.items() if name not in ("unet", "scheduler")}
    scheduler = diffusers.LCMScheduler.from_config(plain.scheduler.config)
    theirs = diffusers.LatentConsistencyModelPipeline(
        **parts, unet=unet, scheduler=scheduler, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)

    def expected(scale: float) -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(11)
        settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "np", **SIZE}
        return (theirs(PROMPT, generator=generator, **settings).images[0] * 255).round()

    lines: list[str] = []
    name = "LatentConsistencyModelPipeline"
    compare(parity, "LCM", name, ours(tmp_path, lines.append), expected(8.0))
    assert any("guidance embedding" in line and "LCM" in line and "4 steps" in line for line in lines)
    assert np.abs(expected(8.0) - expected(2.0)).max() > 1
    compare(parity, "LCM, guidance scale 2", name, ours(tmp_path, cfg_scale=2.0), expected(2.0))


FEW: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # case: (scheduler class, its settings, the call's, our name)
    "LCM-LoRA": ("LCMScheduler", {}, {"num_inference_steps": 4}, "lcm-lora"),
    "TCD": ("TCDScheduler", {}, {"num_inference_steps": 4, "eta": 0.3}, "tcd"),
    "Turbo": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {"num_inference_steps": 1}, "turbo"),
    "Lightning": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {"num_inference_steps": 4}, "lightning"),
    "Hyper-SD": ("DDIMScheduler", {"timestep_spacing": "trailing"}, {"num_inference_steps": 8}, "hyper"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("few")
    return pipelines.sd1(folder), folder


@pytest.mark.parametrize("steps", [1, 3])
def test_a_network_that_predicts_the_picture(steps: int, small: tuple[Any, Path], parity: Parity) -> None:
    """SDXL Lightning's for one step does, by its model card with such a scheduler."""
    pipeline, folder = small
    before = pipeline.scheduler
    settings = {"timestep_spacing": "trailing", "prediction_type": "sample"}
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(before.config, **settings)
    generator = torch.Generator("cpu").manual_seed(11)
    made = pipeline(
        PROMPT, guidance_scale=0.0, generator=generator, output_type="np", num_inference_steps=steps, **SIZE
    )
    pipeline.scheduler = before
    model = danqing.load(folder, device="cpu", dtype="float32", prediction="sample")
    fields: dict[str, Any] = {"fast": "lightning", "steps": steps, "seed": 11, "dialect": "diffusers", **SIZE}
    (picture,) = danqing.paint(PROMPT, model, say=lambda line: None, **fields)
    got = np.asarray(picture.image, dtype=np.float64)
    name = "StableDiffusionPipeline with EulerDiscreteScheduler"
    compare(parity, f"prediction of the picture, {steps} steps", name, got, (made.images[0] * 255).round())


@pytest.mark.parametrize("case", FEW)
def test_few_steps(case: str, small: tuple[Any, Path], parity: Parity) -> None:
    pipeline, folder = small
    kind, settings, call, fast = FEW[case]
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, kind).from_config(before.config, **settings)
    generator = torch.Generator("cpu").manual_seed(11)
    made = pipeline(PROMPT, guidance_scale=0.0, generator=generator, output_type="np", **SIZE, **call)
    pipeline.scheduler = before
    got = ours(folder, fast=fast)
    compare(parity, f"{case}'s settings", f"StableDiffusionPipeline with {kind}", got, (made.images[0] * 255).round())
