"""What only a GPU can show: that the bundled model paints there what it paints on a CPU, in every way there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import danqing
from danqing.families import Model
from danqing.pipeline.picture import Picture
from danqing.runtime.eight_bits import FP8_FROM

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPT = "a red apple"
FIELDS: dict[str, Any] = {"seed": 1, "steps": 20, "say": lambda line: None}


def picture(model: Model, **fields: Any) -> Picture:
    return danqing.paint(PROMPT, model, **FIELDS | fields)[0]


def psnr(one: Picture, other: Picture) -> float:
    a, b = (np.asarray(each.image, np.float64) for each in (one, other))
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))


@pytest.fixture(scope="module")
def exact() -> Picture:
    """The picture in float32 on a CPU."""
    return picture(danqing.load(device="cpu", dtype="float32"))


@pytest.mark.parametrize(("dtype", "least"), [("float32", 45), ("float16", 35), ("bfloat16", 28)])
def test_the_picture_is_a_cpus(exact: Picture, dtype: str, least: float) -> None:
    assert psnr(picture(danqing.load(device=DEVICE, dtype=dtype)), exact) > least


def test_a_picture_beside_others_is_near_the_one_alone() -> None:
    model = danqing.load(device=DEVICE, dtype="float32")
    for number, beside in enumerate(danqing.paint(PROMPT, model, batch_size=3, **FIELDS)):
        assert psnr(beside, picture(model, seed=1 + number)) > 45


@pytest.mark.parametrize(("bits", "least"), [("int8-weights", 32), ("int8", 25), ("fp8", 20)])
def test_eight_bits_are_near(exact: Picture, bits: str, least: float) -> None:
    pytest.importorskip("torchao")
    if bits == "fp8" and torch.cuda.get_device_capability() < FP8_FROM:
        pytest.skip("needs a GPU that multiplies in fp8")
    rounded = picture(danqing.load(device=DEVICE, dtype="bfloat16", quantize=bits))
    assert psnr(rounded, exact) > least
    assert rounded.record.platform.engine == f"eager {bits}"


@pytest.mark.long
def test_the_compiled_network_is_near() -> None:
    plain, compiled = (danqing.load(device=DEVICE, dtype="float32", engine=name) for name in ("eager", "compile"))
    said: list[str] = []
    assert psnr(picture(plain), picture(compiled, say=said.append)) > 40
    assert not any("eager mode runs" in line for line in said)
    wide = {"width": 192, "height": 128}
    assert psnr(picture(plain, **wide), picture(compiled, **wide)) > 40


def test_a_budget_changes_no_bit() -> None:
    free, tight = (danqing.load(device=DEVICE, dtype="float16", memory=memory) for memory in (None, "300MB"))
    assert picture(free).image.tobytes() == picture(tight).image.tobytes()


def test_adapters_guidance_and_the_large_sizes_run_there() -> None:
    model = danqing.load(device=DEVICE, dtype="float16")
    for fields in (
        {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6},
        {"freeu": "1.1,1.2,0.9,0.2"},
        {"step_cache": "3,2"},
        {"token_merging": "0.3"},
        {"tiling": "both"},
        {"sampler_name": "DPM++ SDE", "scheduler": "Karras"},
    ):
        pixels = np.asarray(picture(model, **fields).image)
        assert pixels.std() > 10, fields
