"""What is unset is filled, what is asked for is kept, and what has no effect is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.adapters.fast import by_name
from danqing.families import FAMILIES
from danqing.pipeline.resolve import resolve
from danqing.request_parts import Reference
from danqing.requests import ResolvedRequest, TextToImage
from danqing.vocabulary import DIALECTS, SAMPLERS, SCHEDULERS


def resolved(family: str = "sd1", **fields: Any) -> ResolvedRequest:
    return resolve(TextToImage(**fields), FAMILIES[family], Reference(name="m"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_familys_defaults(name: str) -> None:
    found, defaults = resolved(name), FAMILIES[name].defaults
    request = found.request
    assert (request.width, request.height, request.steps) == (defaults.width, defaults.height, defaults.steps)
    assert (request.sampler_name, request.cfg_scale) == (defaults.sampler, defaults.cfg_scale)
    assert request.scheduler == defaults.scheduler
    assert found.notes == ()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(DIALECTS),
    st.none() | st.sampled_from([row.name for row in SAMPLERS]),
    st.none() | st.sampled_from([row.name for row in SCHEDULERS]),
)
def test_nothing_is_left_open_and_a_resolved_request_stays(
    family: str, dialect: str, sampler: str | None, scheduler: str | None
) -> None:
    first = resolved(family, dialect=dialect, sampler_name=sampler, scheduler=scheduler)
    for field in ("width", "height", "steps", "cfg_scale", "sampler_name", "scheduler", "seed", "noise_source",
                  "emphasis", "clip_skip"):  # fmt: skip
        assert getattr(first.request, field) is not None
    again = resolve(first.request, FAMILIES[family], Reference(name="m"))
    assert again.request == first.request


@pytest.mark.parametrize(("asked", "painted"), [(64, 64), (67, 64), (69, 72), (511, 512), (16384, 16384)])
def test_sizes_are_rounded_to_latent_cells(asked: int, painted: int) -> None:
    found = resolved(width=asked, height=512)
    assert (found.request.width, found.request.height) == (painted, 512)
    assert found.notes == (() if asked == painted else (f"width {asked} is no multiple of 8; painting {painted}",))


def test_seeds_are_drawn() -> None:
    assert resolved(seed=0).request.seed == 0
    drawn = {resolved(seed=seed).request.seed for seed in (-1, None) for _ in range(5)}
    assert len(drawn) == 10
    assert all(seed is not None and 0 <= seed < 2**32 for seed in drawn)


def test_variation_seeds() -> None:
    assert resolved(subseed=-1).request.subseed is None
    assert resolved(subseed=-1).notes == ()
    assert resolved(subseed=4).notes == ("subseed has no effect: subseed_strength is 0",)
    varied = resolved(subseed=-1, subseed_strength=0.5).request.subseed
    assert varied is not None
    assert varied >= 0
    assert resolved(subseed=4, subseed_strength=0.5).request.subseed == 4


def test_combined_sampler_names() -> None:
    request = resolved(sampler_name="DPM++ 2M Karras").request
    assert (request.sampler_name, request.scheduler) == ("DPM++ 2M", "Karras")
    assert resolved(sampler_name="DPM++ 2M Karras", scheduler="Exponential").request.scheduler == "Exponential"


@pytest.mark.parametrize(
    ("dialect", "emphasis", "noise"),
    [
        ("danqing", "original", "cpu"),
        ("a1111", "original", "philox"),
        ("comfyui", "comfyui", "cpu"),
        ("diffusers", "none", "cpu"),
    ],
)
def test_dialects(dialect: str, emphasis: str, noise: str) -> None:
    request = resolved(dialect=dialect).request
    assert (request.emphasis, request.noise_source) == (emphasis, noise)
    assert resolved(dialect=dialect, emphasis="ignore", noise_source="gpu").request.emphasis == "ignore"


def test_sdxl_is_told_the_size_that_is_painted() -> None:
    request = resolved("sdxl", width=1030, height=896).request
    assert (request.original_width, request.original_height) == (1032, 896)
    assert (request.target_width, request.target_height) == (1032, 896)
    assert resolved("sdxl", original_width=4096).request.original_width == 4096
    assert resolved("sd1").request.original_width is None


@pytest.mark.parametrize(
    ("family", "fields", "field"),
    [
        ("sd1", {"original_width": 512}, "original_width"),
        ("sd1", {"crop_top": 5}, "crop_top"),
        ("sdxl", {"aesthetic_score": 7}, "aesthetic_score"),
        ("sdxl", {"clip_skip": 2}, "clip_skip"),
        ("sd1", {"sampler_name": "Euler", "eta": 0.5}, "eta"),
        ("sd1", {"sampler_name": "DPM++ 2M", "s_churn": 5}, "s_churn"),
        ("sd1", {"sampler_name": "Euler", "scheduler": "Normal", "rho": 5}, "rho"),
        ("sd1", {"cfg_scale": 1, "negative_prompt": "x"}, "negative_prompt"),
    ],
)
def test_what_has_no_effect_is_said(family: str, fields: dict[str, Any], field: str) -> None:
    (note,) = resolved(family, **fields).notes
    assert note.startswith(f"{field} has no effect: ")


def test_what_has_effect_is_not_complained_of() -> None:
    for fields in (
        {"sampler_name": "Euler a", "eta": 0.5},
        {"sampler_name": "Euler", "s_churn": 5},
        {"scheduler": "Karras", "rho": 5},
        {"clip_skip": 2},
    ):
        assert resolved("sd1", **fields).notes == ()


def test_a_fast_models_second_pass_has_its_schedule_and_is_advised() -> None:
    def hires(**fields: Any) -> ResolvedRequest:
        request = TextToImage(enable_hr=True, **fields)
        return resolve(request, FAMILIES["sd1"], Reference(name="m"), fast=by_name("lcm-lora-sdv1-5", lora=True))

    own = hires(hr_sampler_name="TCD").request
    assert isinstance(own, TextToImage)
    assert (own.hr_sampler_name, own.hr_scheduler) == ("TCD", "SGM Uniform")
    assert not any("ruins" in note for note in hires(hr_sampler_name="TCD").notes)
    notes = hires(hr_sampler_name="DPM++ 2M", hr_cfg=7, hr_second_pass_steps=80).notes
    assert "hr_sampler_name: DPM++ 2M ruins the pictures of an LCM-LoRA; it takes LCM" in notes
    assert "hr_cfg: 7 ruins the pictures of an LCM-LoRA; it takes 1 to 2" in notes
    assert "hr_second_pass_steps: 80 are more than an LCM-LoRA is good at; it takes at most 50" in notes
    (once,) = [note for note in hires(cfg_scale=7).notes if "ruins" in note]
    assert once.startswith("cfg_scale: 7")
