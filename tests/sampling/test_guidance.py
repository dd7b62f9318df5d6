import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from danqing.families import At, Process
from danqing.models.conditioning import Conditioning
from danqing.sampling.guidance import (
    classifier_free,
    classifier_guidance,
    dynamic_thresholding,
    instruct,
    interval,
    perturbed_attention,
    rescale,
    self_attention,
    skip_alternate,
)
from danqing.sampling.types import Prediction

AT = At(2.0, 3)


class Predictor:
    """A branch's prediction is 0.1 x + a picture of its own, told by its context's first value."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def picture(self, branch: Conditioning) -> Tensor:
        seed = int(branch.context[0, 0, 0])
        return torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(seed))

    def __call__(self, latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        self.calls.append(len(branches))
        return [0.1 * latents + self.picture(branch) for branch in branches]


def _branch(seed: int, **fields: object) -> Conditioning:
    return Conditioning(torch.full((1, 2, 3), float(seed)), **fields)  # type: ignore[arg-type]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def test_one_prompt_is_the_usual_formula_in_one_call(x: Tensor) -> None:
    predict = Predictor()
    cond, uncond = predict(x, AT, [_branch(1), _branch(2)])
    predict.calls.clear()
    prediction = classifier_free(predict, [_branch(1)], [_branch(2)], 7.5)(x, AT)
    assert predict.calls == [2]
    assert torch.allclose(prediction.clean, uncond + 7.5 * (cond - uncond), atol=1e-6)
    assert torch.equal(prediction.unconditional, uncond)
    assert torch.allclose(prediction.conditional, cond, atol=1e-6)


def test_scale_one_leaves_the_negative_prompt_out(x: Tensor) -> None:
    predict = Predictor()
    (cond,) = predict(x, AT, [_branch(1)])
    predict.calls.clear()
    prediction = classifier_free(predict, [_branch(1)], [_branch(2)], 1.0)(x, AT)
    assert predict.calls == [1]
    assert torch.equal(prediction.clean, cond)
    assert prediction.unconditional is None
    kept = classifier_free(predict, [_branch(1)], [_branch(2)], 1.0, keep_negative=True)(x, AT)
    assert kept.unconditional is not None
    assert torch.allclose(kept.clean, cond, atol=1e-6)
    predict.calls.clear()
    classifier_free(predict, [_branch(1, strength=0.5)], [_branch(2)], 1.0)(x, AT)
    classifier_free(predict, [_branch(1), _branch(3)], [_branch(2)], 1.0)(x, AT)
    assert predict.calls == [2, 3]


def test_and_adds_each_prompts_direction(x: Tensor) -> None:
    predict = Predictor()
    a, b, uncond = predict(x, AT, [_branch(1), _branch(2), _branch(3)])
    prompts = [_branch(1, strength=1.2), _branch(2, strength=-0.4)]
    prediction = classifier_free(predict, prompts, [_branch(3)], 5.0)(x, AT)
    assert torch.allclose(prediction.clean, uncond + 6.0 * (a - uncond) - 2.0 * (b - uncond), atol=1e-5)
    skipped = classifier_free(predict, prompts, [_branch(3)], lambda at: None)(x, AT)
    assert skipped.unconditional is None
    assert torch.allclose(skipped.clean, a - 0.4 * (b - a), atol=1e-5)


def test_branches_hold_at_their_steps(x: Tensor) -> None:
    predict = Predictor()
    early, late = _branch(1, steps=(-math.inf, 3)), _branch(2, steps=(3, math.inf))
    denoise = classifier_free(predict, [early, late], [_branch(3)], 4.0)
    for step, seed in ((2, 1), (2.5, 1), (3, 2), (3.5, 2)):
        cond, uncond = predict(x, AT, [_branch(seed), _branch(3)])
        assert torch.allclose(denoise(x, At(2.0, step)).clean, uncond + 4 * (cond - uncond), atol=1e-5)
    with pytest.raises(ValueError, match="positive"):
        classifier_free(predict, [early], [_branch(3)], 4.0)(x, At(2.0, 5))


def test_regions_are_blended_before_guidance(x: Tensor) -> None:
    predict = Predictor()
    left = torch.zeros(1, 1, 6, 5)
    left[..., :2] = 1
    middle = torch.zeros(1, 1, 6, 5)
    middle[..., 1:4] = 0.5
    prompts = [_branch(1, area=left), _branch(2, area=middle, strength=2.0)]
    a, b, uncond = predict(x, AT, [_branch(1), _branch(2), _branch(3)])
    clean = classifier_free(predict, prompts, [_branch(3)], 3.0)(x, AT).clean

    def guided(cond: Tensor) -> Tensor:
        return uncond + 3 * (cond - uncond)

    assert torch.allclose(clean[..., 0], guided(a)[..., 0], atol=1e-5)
    assert torch.allclose(clean[..., 1], guided((a + b) / 2)[..., 1], atol=1e-5)
    assert torch.allclose(clean[..., 2:4], guided(b)[..., 2:4], atol=1e-5)
    assert torch.allclose(clean[..., 4], uncond[..., 4], atol=1e-5)


def test_guidance_interval_by_share_of_steps(x: Tensor) -> None:
    scale = interval(7.0, 20, 0.1, 0.8)
    asked = [scale(At(1.0, step)) for step in range(20)]
    assert asked == [None] * 3 + [7.0] * 13 + [None] * 4
    assert [interval(7.0, 20)(At(1.0, step)) for step in (0, 19, 19.5)] == [7.0] * 3
    predict = Predictor()
    denoise = classifier_free(predict, [_branch(1)], [_branch(2)], scale)
    denoise(x, At(1.0, 1))
    denoise(x, At(1.0, 5))
    assert predict.calls == [1, 2]


def test_negative_prompt_is_left_out_of_every_other_late_call() -> None:
    scale = skip_alternate(7.0, 3.0)
    sigmas = [14.0, 9.0, 5.0, 2.9, 1.0, 0.5]
    assert [scale(At(sigma, i)) for i, sigma in enumerate(sigmas)] == [7.0, 7.0, 7.0, None, 7.0, None]
    twice = skip_alternate(7.0, 3.0, 2)
    assert [twice(At(1.0, step)) for step in (4, 4.5, 5, 5.5)] == [7.0, None, 7.0, None]
    both = interval(skip_alternate(7.0, 3.0), 6, 0.1)
    assert [both(At(sigma, i)) for i, sigma in enumerate(sigmas)] == [None, 7.0, 7.0, None, 7.0, None]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
def test_full_rescale_gives_the_positive_deviation(x: Tensor, prediction: str) -> None:
    process = Process(prediction=prediction)
    predict = Predictor()
    denoise = classifier_free(predict, [_branch(1)], [_branch(2)], 9.0)
    c_skip, c_out, _ = process.scalings(AT.sigma)
    result = rescale(denoise, process, 1.0)(x, AT)
    for clean, cond in zip((result.clean - c_skip * x) / c_out, (result.conditional - c_skip * x) / c_out):
        assert float(clean.std()) == pytest.approx(float(cond.std()), rel=1e-4)
    assert torch.equal(rescale(denoise, process, 0.0)(x, AT).clean, denoise(x, AT).clean)
    alone = classifier_free(predict, [_branch(1)], [_branch(2)], 1.0)
    assert torch.equal(rescale(alone, process, 0.7)(x, AT).clean, alone(x, AT).clean)


def test_pictures_keep_their_bits_in_any_batch(x: Tensor) -> None:
    predict = Predictor()
    denoise = classifier_free(predict, [_branch(1)], [_branch(2)], 9.0)
    for stacked in (rescale(denoise, Process(), 0.7), dynamic_thresholding(denoise, 5.0, 0.9)):
        whole = stacked(x, AT).clean
        for i in range(len(x)):
            assert torch.equal(whole[i : i + 1], stacked(x[i : i + 1], AT).clean)


def test_thresholding_brings_values_into_the_lower_scales_range(x: Tensor) -> None:
    predict = Predictor()
    denoise = classifier_free(predict, [_branch(1)], [_branch(2)], 20.0)
    plain, result = denoise(x, AT), dynamic_thresholding(denoise, 5.0, 0.95)(x, AT)
    mimic = plain.unconditional + 5 * (plain.conditional - plain.unconditional)
    centred = (mimic - mimic.mean((2, 3), keepdim=True)).abs().amax((2, 3))
    mean = plain.clean.mean((2, 3), keepdim=True)
    assert torch.allclose((result.clean - mean).abs().amax((2, 3)), centred, rtol=1e-4)
    same = dynamic_thresholding(classifier_free(predict, [_branch(1)], [_branch(2)], 5.0), 5.0)(x, AT)
    assert torch.allclose(same.clean, mimic, atol=1e-4)
    flat = Prediction(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2))
    assert torch.equal(dynamic_thresholding(lambda x, at: flat, 5.0)(x, AT).clean, flat.clean)


@pytest.mark.parametrize("noisy", [False, True])
@torch.no_grad()
def test_classifier_guidance_shifts_the_posterior_of_a_gaussian(x: Tensor, noisy: bool) -> None:
    """x0 ~ N(0, 1) and an observation y = x0 + N(0, s^2): with its gradient, E[x0 | x] becomes E[x0 | x, y]."""
    sigma, s, y = AT.sigma, 0.7, 1.5
    variance = sigma**2 / (1 + sigma**2)  # of x0 given x

    def denoise(latents: Tensor, at: At) -> Prediction:
        return Prediction(latents / (1 + at.sigma**2))

    def log_probability(given: Tensor, at: At) -> Tensor:
        clean = given / (1 + sigma**2) if noisy else given
        return -((clean - y) ** 2 / (2 * (s**2 + variance))).flatten(1).sum(1)

    result = classifier_guidance(denoise, log_probability, 1.0, noisy)(x, AT).clean
    precision = 1 + 1 / sigma**2 + 1 / s**2
    assert torch.allclose(result, (x / sigma**2 + y / s**2) / precision, atol=1e-5)
    assert not result.requires_grad


def test_instruct_weighs_text_and_picture(x: Tensor) -> None:
    predict = Predictor()
    text, image, nothing = predict(x, AT, [_branch(1), _branch(2), _branch(3)])
    predict.calls.clear()
    groups = ([_branch(1)], [_branch(2)], [_branch(3)])
    prediction = instruct(predict, *groups, 7.5, 1.5)(x, AT)
    assert predict.calls == [3]
    assert torch.allclose(prediction.clean, nothing + 7.5 * (text - image) + 1.5 * (image - nothing), atol=1e-5)
    branch = replace(_branch(1), steps=(9, 10))
    with pytest.raises(ValueError, match="holds at step"):
        instruct(predict, [branch], *groups[1:], 7.5, 1.5)(x, AT)


# --- guidance by attention: a perturbed branch is told by a seed 10 higher ---------------------------------------------


def test_perturbed_attention_with_and_without_a_negative_prompt(x: Tensor) -> None:
    predict = Predictor()
    cond, other, uncond = predict(x, AT, [_branch(1), _branch(11), _branch(2)])
    for scale, plain in ((5.0, uncond + 5 * (cond - uncond)), (1.0, cond)):
        free = classifier_free(predict, [_branch(1)], [_branch(2)], scale)
        clean = perturbed_attention(free, predict, [_branch(11)], lambda at: 3.0)(x, AT).clean
        assert torch.allclose(clean, plain + 3 * (cond - other), atol=1e-5)


def test_perturbed_attention_composes_as_the_prompts_do(x: Tensor) -> None:
    predict = Predictor()
    a, b, pa, pb, uncond = predict(x, AT, [_branch(n) for n in (1, 3, 11, 13, 2)])
    sides = [_branch(1), _branch(3, strength=0.6)], [_branch(11), _branch(13, strength=0.6)]
    free = classifier_free(predict, sides[0], [_branch(2)], 4.0)
    clean = perturbed_attention(free, predict, sides[1], lambda at: 2.0)(x, AT).clean
    assert torch.allclose(clean, free(x, AT).clean + 2 * ((a - pa) + 0.6 * (b - pb)), atol=1e-5)
    left = torch.zeros(1, 1, 6, 5)
    left[..., :2] = 1
    areas = [
        [_branch(seed, area=left), _branch(seed + 2, area=1 - left)] for seed in (1, 11)
    ]  # each half its own prompt
    free = classifier_free(predict, areas[0], [_branch(2)], 4.0)
    clean = perturbed_attention(free, predict, areas[1], lambda at: 2.0)(x, AT).clean
    assert torch.allclose(clean, free(x, AT).clean + 2 * (left * (a - pa) + (1 - left) * (b - pb)), atol=1e-5)
    assert uncond.shape == clean.shape


def test_perturbed_attention_costs_nothing_at_zero(x: Tensor) -> None:
    predict = Predictor()
    free = classifier_free(predict, [_branch(1)], [_branch(2)], 4.0)
    expected = free(x, AT).clean
    predict.calls.clear()
    assert torch.equal(perturbed_attention(free, predict, [_branch(11)], lambda at: 0.0)(x, AT).clean, expected)
    assert predict.calls == [2]


def test_self_attention_guidance_is_in_what_the_network_predicts(x: Tensor) -> None:
    asked: list[Tensor] = []

    class Noting(Predictor):
        def __call__(self, latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
            asked.append(latents)
            return super().__call__(latents, at, branches)

    predict = Noting()
    for process in (Process(), Process(prediction="v"), Process(prediction="sample")):
        asked.clear()
        sides = [_branch(1)], [_branch(2)]
        free = classifier_free(predict, *sides, 4.0)
        guided = self_attention(free, predict, *sides, process, 0.5, lambda branch, clean: clean + 1)(x, AT).clean
        assert torch.allclose(asked[-1], x + 1, atol=1e-6)
        uncond, degraded = predict(x, AT, [_branch(2)])[0], predict(x + 1, AT, [_branch(2)])[0]
        c_skip, c_out, _ = process.scalings(AT.sigma)
        outputs = ((clean - c_skip * given) / c_out for clean, given in ((uncond, x), (degraded, x + 1)))
        kept, blurred = outputs
        assert torch.allclose(guided, free(x, AT).clean + 0.5 * c_out * (kept - blurred), atol=1e-4)
