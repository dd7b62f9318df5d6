"""What every sampler promises: order, resuming, independence of the batch, addresses of noise and of evaluations."""

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from references import Draws, Mixture, relative_error, run
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At, Process
from danqing.sampling.samplers import (
    PICTURE_BY_PICTURE,
    SAMPLER_FUNCTIONS,
    dialect_options,
    end_scale,
    options_of,
    start_scale,
)
from danqing.sampling.schedules import schedule
from danqing.sampling.types import Prediction, Step
from danqing.vocabulary import SAMPLERS

LABELS = [row.name for row in SAMPLERS]
SHAPE = (2, 4, 4, 4)
DETERMINISTIC = {"Euler", "Heun", "DPM2", "LMS", "DPM++ 2M", "DDIM", "DDIM CFG++", "PLMS", "UniPC"}
CONSISTENCY = {"LCM", "TCD"}
"""Right for distilled models only, whose clean prediction is a sample and not a mean."""
ALWAYS_NOISY = {"Restart", "LCM", "DDPM", "ER-SDE"}


def test_every_label_has_a_sampler() -> None:
    assert set(SAMPLER_FUNCTIONS) == set(LABELS)


def test_options_name_the_requests_fields_that_act() -> None:
    churn = {"s_churn", "s_tmin", "s_tmax", "s_noise"}
    for label in ("Euler", "Heun", "DPM2"):
        assert options_of(label) == churn
    for label in ("Euler a", "DPM2 a", "DPM fast", "DPM adaptive", "DPM++ SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"):
        assert options_of(label) == {"eta", "s_noise"}
    for label in ("LMS", "PLMS", "DPM++ 2M", "UniPC", "LCM", "DDPM"):
        assert options_of(label) == set()
    assert options_of("DDIM") == options_of("TCD") == {"eta"}


@pytest.mark.parametrize("label", LABELS)
def test_every_option_acts(label: str) -> None:
    base: dict[str, dict[str, Any]] = {
        "s_noise": {"s_churn": 9.0},
        "s_tmin": {"s_churn": 9.0},
        "s_tmax": {"s_churn": 9.0},
    }
    values = {"eta": 0.7, "s_churn": 9.0, "s_noise": 1.3, "s_tmin": 3.0, "s_tmax": 3.0}
    sigmas = schedule("Karras", Process(), 24)
    for option in options_of(label):
        first = base.get(option, {}) if "s_churn" in options_of(label) else {}
        draws = Draws(SHAPE)
        plain = run(SAMPLER_FUNCTIONS[label], Mixture(), draws.tensor(0) * sigmas[0], sigmas, draws, **first)
        changed = run(
            SAMPLER_FUNCTIONS[label],
            Mixture(),
            draws.tensor(0) * sigmas[0],
            sigmas,
            draws,
            **first,
            **{option: values[option]},
        )
        assert not torch.equal(plain[-1].latents, changed[-1].latents), option


# Order of convergence, on the probability flow of the mixture, from 8 to 0.3.


def slope(label: str, counts: tuple[int, int], even: str, **options: Any) -> float:
    """By how much the error falls when the steps are doubled, as a power of 2."""
    start = Draws(SHAPE, torch.float64).tensor(0) * 8

    def end(function: str, steps: int, **options: Any) -> Tensor:
        if even == "sigma":
            sigmas = torch.linspace(8, 0.3, steps + 1, dtype=torch.float64)
        else:
            sigmas = torch.linspace(math.log(8), math.log(0.3), steps + 1, dtype=torch.float64).exp()
        return run(SAMPLER_FUNCTIONS[function], Mixture(), start, sigmas, forbidden, **options)[-1].latents

    exact = Mixture().flow(start, 8, 0.3)
    errors = [relative_error(end(label, n, **options), exact) for n in counts]
    return math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])


def forbidden(draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
    raise AssertionError(f"draw {draw} was asked of a deterministic run")


@pytest.mark.parametrize(
    ("label", "order", "even", "options"),
    [
        ("Euler", 1, "log", {}),
        ("DDIM", 1, "log", {}),
        ("Euler a", 1, "log", {"eta": 0.0}),
        ("Heun", 2, "log", {}),
        ("DPM2", 2, "log", {}),
        ("DPM2 a", 2, "log", {"eta": 0.0}),
        ("DPM++ 2S a", 2, "log", {"eta": 0.0}),
        ("DPM++ SDE", 2, "log", {"eta": 0.0}),
        ("DPM++ 2M", 2, "log", {}),
        ("DPM++ 2M SDE", 2, "log", {"eta": 0.0}),
        ("DPM++ 2M SDE Heun", 2, "log", {"eta": 0.0}),
        # Begun with steps of lower order, whose own error is of the second.
        ("DPM++ 3M SDE", 2, "log", {"eta": 0.0}),
        ("LMS", 2, "log", {}),
        ("UniPC", 2, "log", {}),
        ("UniPC", 2, "log", {"variant": "bh2"}),
        # Its weights are those of even steps; the first is of the second order.
        ("PLMS", 2.7, "sigma", {}),
        # Orders 3, 3, ..., 2: the last step's error is of the third.
        ("DPM fast", 2.7, "log", {"eta": 0.0}),
    ],
)
def test_order_of_convergence(label: str, order: float, even: str, options: dict[str, Any]) -> None:
    counts = (71, 143) if label == "DPM fast" else (60, 120)
    assert slope(label, counts, even, **options) > order - 0.25


def test_adaptive_steps_meet_the_solution() -> None:
    start = Draws(SHAPE, torch.float64).tensor(0) * 8
    sigmas = torch.tensor([8.0, 0.3, 0.0], dtype=torch.float64)
    result = run(SAMPLER_FUNCTIONS["DPM adaptive"], Mixture(), start, sigmas, forbidden, eta=0.0)[-1].latents
    assert relative_error(result, Mixture().flow(start, 8, 0.3)) < 0.02


# Steps.


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("steps", [7, 24])
def test_resumes_from_any_step_with_the_same_bits(label: str, steps: int) -> None:
    sigmas = schedule("Karras", Process(), steps)
    start = Draws(SHAPE).tensor(0) * sigmas[0]
    sampler = SAMPLER_FUNCTIONS[label]
    options = {"s_churn": 5.0} if "s_churn" in options_of(label) else {}
    whole = run(sampler, Mixture(), start, sigmas, Draws(SHAPE), **options)
    assert [step.index for step in whole] == list(range(len(whole)))
    for step in whole[:: max(1, len(whole) // 8)] + whole[-1:]:
        file = io.BytesIO()
        torch.save({"index": step.index, "latents": step.latents, "clean": step.clean, "state": dict(step.state)}, file)
        file.seek(0)
        resume = Step(**torch.load(file, weights_only=True))
        rest = run(sampler, Mixture(), torch.full_like(start, math.nan), sigmas, Draws(SHAPE), resume=resume, **options)
        assert len(rest) == len(whole) - step.index - 1
        for ours, theirs in zip(rest, whole[step.index + 1 :]):
            assert ours.index == theirs.index
            assert torch.equal(ours.latents, theirs.latents)


@pytest.mark.parametrize("label", LABELS)
def test_a_picture_does_not_depend_on_its_batch(label: str) -> None:
    sigmas = schedule("Karras", Process(), 9)
    shape = (3, 4, 4, 4)
    sampler = SAMPLER_FUNCTIONS[label]
    draws = Draws(shape)
    together = run(sampler, Mixture(), draws.tensor(0) * sigmas[0], sigmas, draws)[-1].latents
    for picture in range(3):
        row = slice(picture, picture + 1)

        def noise(draw: int, *_: Any, row: slice = row) -> Tensor:
            return draws.tensor(draw)[row]

        alone = run(sampler, Mixture(), noise(0) * sigmas[0], sigmas, noise)[-1].latents
        assert torch.equal(alone, together[row])


def test_only_samplers_that_choose_their_steps_go_picture_by_picture() -> None:
    sigmas = schedule("Karras", Process(), 9)
    for label, sampler in SAMPLER_FUNCTIONS.items():
        counts = []
        for batch in (1, 2):
            mixture, draws = Mixture(), Draws((batch, 4, 4, 4))
            run(sampler, mixture, draws.tensor(0) * sigmas[0], sigmas, draws)
            counts.append(len(mixture.asked))
        assert (counts[0] != counts[1]) == (label in PICTURE_BY_PICTURE)


@pytest.mark.parametrize("label", LABELS)
def test_evaluations_are_addressed_by_step(label: str) -> None:
    steps = 12
    sigmas = schedule("Karras", Process(), steps)
    mixture, draws = Mixture(), Draws((1, 4, 4, 4))
    done = run(SAMPLER_FUNCTIONS[label], mixture, draws.tensor(0) * sigmas[0], sigmas, draws)
    places = [at.step for at in mixture.asked]
    if label == "DPM fast":
        assert places == list(range(steps))
    elif label == "DPM adaptive":
        assert all(0 <= place < steps for place in places)
        first = [at for at in mixture.asked if at.step == int(at.step)]
        assert all(a.step <= b.step and a.sigma > b.sigma for a, b in pairwise(first))
    else:
        assert [place for place in places if place == int(place)] == list(range(steps))
        assert set(places) <= {i / 2 for i in range(2 * steps)}
        assert places == sorted(places)
        assert len(done) == steps


@pytest.mark.parametrize("label", LABELS)
def test_noise_is_drawn_in_order_and_only_where_it_counts(label: str) -> None:
    steps = 24
    sigmas = schedule("Karras", Process(), steps)
    draws = Draws((1, 4, 4, 4))
    run(SAMPLER_FUNCTIONS[label], Mixture(), draws.tensor(0) * sigmas[0], sigmas, draws)
    expected = {"DPM++ SDE": 2 * (steps - 1), "Restart": 1, "DPM fast": 8}.get(label, steps - 1)
    if label in DETERMINISTIC:
        assert draws.asked == []
    elif label == "DPM adaptive":
        assert draws.asked == list(range(1, len(draws.asked) + 1))
        assert len(draws.asked) > 5
    else:
        assert draws.asked == list(range(1, expected + 1))


@pytest.mark.parametrize("label", sorted(set(LABELS) - ALWAYS_NOISY))
def test_without_eta_nothing_is_drawn(label: str) -> None:
    sigmas = schedule("Karras", Process(), 9)
    options = {"eta": 0.0} if "eta" in options_of(label) else {}
    start = Draws(SHAPE).tensor(0) * sigmas[0]
    assert run(SAMPLER_FUNCTIONS[label], Mixture(), start, sigmas, forbidden, **options)[-1].latents.isfinite().all()


@pytest.mark.parametrize("label", LABELS)
def test_one_step_gives_the_clean_prediction(label: str) -> None:
    sigmas = torch.tensor([5.0, 0.0])
    draws = Draws(SHAPE)
    start = draws.tensor(0) * 5
    (step,) = run(SAMPLER_FUNCTIONS[label], Mixture(), start, sigmas, draws)
    assert torch.allclose(step.latents, Mixture().clean(start, 5.0), atol=1e-5)
    assert torch.equal(step.clean, Mixture().clean(start, 5.0))
    assert run(SAMPLER_FUNCTIONS[label], Mixture(), start, sigmas, draws, resume=step) == []


@pytest.mark.parametrize("label", LABELS)
def test_the_generator_can_be_closed(label: str) -> None:
    sigmas = schedule("Karras", Process(), 5)
    draws, mixture = Draws(SHAPE), Mixture()
    steps = SAMPLER_FUNCTIONS[label](mixture, draws.tensor(0) * sigmas[0], sigmas, draws)
    next(steps)
    asked = len(mixture.asked)
    steps.close()
    assert len(mixture.asked) == asked
    assert list(steps) == []


def test_cfgpp_needs_the_unconditional_prediction() -> None:
    def guided_only(x: Tensor, at: At) -> Prediction:
        return Prediction(Mixture().clean(x, at.sigma))

    sigmas = schedule("Karras", Process(), 5)
    with pytest.raises(DanqingError, match="unconditional"):
        run(SAMPLER_FUNCTIONS["DDIM CFG++"], guided_only, Draws(SHAPE).tensor(0), sigmas, forbidden)


def test_an_error_that_is_not_a_number_ends() -> None:
    def broken(x: Tensor, at: At) -> Prediction:
        return Prediction(x * math.nan)

    sigmas = schedule("Karras", Process(), 5)
    steps = run(SAMPLER_FUNCTIONS["DPM adaptive"], broken, torch.ones(1, 4, 4, 4), sigmas, forbidden, eta=0.0)
    assert steps[-1].latents.isnan().all()


# One distribution, three parameterisations.


def through_network(process: Process) -> Any:
    """A denoiser that asks a network of `process` for the mixture, in the model's own coordinates and timesteps."""
    mixture = Mixture()

    def network(own: Tensor, timestep: float) -> Tensor:
        sigma = process.sigma_at(timestep)
        alpha = process.alpha(sigma)
        x = own / alpha
        clean = mixture.clean(x, sigma)
        noise = (x - clean) / sigma
        if process.prediction == "flow":
            return noise - clean
        return noise if process.prediction == "epsilon" else alpha * noise - alpha * sigma * clean

    def denoise(x: Tensor, at: At) -> Prediction:
        skip, out, into = process.scalings(at.sigma)
        clean = skip * x + out * network(into * x, process.timestep(at.sigma))
        return Prediction(clean, clean)

    return denoise


@pytest.mark.parametrize(
    "process", [Process(), Process("v", zero_terminal_snr=True), Process("flow", shift=3.0)], ids=lambda p: p.prediction
)
@pytest.mark.parametrize("label", sorted(set(LABELS) - CONSISTENCY))
def test_epsilon_v_and_flow_sample_the_same_distribution(label: str, process: Process) -> None:
    shape = (1, 4, 64, 64)
    sigmas = schedule("Exponential", Process(), 100, sigma_max=14.0)
    draws = Draws(shape)
    result = run(SAMPLER_FUNCTIONS[label], through_network(process), draws.tensor(0) * sigmas[0], sigmas, draws)[
        -1
    ].latents
    mixture = Mixture()
    mean = sum(w * m for w, m in zip(mixture.weights, mixture.means))
    square = sum(w * (m**2 + d**2) for w, m, d in zip(mixture.weights, mixture.means, mixture.deviations))
    assert float(result.mean()) == pytest.approx(mean, abs=0.06)
    assert float(result.var()) == pytest.approx(square - mean**2, rel=0.08)


# Scales at the ends.


def test_start_scales() -> None:
    epsilon, flow = Process(), Process("flow")
    assert start_scale("Euler", epsilon, 3.0, "danqing") == 3
    assert start_scale("DDIM", epsilon, 3.0, "a1111") == math.hypot(1, 3)
    assert start_scale("Euler", epsilon, 3.0, "comfyui") == math.hypot(1, 3)
    assert start_scale("Euler", epsilon, 3.0, "diffusers") == 3
    assert start_scale("Euler", epsilon, 3.0, "diffusers", spacing="leading") == math.hypot(1, 3)
    assert start_scale("DPM++ 2M", epsilon, 3.0, "diffusers") == math.hypot(1, 3)
    assert start_scale("Euler", flow, 3.0, "comfyui") == 3


def test_end_scales() -> None:
    process = Process()
    assert end_scale("DDIM", process, 0.04, "a1111") == process.alpha(0.04)
    assert end_scale("DDIM", process, 0.0, "a1111") == 1
    assert end_scale("DPM fast", process, 0.04, "a1111") == 1
    assert end_scale("UniPC", process, 0.001, "comfyui") == 1
    assert end_scale("TCD", process, 0.03, "diffusers") == process.alpha(0.03)


def test_dialects_set_their_own_options() -> None:
    assert dialect_options("UniPC", "diffusers") == {"order": 2, "variant": "bh2"}
    assert dialect_options("DPM fast", "comfyui") == {"eta": 0.0}
    assert dialect_options("UniPC", "a1111") == {}
