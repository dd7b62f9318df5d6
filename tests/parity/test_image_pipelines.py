"""Pictures painted over pictures, against diffusers' pipelines: same folder, same picture, same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import danqing
from danqing.requests import ImageToImage, Inpaint
from tests.parity import pipelines

Parity = Callable[[str, str, float, float], None]
SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
PROMPT, NEGATIVE = "a red apple on a table", "blurry, low quality"


def photograph(width: int = 64, height: int = 64) -> Image.Image:
    """A gradient with a disc on it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((10, 12, 40, 44), fill=(220, 40, 30))
    return image


def hole(width: int = 64, height: int = 64) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    return mask


def reference(pipeline: Any, sampler: str, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipeline.scheduler.config)
    settings: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 5.0, **options}
    generator = torch.Generator("cpu").manual_seed(11)
    pictures = pipeline(PROMPT, negative_prompt=NEGATIVE, generator=generator, output_type="np", **settings)
    return (pictures.images[0] * 255).round()


def ours(folder: Path, kind: type[ImageToImage], sampler: str, **fields: Any) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    settings = {"steps": 10, "cfg_scale": 5.0, "seed": 11, "dialect": "diffusers", "mask_blur": 0, **fields}
    wanted = {name: value for name, value in settings.items() if name in kind.model_fields}
    request = kind(prompt=PROMPT, negative_prompt=NEGATIVE, sampler_name=sampler, **wanted)
    (picture,) = danqing.paint(request, model, say=lambda line: None)
    return np.asarray(picture.image, dtype=np.float64)


def compare(parity: Parity, subject: str, name: str, got: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 5
    parity(subject, f"diffusers {name}", np.abs(got - expected).max() / 255, 1 / 255)


@pytest.fixture(scope="module")
def small_sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sd1")
    return pipelines.sd1(folder), folder


@pytest.fixture(scope="module")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sdxl")
    return pipelines.sdxl(folder), folder


def as_kind(pipeline: Any, name: str) -> Any:
    """The same networks as another of diffusers' pipelines."""
    extra = {"requires_safety_checker": False} if "XL" not in name else {}
    if name == "StableDiffusionXLInpaintPipeline":
        extra = {"requires_aesthetics_score": False}
    return getattr(diffusers, name)(**pipeline.components, **extra)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_img2img_sd1(small_sd1: tuple[Any, Path], sampler: str, parity: Parity) -> None:
    pipeline, folder = small_sd1
    name = "StableDiffusionImg2ImgPipeline"
    expected = reference(as_kind(pipeline, name), sampler, image=photograph(), strength=0.6)
    got = ours(folder, ImageToImage, sampler, image=photograph(), denoising_strength=0.6)
    compare(parity, f"image to image, SD 1, {sampler}", name, got, expected)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "DPM++ 2M"])
def test_img2img_sdxl(small_sdxl: tuple[Any, Path], sampler: str, parity: Parity) -> None:
    pipeline, folder = small_sdxl
    name = "StableDiffusionXLImg2ImgPipeline"
    expected = reference(as_kind(pipeline, name), sampler, image=photograph(), strength=0.6)
    got = ours(folder, ImageToImage, sampler, image=photograph(), denoising_strength=0.6)
    compare(parity, f"image to image, SDXL, {sampler}", name, got, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_inpaint_sd1(small_sd1: tuple[Any, Path], sampler: str, strength: float, parity: Parity) -> None:
    pipeline, folder = small_sd1
    name = "StableDiffusionInpaintPipeline"
    picture, mask = photograph(), hole()
    expected = reference(
        as_kind(pipeline, name), sampler, image=picture, mask_image=mask, strength=strength, width=64, height=64
    )
    got = ours(folder, Inpaint, sampler, image=picture, mask=mask, denoising_strength=strength)
    compare(parity, f"inpainting with an ordinary model, SD 1, {sampler}, strength {strength}", name, got, expected)


def test_inpaint_sdxl(small_sdxl: tuple[Any, Path], parity: Parity) -> None:
    pipeline, folder = small_sdxl
    name = "StableDiffusionXLInpaintPipeline"
    picture, mask = photograph(), hole()
    expected = reference(
        as_kind(pipeline, name), "Euler", image=picture, mask_image=mask, strength=0.6, width=64, height=64
    )
    got = ours(folder, Inpaint, "Euler", image=picture, mask=mask, denoising_strength=0.6)
    compare(parity, "inpainting with an ordinary model, SDXL, Euler", name, got, expected)


def widened(pipeline: Any, folder: Path, channels: int) -> None:
    """The pipeline with a network that is told more channels, saved as people have it."""
    torch.manual_seed(channels)
    pipeline.unet = pipelines._unet(in_channels=channels)
    pipeline.save_pretrained(folder)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_model(tmp_path: Path, strength: float, parity: Parity) -> None:
    name = "StableDiffusionInpaintPipeline"
    pipeline = as_kind(pipelines.sd1(tmp_path), name)
    widened(pipeline, tmp_path, 9)
    picture, mask = photograph(), hole()
    settings = {"mask_image": mask, "strength": strength, "width": 64, "height": 64}
    expected = reference(pipeline, "Euler", image=picture, **settings)
    got = ours(tmp_path, Inpaint, "Euler", image=picture, mask=mask, denoising_strength=strength)
    compare(parity, f"inpainting with an inpainting model, SD 1, Euler, strength {strength}", name, got, expected)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_instruct_pix2pix(tmp_path: Path, sampler: str, parity: Parity) -> None:
    name = "StableDiffusionInstructPix2PixPipeline"
    pipeline = as_kind(pipelines.sd1(tmp_path), name)
    widened(pipeline, tmp_path, 8)
    expected = reference(pipeline, sampler, image=photograph(), image_guidance_scale=1.4)
    got = ours(tmp_path, ImageToImage, sampler, image=photograph(), denoising_strength=1.0, image_cfg_scale=1.4)
    compare(parity, f"instruct-pix2pix, SD 1, {sampler}", name, got, expected)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_refiner(small_sdxl: tuple[Any, Path], tmp_path: Path, sampler: str, parity: Parity) -> None:
    pipeline, folder = small_sdxl
    second = pipelines.sdxl(tmp_path)
    torch.manual_seed(7)
    for weight in second.unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    second.save_pretrained(tmp_path)
    refiner = as_kind(second, "StableDiffusionXLImg2ImgPipeline")
    refiner.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    for each in (pipeline, refiner):
        each.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(each.scheduler.config)
    generator = torch.Generator("cpu").manual_seed(11)
    half = pipeline(
        PROMPT, generator=generator, width=64, height=64, denoising_end=0.6, output_type="latent", **settings
    )
    whole = refiner(PROMPT, image=half.images, generator=generator, denoising_start=0.6, output_type="np", **settings)
    expected = (whole.images[0] * 255).round()
    request = danqing.TextToImage(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        sampler_name=sampler,
        steps=10,
        seed=11,
        cfg_scale=5.0,
        width=64,
        height=64,
        dialect="diffusers",
        refiner_checkpoint=str(tmp_path),
        refiner_switch_at=0.6,
    )
    model = danqing.load(folder, device="cpu", dtype="float32")
    (picture,) = danqing.paint(request, model, say=lambda line: None)
    got = np.asarray(picture.image, dtype=np.float64)
    compare(parity, f"SDXL with a refiner, {sampler}", "StableDiffusionXLPipeline and Img2Img", got, expected)
