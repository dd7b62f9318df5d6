"""stable-diffusion.cpp's side, through its Python package. It paints whole pictures only, so its own progress is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from danqing.errors import DanqingError
from danqing.measure.inputs import PROMPT
from danqing.measure.works import Work

_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def make(work: Work, path: Path) -> Callable[[], float]:
    """Seconds of what is timed, by the single file at `path`: of two steps the second, and what comes after them."""
    import stable_diffusion_cpp

    model = stable_diffusion_cpp.StableDiffusion(
        model_path=str(path),
        wtype=_TYPES[work.dtype],
        n_threads=torch.get_num_threads(),  # its own choice is one of two virtual cores
        vae_decode_only=True,
        verbose=False,
    )
    steps = work.steps if work.kind == "picture" else 2
    marks: dict[int, float] = {}

    def progress(step: int, total: int, seconds: float) -> None:
        if total == steps:  # loading and decoding report, too
            marks[step] = time.perf_counter()

    def run() -> float:
        marks.clear()
        begin = time.perf_counter()
        images: Any = model.generate_image(
            PROMPT,
            negative_prompt="blurry",
            width=work.size,
            height=work.size,
            sample_method="dpm++2m",
            sample_steps=steps,
            seed=1,
            batch_count=work.batch if work.kind == "picture" else 1,
            progress_callback=progress,
        )
        end = time.perf_counter()
        if not images or steps not in marks:
            raise DanqingError("sdcpp: painted nothing; run it with verbose=True to see why")
        if work.kind == "step":
            return marks[2] - marks[1]
        return end - (marks[steps] if work.kind == "decode" else begin)

    return run
