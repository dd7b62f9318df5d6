"""Models of few steps: known by what their files tell, and what ruins their pictures."""

from __future__ import annotations

from typing import get_args

import pytest

from danqing.adapters.fast import BY_NAME, FAST_MODELS, Known, advice, by_name, defaults, lora_known, recognised
from danqing.families import SDXL
from danqing.vocabulary import Fast, find_sampler, find_scheduler


def test_the_rows_are_sound() -> None:
    assert {"none", *BY_NAME} == set(get_args(Fast))
    for row in FAST_MODELS:
        assert find_sampler(row.sampler).name == row.sampler
        assert find_scheduler(row.scheduler).name == row.scheduler
        assert all(find_sampler(name).name == name for name in row.suited)
        assert row.steps <= row.most_steps
        assert not advice(Known(row, ""), row.sampler, row.steps, row.cfg_scale)


NAMES = {
    "sdxl_lightning_4step": ("lightning", 4, True),
    "sdxl_lightning_8step_lora": ("lightning", 8, True),
    "dreamshaperXL_lightningDPMSDE": ("lightning", 4, False),
    "Hyper-SDXL-8steps-lora": ("hyper", 8, True),
    "Hyper-SD15-2steps-lora": ("hyper", 2, True),
    "Hyper-SD15-12steps-CFG-lora": ("hyper-cfg", 12, True),
    "Hyper-SDXL-1step-lora": ("hyper", 1, False),
    "Hyper-SDXL-1step-Unet": ("hyper-1step", 1, False),
    "lcm-lora-sdv1-5": ("lcm-lora", 4, False),
    "LCM_LoRA_Weights_SD15": ("lcm-lora", 4, False),
    "TCD-SDXL-LoRA": ("tcd", 4, False),
    "sd_xl_turbo_1.0_fp16": ("turbo", 1, False),
    "sd-turbo": ("turbo", 1, False),
    "DreamShaperXL_Turbo_v2_1": ("turbo-mix", 6, False),
    "v1-5-pruned-emaonly": None,
    "hyperrealism_xl": None,
    "hypernetwork": None,
    "salcmander": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    found = by_name(name)
    assert (found and (found.row.name, found.row.steps, found.exact)) == NAMES[name]


def test_a_lora_of_lightning_bolts_is_no_lightning() -> None:
    assert by_name("lightning_magic", lora=True) is None
    assert by_name("turbo_car", lora=True) is None
    told = lora_known("style", {"ss_output_name": "sdxl_lightning_4step_lora"})
    assert told is not None
    assert (told.row.name, told.by, told.checkpoint) == ("lightning", "the name in its metadata", False)


def test_what_tells_first() -> None:
    title = {"modelspec.title": "SDXL Lightning 8 steps"}
    found = recognised("anything", title)
    assert found is not None
    assert (found.row.name, found.row.steps, found.by) == ("lightning", 8, "the name in its metadata")
    embedded = recognised("sdxl_lightning_4step", title, guidance_width=256)
    assert embedded is not None
    assert (embedded.row.name, embedded.by) == ("lcm", "its U-Net's guidance embedding")
    config = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    turbo = recognised("model", {}, scheduler=config)
    assert turbo is not None
    assert (turbo.row.name, turbo.by) == ("turbo", "its scheduler_config.json")
    assert recognised("model", {}, scheduler={**config, "timestep_spacing": "leading"}) is None
    for kind, name in (("LCMScheduler", "lcm-lora"), ("TCDScheduler", "tcd")):
        told = recognised("model", {}, scheduler={"_class_name": kind})
        assert told is not None
        assert told.row.name == name


def test_defaults() -> None:
    lightning = by_name("sdxl_lightning_8step")
    turbo = by_name("sd_xl_turbo_1.0", lora=True)
    assert lightning is not None
    assert turbo is not None
    some = defaults(lightning, SDXL.defaults)
    assert (some.sampler, some.scheduler, some.steps, some.cfg_scale, some.width) == (
        "Euler",
        "SGM Uniform",
        8,
        1,
        1024,
    )
    hyper = by_name("Hyper-SD15-8steps-lora")
    assert hyper is not None
    assert [defaults(hyper, SDXL.defaults, dialect).sampler for dialect in ("danqing", "a1111")] == ["DDIM", "Euler"]
    assert defaults(turbo, SDXL.defaults).width == 1024  # a LoRA leaves the checkpoint's size
    checkpoint = Known(turbo.row, turbo.by, checkpoint=True)
    assert (defaults(checkpoint, SDXL.defaults).width, defaults(checkpoint, SDXL.defaults).height) == (512, 512)


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "cfg", "line"),
    [
        ("sdxl_lightning_4step", "Euler", 4, 7.0, "cfg_scale: 7 ruins the pictures of SDXL Lightning; it takes 1 to 2"),
        ("sdxl_lightning_4step", "Euler", 4, 0.0, "what diffusers calls 0 is 1 here"),
        ("sdxl_lightning_4step", "Euler", 2, 1.0, "steps: 2 are too few for this SDXL Lightning, which was made for 4"),
        ("sdxl_lightning_4step", "Euler", 30, 1.0, "steps: 30 are more than SDXL Lightning is good at"),
        ("sdxl_lightning_4step", "Restart", 4, 1.0, "sampler_name: Restart ruins the pictures"),
        ("Hyper-SD15-8steps-CFG-lora", "DDIM", 8, 1.5, "cfg_scale: 1.5 ruins"),
        ("lcm-lora-sdxl", "DPM++ 2M", 4, 1.0, "it takes LCM"),
        ("sdxl_lightning_1step_x0", "Euler", 1, 1.0, "load it with --prediction-type sample"),
    ],
)
def test_what_ruins_a_picture_is_said(name: str, sampler: str, steps: int, cfg: float, line: str) -> None:
    known = by_name(name)
    assert known is not None
    (said,) = advice(known, sampler, steps, cfg)
    assert line in said
