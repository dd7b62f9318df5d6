"""Inversion: the picture comes back; and between two pictures, two prompts, two regions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.conditioning import Conditioning
from danqing.pipeline.invert import _walk, between, invert
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import Run, prepare
from danqing.pipeline.texts import area
from danqing.pipeline.texts import between as prompts_between
from danqing.request_parts import Reference, Region
from danqing.requests import TextToImage
from danqing.sampling.types import Denoise, Prediction


def run(model: Model, **fields: Any) -> Run:
    request = TextToImage(**{"prompt": "a cat", "width": 64, "height": 64, "seed": 1, "cfg_scale": 1.0, **fields})
    return prepare(resolve(request, model.family, Reference(name="m")), model, print)


def of_normal_pictures(denoise: Denoise) -> Denoise:
    """The best guess where pictures are unit normal noise: what a trained network is, and random weights are not."""
    return lambda latents, at: Prediction(latents / (1 + at.sigma**2))


@torch.no_grad()
def test_what_is_inverted_comes_back(tiny: Model) -> None:
    walk = replace(run(tiny, steps=20, sampler_name="Euler"), wrap=of_normal_pictures)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told: list[tuple[str, int, int]] = []
    result = invert(walk, latents, walk.picture(latents), lambda *part: told.append(part))
    assert told == [("inversion", done, 20) for done in range(1, 21)]
    back = _walk(walk.denoiser(walk.plans[0]), result.noised, walk.sigmas.tolist())
    assert (back - latents).abs().max() < 0.05
    assert result.error < 4
    assert result.noised.std() > 5 * latents.std()


def test_between_two_pictures_lengths_stay() -> None:
    first, second = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    assert torch.allclose(between(first, second, 0.0), first)
    assert torch.allclose(between(first, second, 1.0), second, atol=1e-6)
    assert between(first, second, 0.5).std() == pytest.approx(1, abs=0.1)
    assert torch.allclose(between(first, first, 0.3), first)


def test_between_two_prompts() -> None:
    short = Conditioning(context=torch.zeros(1, 77, 4), pooled=torch.zeros(1, 2))
    long = Conditioning(context=torch.ones(1, 154, 4), pooled=torch.ones(1, 2), strength=2.0)
    (mixed,) = prompts_between([short], [long], 0.25)
    assert mixed.context.shape == (1, 154, 4)
    assert torch.allclose(mixed.context, torch.tensor(0.25))
    assert mixed.strength == 1.25
    with pytest.raises(DanqingError, match="subprompt"):
        prompts_between([short], [long, long], 0.5)


def test_regions_take_the_place_of_the_whole(tiny: Model) -> None:
    held = area(Region(prompt="x", width=0.5), (8, 8))
    assert (held[..., :4].eq(1).all(), held[..., 4:].eq(0).all()) == (True, True)
    assert area(Region(prompt="x", width=0.5625, strength=0.5), (8, 8))[0, 0, 0, 4] == pytest.approx(0.25)
    sides = run(tiny, steps=1, regions="0,0,0.5,1 a dog; 0.5,0,0.5,1 a bird").positive
    assert len(sides) == 2  # nothing is left for the prompt of the whole
    total = sum(branch.area for branch in run(tiny, steps=1, regions="0,0,0.5,1 a dog").positive)
    assert torch.allclose(torch.as_tensor(total), torch.ones(1, 1, 8, 8))
