"""Whole pictures against diffusers' pipelines: same folder, same seed, same start noise."""

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

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
PROMPT = "a (red:1.3) apple on a table, [still life]"
NEGATIVE = "blurry, low quality"


def reference(pipeline: Any, sampler: str, **options: Any) -> np.ndarray:
    name, settings = SCHEDULERS[sampler]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **settings)
    generator = torch.Generator("cpu").manual_seed(11)
    pictures = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=10, generator=generator, output_type="np", **options
    )
    return (pictures.images[0] * 255).round()


def ours(folder: Path, sampler: str, **options: Any) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    (picture,) = danqing.paint(
        PROMPT,
        model,
        negative_prompt=NEGATIVE,
        steps=10,
        seed=11,
        sampler_name=sampler,
        dialect="diffusers",
        say=lambda line: None,
        **options,
    )
    return np.asarray(picture.image, dtype=np.float64)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def small_sd1(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    folder = tmp_path_factory.mktemp(f"sd1-{request.param}")
    return pipelines.sd1(folder, request.param), folder, request.param


@pytest.fixture(scope="module")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sdxl")
    return pipelines.sdxl(folder), folder


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_sd1(small_sd1: tuple[Any, Path, str], sampler: str, parity: Callable[..., None]) -> None:
    pipeline, folder, prediction = small_sd1
    expected = reference(pipeline, sampler, width=64, height=64, guidance_scale=5.0)
    got = ours(folder, sampler, width=64, height=64, cfg_scale=5.0)
    assert expected.std() > 5
    error = np.abs(got - expected).max() / 255
    parity(f"whole picture, SD 1, {prediction}, {sampler}", "diffusers StableDiffusionPipeline", error, 1 / 255)


def test_sd1_guidance_rescale(small_sd1: tuple[Any, Path, str], parity: Callable[..., None]) -> None:
    pipeline, folder, prediction = small_sd1
    expected = reference(pipeline, "DDIM", width=72, height=64, guidance_scale=9.0, guidance_rescale=0.7)
    got = ours(folder, "DDIM", width=72, height=64, cfg_scale=9.0, guidance_rescale=0.7)
    error = np.abs(got - expected).max() / 255
    parity(f"whole picture, SD 1, {prediction}, CFG rescale", "diffusers StableDiffusionPipeline", error, 1 / 255)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "DPM++ 2M", "UniPC"])
def test_sdxl(small_sdxl: tuple[Any, Path], sampler: str, parity: Callable[..., None]) -> None:
    pipeline, folder = small_sdxl
    expected = reference(pipeline, sampler, width=64, height=96, guidance_scale=5.0)
    got = ours(folder, sampler, width=64, height=96, cfg_scale=5.0)
    assert expected.std() > 5
    error = np.abs(got - expected).max() / 255
    parity(f"whole picture, SDXL, {sampler}", "diffusers StableDiffusionXLPipeline", error, 1 / 255)
