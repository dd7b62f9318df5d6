"""Names of pictures by a pattern."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from danqing.errors import DanqingError
from danqing.pipeline.naming import MAX_NAME, TOKENS, Job, Subject, check_pattern, expand
from danqing.request_parts import Reference, Template
from danqing.requests import ImageToImage, ResolvedRequest, TextToImage

NOWHERE = Path("/nowhere/at/all")


def name(pattern: str, job: Job | None = None, **fields: Any) -> str:
    filled = {"prompt": "a Red apple, 猫", "seed": 7, "steps": 20, "cfg_scale": 7.0, "sampler_name": "DPM++ 2M",
              "scheduler": "Karras", "clip_skip": 2}  # fmt: skip
    cls = ImageToImage if "image" in fields else TextToImage
    resolved = ResolvedRequest(
        request=cls(**{**filled, **fields}),
        family="sd1",
        checkpoint=Reference(name="castle v1.5", sha256="0123456789abcdef"),
        vae=Reference(name="soft.pt"),
    )
    return (
        expand(pattern, Subject(resolved, Image.new("RGB", (64, 32)), job or Job()), NOWHERE)
        .relative_to(NOWHERE)
        .as_posix()
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[seed]", "7"),
        ("[SEED]-[prompt_words]", "7-a Red apple 猫"),
        ("[steps] [cfg] [width]x[height]", "20 7 64x32"),
        ("[sampler_scheduler]", "DPM++ 2M Karras"),
        ("[model_hash]/[model_name]", "0123456789/castle v1.5"),
        ("[scheduler]", "Karras"),
        ("[vae_filename]", "soft"),
        ("[prompt]|[prompt_spaces]", "a_Red_apple,_猫_a Red apple, 猫"),
        ("x[none]", "x"),
        ("[seed_first]-[seed_last]", "7"),
        ("[seed]-[batch_number]-[generation_number]", "7"),
        ("[hasprompt<red><dog|cat>]", "redcat"),
        ("[prompt_hash]", hashlib.sha256("a Red apple, 猫".encode()).hexdigest()[:8]),
        ("[full_prompt_hash<4>]", hashlib.sha256("a Red apple, 猫 ".encode()).hexdigest()[:4]),
        ("[image_hash<6>]", hashlib.sha256(bytes(64 * 32 * 3)).hexdigest()[:6]),
        ("[datetime<%Y><Asia/Tokyo>]", datetime.now().strftime("%Y")),
        ("[styles]-[clip_skip]", "None-2"),
        ("[seed]-[denoising]", "7"),
        ("[number]-[seed]", "00001-7"),
        ("//[seed]", "7"),
    ],
)
def test_tokens(pattern: str, expected: str) -> None:
    assert name(pattern) == expected


def test_a_job_of_several() -> None:
    job = Job(index=3, batch_size=2, n_iter=2, first_seed=4)
    assert name("[seed_first]-[seed_last]-[batch_number]-[generation_number]-[batch_size]", job) == "4-7-2-4-2"
    apart = Job(index=3, batch_size=1, n_iter=4, first_seed=4)
    assert name("[seed_first]-[seed_last]-[generation_number]", apart) == "7-4", "one at a time, each is its own first"
    assert name("[sampler_scheduler]", scheduler="SGM Uniform") == "DPM++ 2M Sgm uniform"
    assert name("[job_timestamp]", Job(begun=datetime(2026, 1, 2, 3, 4, 5))) == "20260102030405"
    assert name("[seed]-[denoising]", image="x.png", denoising_strength=0.5) == "7-0.5"
    template = Template(prompt="apple", styles=("oil", "ink"))
    assert name("[styles]-[prompt_no_styles]", template=template) == "oil, ink-apple"


def test_numbers_go_on(tmp_path: Path) -> None:
    resolved = ResolvedRequest(request=TextToImage(seed=1), family="sd1", checkpoint=Reference(name="m"))
    subject = Subject(resolved, Image.new("RGB", (8, 8)), Job())
    (tmp_path / "00041-9.png").touch()
    (tmp_path / "x-00099.png").touch()
    assert expand("[number]-[seed]", subject, tmp_path).name == "00042-1"
    assert expand("x-[number]", subject, tmp_path).name == "x-00100"


@given(st.text(max_size=400), st.sampled_from(sorted(TOKENS)))
def test_any_prompt_gives_a_name_that_is_valid_everywhere(text: str, token: str) -> None:
    try:
        got = name(f"[{token}][prompt_spaces]", prompt=text)
    except DanqingError:  # not Unicode
        return
    assert "/" not in got
    assert 0 < len(got.encode()) <= MAX_NAME + 1
    assert not re.search(r'[<>:"\\|?*\x00-\x1f]', got)
    assert got[-1] not in " ."


@pytest.mark.parametrize("prompt", ["con", "NUL.txt", "com1", "lpt¹.x", "aux"])
def test_names_that_windows_keeps_for_devices(prompt: str) -> None:
    assert name("[prompt]", prompt=prompt) == f"_{prompt}"


@pytest.mark.parametrize("pattern", ["", "[seed]/", "../[seed]", "a/../[seed]", "...", " "])
def test_patterns_that_name_nothing(pattern: str) -> None:
    with pytest.raises(DanqingError, match="output_pattern"):
        check_pattern(pattern)
