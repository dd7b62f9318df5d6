"""What a run keeps from step to step: pictures do not depend on their batch, on crashes or on memory; it goes with the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import danqing
import danqing.pipeline.run as pipeline
from danqing.adapters.fast import BY_NAME, Known
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.metadata.infotext import infotext, read_infotext
from danqing.models.weights import ByStep
from danqing.pipeline.caching import QUICK, caching
from danqing.pipeline.replay import replay
from danqing.pipeline.resolve import resolve
from danqing.request_parts import Reference, StepCache
from danqing.requests import ResolvedRequest, TextToImage, read
from danqing.sampling.types import Denoise, Prediction

SMALL: dict[str, Any] = {"steps": 5, "seed": 3, "width": 64, "height": 64, "cfg_scale": 3.0, "prompt": "a cat"}
WAYS: dict[str, dict[str, Any]] = {
    "step cache": {"step_cache": "3,2"},
    "by halves": {"step_cache": "2,2", "sampler_name": "Heun"},
    "by a threshold": {"step_cache": "5,2,0,1,0.2"},
    "tgate": {"tgate": 0.5},
    "both": {"step_cache": "4,4", "tgate": 0.6, "sampler_name": "DPM++ SDE"},
    "text that changes": {"step_cache": "3,1", "tgate": 0.8, "prompt": "a [cat:dog:3] AND a hat", "s_min_uncond": 15},
    "attention": {"step_cache": "3,1", "pag": "3", "freeu": "yes", "token_merging": "0.5,,4", "lora_mode": "merge"},
}


def painted(model: Model, fields: dict[str, Any], **options: Any) -> list[np.ndarray]:
    pictures = danqing.paint(read(TextToImage, {**SMALL, **fields}), model, say=lambda line: None, **options)
    return [np.asarray(picture.image) for picture in pictures]


def latents(model: Model, fields: dict[str, Any]) -> torch.Tensor:
    *_, last = danqing.stream(read(TextToImage, {**SMALL, **fields}), model, say=lambda line: None)
    return last.latents


class Counted:
    """How often a network is asked, and how many of its residual blocks."""

    def __init__(self, model: Model) -> None:
        self.calls = self.blocks = 0
        self.hooks = [model.denoiser.register_forward_hook(self._call)]
        for module in model.denoiser.modules():
            if type(module).__name__ == "ResBlock":
                self.hooks.append(module.register_forward_hook(self._block))

    def _call(self, *_: Any) -> None:
        self.calls += 1

    def _block(self, *_: Any) -> None:
        self.blocks += 1

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.fixture
def counted(tiny: Model) -> Iterator[Counted]:
    counts = Counted(tiny)
    yield counts
    counts.end()


@pytest.mark.parametrize("way", WAYS)
def test_pictures_of_a_batch_are_those_painted_alone(way: str, tiny: Model) -> None:
    first, second = painted(tiny, {**WAYS[way], "batch_size": 2})
    assert np.array_equal(first, painted(tiny, WAYS[way])[0])
    assert np.array_equal(second, painted(tiny, {**WAYS[way], "seed": 4})[0])
    plain = {name: value for name, value in WAYS[way].items() if name not in ("step_cache", "tgate")}
    assert not torch.equal(latents(tiny, WAYS[way]), latents(tiny, plain))


def test_less_is_done(tiny: Model, counted: Counted) -> None:
    def work(**fields: Any) -> tuple[int, int]:
        counted.calls = counted.blocks = 0
        painted(tiny, {"cfg_scale": 1.0, **fields})
        return counted.calls, counted.blocks

    calls, whole = work()
    each = whole // calls
    assert work(step_cache="3,1") == (5, 2 * each + 3)
    assert work(step_cache="2,1,0.4") == (5, 4 * each + 1)
    assert work(step_cache="5,1") == (5, each + 4)
    assert work(tgate=0.5) == (5, whole)


class Told:
    """Predictions that are known already, as after a crash: the network is not asked for them."""

    def __init__(self) -> None:
        self.known: dict[tuple[float, bytes], Prediction] = {}

    def wrap(self, denoise: Denoise) -> Denoise:
        def remembered(latents: torch.Tensor, at: At) -> Prediction:
            key = at.step, latents.numpy().tobytes()
            if key not in self.known:
                self.known[key] = denoise(latents, at)
            return self.known[key]

        return remembered


@pytest.mark.parametrize("way", WAYS)
def test_after_a_crash_it_goes_on_with_the_same_bits(way: str, tiny: Model, counted: Counted) -> None:
    (wanted,) = painted(tiny, WAYS[way])
    at_once = counted.calls
    for cut in (1, 4):
        told = Told()
        events = danqing.stream(read(TextToImage, {**SMALL, **WAYS[way]}), tiny, say=lambda line: None, wrap=told.wrap)
        for event in events:
            if event.step == cut:
                events.close()
                break
        counted.calls = 0
        assert np.array_equal(painted(tiny, WAYS[way], wrap=told.wrap)[0], wanted)
        assert counted.calls < 2 * at_once


def test_another_memory_plan_in_the_midst(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"step_cache": "4,4", "tgate": 0.9, "sampler_name": "Heun"}
    (wanted,) = painted(tiny, fields)
    honest = pipeline.predictor
    failed: list[float] = []

    def greedy(model: Model, *, branches_apart: bool = False, **options: Any) -> Any:
        predict = honest(model, branches_apart=branches_apart, **options)

        def call(latents: Any, at: Any, branches: Any) -> Any:
            if at.step >= 2.5 and not branches_apart:
                failed.append(at.step)
                raise torch.OutOfMemoryError("out of memory")
            return predict(latents, at, branches)

        return call

    monkeypatch.setattr(pipeline, "predictor", greedy)
    (found,) = painted(tiny, fields)
    assert failed == [2.5]
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_the_whole_network_is_asked_where_another_lora_takes_over(tiny: Model, counted: Counted) -> None:
    twice = replace(tiny, denoiser=ByStep([tiny.denoiser, tiny.denoiser], [0, 0, 1, 1, 1, 0]))
    found = caching(TextToImage(step_cache=StepCache(every=4)), twice, 6)
    assert found is not None
    assert found.begins == {0: 0, 1: 0, 2: 2, 3: 2, 4: 2, 5: 5}


def test_record_and_replay(tiny: Model, tmp_path: Path) -> None:
    fields = {**SMALL, "step_cache": "3,2,0.25,0.9,0.5", "tgate": 0.75}
    (picture,) = danqing.paint(read(TextToImage, fields), tiny, say=lambda line: None)
    told = read_infotext(infotext(picture.record)).request
    assert told.step_cache == StepCache(every=3, depth=2, start=0.25, end=0.9, threshold=0.5)
    assert told.tgate == 0.75
    picture.save(tmp_path / "cat.png")
    assert replay(tmp_path / "cat.png", tiny, say=lambda line: None).identical


def test_quick_fills_in_what_is_not_asked(tiny: Model) -> None:
    def resolved(fast: Known | None = None, **fields: Any) -> ResolvedRequest:
        return resolve(read(TextToImage, {"quick": "yes", **fields}), tiny.family, Reference(name="m"), fast=fast)

    plain = resolved().request
    assert (plain.quick, plain.step_cache, plain.tgate) == (False, QUICK["step_cache"], QUICK["tgate"])
    own = resolved(step_cache="2,3").request
    assert (own.step_cache, own.tgate) == (StepCache(every=2, depth=3), QUICK["tgate"])
    few = resolved(Known(BY_NAME["lightning"], "you"))
    assert few.request.step_cache is None
    assert "quick has no effect: a model of few steps has none to spare" in few.notes
    told = read_infotext(infotext(resolved())).request
    assert (told.step_cache, told.tgate) == (plain.step_cache, plain.tgate)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"step_cache": "yes", "tiled_diffusion": "yes"}, "step_cache: does not go with tiled_diffusion"),
        ({"tgate": 0.5, "sag": "yes"}, "tgate: does not go with sag"),
        ({"step_cache": "yes", "refiner_checkpoint": "x"}, "step_cache: does not go with refiner_checkpoint"),
        ({"step_cache": "yes", "sampler_name": "Restart"}, "step_cache: does not go with the sampler Restart"),
        ({"tgate": 0.5, "hr_sampler_name": "DPM adaptive"}, "tgate: does not go with the sampler DPM adaptive"),
        ({"quick": True, "sag": "yes"}, "quick: does not go with sag"),
        ({"tgate": 0.5, "sampler_name": "DDIM CFG++"}, "tgate: does not go with the sampler DDIM CFG++"),
        ({"step_cache": "2,1,0.7,0.2"}, "step_cache: start, 0.7, should not be above end, 0.2"),
        ({"step_cache": "1"}, "step_cache.every"),
        ({"tgate": 0}, "tgate"),
    ],
)
def test_what_does_not_go(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(DanqingError) as error:
        read(TextToImage, fields)
    assert str(error.value).startswith(line)


def test_what_does_not_go_with_the_model(tiny: Model) -> None:
    with pytest.raises(DanqingError, match="step_cache: depth 9 leaves nothing out; the U-Net has 9 layers up"):
        painted(tiny, {"step_cache": "2,9"})
    pix2pix = replace(tiny, family=replace(tiny.family, denoiser=replace(tiny.family.denoiser, in_channels=8)))
    with pytest.raises(DanqingError, match="tgate: does not go with instruct-pix2pix"):
        painted(pix2pix, {"tgate": 0.5})
