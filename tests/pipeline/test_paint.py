"""Requests become pictures: the promises that hold for every one of them."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import danqing
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline import run as pipeline
from danqing.pipeline.paint import stream
from danqing.pipeline.picture import Picture
from danqing.requests import TextToImage
from danqing.runtime.memory import Plan
from danqing.vocabulary import DIALECTS, SAMPLERS, SCHEDULERS
from tiny_model import tiny_model

QUICK: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "seed": 5}


def paint(prompt: str, model: Model, said: list[str] | None = None, **fields: Any) -> list[Picture]:
    notes: list[str] = [] if said is None else said
    return danqing.paint(prompt, model, say=notes.append, **{**QUICK, **fields})


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


@pytest.mark.parametrize("precision", ["tiny", "tiny_bf16"])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M SDE", "UniPC", "DPM adaptive"])
def test_a_picture_does_not_depend_on_its_batch(precision: str, sampler: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(precision)
    fields = {"sampler_name": sampler, "steps": 4 if sampler != "DPM adaptive" else 2}
    (alone,) = paint("a (red:1.3) apple", model, **fields, seed=5)
    batch = paint("a (red:1.3) apple", model, **fields, seed=1, batch_size=8)
    assert [p.resolved.request.seed for p in batch] == list(range(1, 9))
    assert np.array_equal(pixels(alone), pixels(batch[4]))
    assert not np.array_equal(pixels(batch[3]), pixels(batch[4]))


def test_batches_go_on_with_the_seeds(tiny: Model) -> None:
    pictures = paint("x", tiny, seed=7, batch_size=2, n_iter=2)
    assert [p.resolved.request.seed for p in pictures] == [7, 8, 9, 10]
    (third,) = paint("x", tiny, seed=9)
    assert np.array_equal(pixels(third), pixels(pictures[2]))


@pytest.mark.parametrize("sampler", [row.name for row in SAMPLERS])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_sampler_paints_in_every_dialect(tiny: Model, sampler: str, dialect: str) -> None:
    (picture,) = paint("a cat", tiny, sampler_name=sampler, dialect=dialect)
    assert picture.image.size == (64, 64)
    assert pixels(picture).std() > 1
    (again,) = paint("a cat", tiny, sampler_name=sampler, dialect=dialect)
    assert np.array_equal(pixels(picture), pixels(again))


@pytest.mark.parametrize("scheduler", [row.name for row in SCHEDULERS])
@pytest.mark.parametrize("which", ["tiny", "tiny_v"])
def test_every_schedule_paints(which: str, scheduler: str, request: pytest.FixtureRequest) -> None:
    (picture,) = paint("a cat", request.getfixturevalue(which), sampler_name="Euler", scheduler=scheduler, steps=5)
    assert pixels(picture).std() > 1


def test_prompts_and_guidance_matter(tiny: Model) -> None:
    plain = pixels(paint("a cat", tiny)[0])
    for changes in (
        {"negative_prompt": "dog"},
        {"cfg_scale": 3},
        {"guidance_rescale": 0.7},
        {"guidance_start": 0.5},
        {"guidance_end": 0.2},
        {"s_min_uncond": 15.0},
        {"dynamic_thresholding": {"mimic_scale": 2}},
        {"emphasis": "none", "prompt": "a (cat:1.5)"},
        {"tiling": "both"},
        {"subseed": 3, "subseed_strength": 0.3},
        {"seed_resize_from_w": 128, "seed_resize_from_h": 64},
        {"noise_source": "philox"},
        {"scheduler": "Exponential"},
        {"clip_skip": 2},
    ):
        fields = dict(changes)
        other = pixels(paint(fields.pop("prompt", "a cat"), tiny, **fields)[0])
        assert not np.array_equal(plain, other), changes


def test_a_composed_prompt_is_its_parts_weighed(tiny: Model) -> None:
    one = pixels(paint("a cat", tiny)[0])
    twice = pixels(paint("a cat :0.5 AND a cat :0.5", tiny)[0])
    assert np.abs(one.astype(int) - twice.astype(int)).max() <= 1


def test_prompt_editing_changes_from_its_step_on(tiny: Model) -> None:
    steps = [event.latents for event in stream("[cat:dog:2]", tiny, say=lambda line: None, **{**QUICK, "steps": 4})]
    plain = [event.latents for event in stream("cat", tiny, say=lambda line: None, **{**QUICK, "steps": 4})]
    same = [torch.equal(a, b) for a, b in zip(steps, plain)]
    assert same == [True, True, True, False]  # AUTOMATIC1111's call 2 is the third, and still the first word's


def test_seamless_pictures_have_no_seam_and_leave_the_model_as_it_was(tiny: Model) -> None:
    before = pixels(paint("a wall", tiny)[0])
    values = pixels(paint("a wall", tiny, tiling="x")[0]).astype(float)
    assert np.abs(values[:, 0] - values[:, -1]).mean() < 2 * np.abs(np.diff(values, axis=1)).mean()
    assert np.array_equal(before, pixels(paint("a wall", tiny)[0]))


def test_steps_are_told_one_by_one_and_the_pictures_with_the_last(tiny: Model) -> None:
    events = list(stream("x", tiny, say=lambda line: None, **{**QUICK, "n_iter": 2, "batch_size": 2}))
    assert [(e.batch, e.step) for e in events] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    assert [len(e.pictures) for e in events] == [0, 0, 2, 0, 0, 2]
    assert all(e.clean.shape == (2, 4, 8, 8) for e in events)


def test_closing_the_stream_keeps_what_was_painted(tiny: Model) -> None:
    events = stream("x", tiny, say=lambda line: None, **{**QUICK, "n_iter": 3})
    pictures: list[Picture] = []
    for event in events:
        pictures += event.pictures
        if event.batch == 1:
            events.close()
            break
    assert len(pictures) == 1


def test_gradients_are_as_they_were_between_steps(tiny: Model) -> None:
    for _ in stream("x", tiny, say=lambda line: None, **QUICK):
        assert torch.is_grad_enabled()


def test_nothing_is_fetched_and_no_random_state_is_touched(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    before = torch.get_rng_state()
    assert len(paint("a cat", tiny, sampler_name="Euler a")) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_what_has_no_effect_is_said(tiny: Model) -> None:
    said: list[str] = []
    paint("a <lora:style:0.8> cat", tiny, said, eta=0.5, sampler_name="Euler", crop_top=3, width=70)
    assert any("eta has no effect" in line for line in said)
    assert any("crop_top has no effect" in line for line in said)
    assert any("lora:style" in line for line in said)
    assert any("width 70" in line and "72" in line for line in said)


def test_notes_stand_in_the_record(tiny: Model) -> None:
    (picture,) = paint("x", tiny, width=70)
    assert picture.image.width == 72
    assert any("width 70" in note for note in picture.resolved.notes)


def test_nan_is_named_mended_and_recorded() -> None:
    model = tiny_model(torch.device("cpu"), torch.float16)
    with torch.no_grad():  # beyond float16's 65504 in the middle, back in range after it
        model.denoiser.mid_block.resnets[0].conv1.weight.mul_(1e6 / 100)
        model.denoiser.mid_block.resnets[0].conv1.bias.fill_(60000)
        model.autoencoder.decoder.mid_block.resnets[0].conv1.bias.fill_(60000)
        model.autoencoder.decoder.mid_block.resnets[0].conv1.weight.mul_(1e4)
    said: list[str] = []
    (picture,) = paint("x", model, said)
    assert any("mid_block.resnets.0" in line and "float32" in line for line in said), said
    assert picture.resolved.notes == tuple(said)
    assert pixels(picture).std() > 0


def test_weights_that_are_broken_are_an_error(tiny: Model) -> None:
    import copy

    broken = replace(tiny, denoiser=copy.deepcopy(tiny.denoiser))
    with torch.no_grad():
        broken.denoiser.up_blocks[0].resnets[0].conv1.weight[0] = float("nan")
    with pytest.raises(DanqingError, match=r"up_blocks\.0\.resnets\.0\.conv1"):
        paint("x", broken)


def test_memory_that_runs_out_means_a_leaner_plan(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixels(paint("x", tiny, sampler_name="Euler a")[0])
    tried: list[Plan] = []
    honest = pipeline.predictor

    def greedy(model: Model, *, pictures_per_call: int, branches_apart: bool, **options: Any) -> Any:
        predict = honest(model, pictures_per_call=pictures_per_call, branches_apart=branches_apart, **options)
        tried.append(Plan(pictures_per_call, branches_apart))

        def call(latents: Any, at: Any, branches: Any) -> Any:
            if at.step >= 1 and not branches_apart:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return predict(latents, at, branches)

        return call

    monkeypatch.setattr(pipeline, "predictor", greedy)
    said: list[str] = []
    (picture,) = paint("x", tiny, said, sampler_name="Euler a")
    assert [plan.branches_apart for plan in tried] == [False, True]
    assert any("out of memory" in line for line in said)
    assert np.abs(pixels(picture).astype(int) - whole.astype(int)).max() <= 1


def test_memory_that_never_suffices_is_an_error(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> Any:
        def call(*args: object) -> None:
            raise torch.OutOfMemoryError("out of memory")

        return call

    monkeypatch.setattr(pipeline, "predictor", never)
    with pytest.raises(DanqingError, match="out of memory"):
        paint("x", tiny)


def test_guidance_of_ones_own(tiny: Model) -> None:
    from danqing.sampling.guidance import classifier_guidance

    def brighter(clean: torch.Tensor, at: object) -> torch.Tensor:
        return clean.mean((1, 2, 3))

    plain = list(stream("x", tiny, say=lambda line: None, **QUICK))[-1]
    guided = list(
        stream("x", tiny, say=lambda line: None, wrap=lambda d: classifier_guidance(d, brighter, 50.0), **QUICK)
    )[-1]
    assert guided.clean.mean() > plain.clean.mean()


def test_inpainting_and_pix2pix_models_paint_without_a_picture(tiny: Model) -> None:
    from danqing.models.unet import UNet

    for channels in (9, 8):
        config = replace(tiny.family.denoiser, in_channels=channels)
        torch.manual_seed(1)
        model = replace(tiny, family=replace(tiny.family, denoiser=config), denoiser=UNet(config))
        assert pixels(paint("x", model)[0]).std() > 1


def test_a_request_object_and_fields_beside_it(tiny: Model) -> None:
    request = TextToImage(prompt="x", steps=3, width=64, height=64, seed=5)
    (one,) = danqing.paint(request, tiny, say=lambda line: None)
    (two,) = danqing.paint(request, tiny, say=lambda line: None, seed=6)
    assert (one.resolved.request.seed, two.resolved.request.seed) == (5, 6)
    with pytest.raises(DanqingError, match="stepz: no such field; did you mean steps"):
        danqing.paint("x", tiny, stepz=3)


def test_a_vae_in_the_request_takes_the_place_of_a_loaded_models(tiny: Model, tmp_path: Path) -> None:
    import copy

    other = copy.deepcopy(tiny.autoencoder)
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.5)
    save_file({name: t.contiguous() for name, t in other.state_dict().items()}, tmp_path / "other.safetensors")
    (plain,) = paint("x", tiny)
    (changed,) = paint("x", tiny, vae=str(tmp_path / "other.safetensors"))
    assert pixels(changed).mean() > pixels(plain).mean() + 20
    assert changed.record.vae is not None
    assert changed.record.vae.name == "other.safetensors"
    assert changed.record.vae.sha256
    assert plain.record.vae is None
