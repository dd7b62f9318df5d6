"""The moving averages against their closed forms."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from danqing.train.ema import MovingAverage, power
from danqing.train.recipe import Average


def shares(settings: Average, steps: int) -> torch.Tensor:
    """(steps,): how much each of the past weights counts in the average, found by giving each a dimension of its own."""
    network = nn.Linear(steps, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    average = MovingAverage(network, settings)
    for step in range(steps):
        with torch.no_grad():
            network.weight.copy_(torch.eye(steps)[step])
        average.update(step)
    return average.weights["weight"][0].double()


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_and_exponents_of_the_paper(length: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.1."""
    assert power(length) == pytest.approx(gamma, abs=0.005)


@given(st.floats(0.01, 0.28))
def test_length_is_the_deviation_of_the_profile(length: float) -> None:
    """The relative standard deviation of t in [0, 1] of density (gamma + 1) t^gamma, by its moments."""
    g = power(length)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_past_steps_count_as_a_power_of_their_number(length: float) -> None:
    """Step t's share is the profile's integral over ((t - 1) / n, t / n)."""
    steps, g = 200, power(length)
    ends = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** (g + 1)
    torch.testing.assert_close(shares(Average(length=length), steps), ends.diff(), rtol=1e-4, atol=1e-7)


def test_constant_decay() -> None:
    """After the warm-up each step keeps the same share; the start (Tensorflow's rule) keeps less."""
    decay, steps = 0.9, 200
    found = shares(Average(kind="constant", decay=decay), steps)
    late = torch.arange(100, steps)
    expected = (1 - decay) * decay ** (steps - 1 - late.double())
    torch.testing.assert_close(found[100:], expected, rtol=1e-4, atol=1e-7)
    first = shares(Average(kind="constant", decay=decay), 2)
    torch.testing.assert_close(first, torch.tensor([0.9 * 2 / 11, 9 / 11], dtype=torch.float64), rtol=1e-5, atol=0)


def test_applied_and_taken_back() -> None:
    network = nn.Linear(3, 2)
    average = MovingAverage(network, Average(kind="constant", decay=0.5))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        network.weight += 1
    own = network.weight.detach().clone()
    with average.applied():
        assert torch.equal(network.weight, before["weight"])
    assert torch.equal(network.weight, own)
    with suppress(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert torch.equal(network.weight, own)


def test_state_goes_round() -> None:
    network = nn.Linear(3, 2)
    average = MovingAverage(network, Average())
    state = {name: torch.full_like(value, 7) for name, value in average.state_dict().items()}
    average.load_state_dict(state)
    with average.applied():
        assert (network.weight == 7).all()


def test_low_precision_weights_are_averaged_in_float32() -> None:
    network = nn.Linear(3, 2).bfloat16()
    average = MovingAverage(network, Average(kind="constant", decay=0.999))
    assert all(value.dtype == torch.float32 for value in average.weights.values())
    with average.applied():
        assert network.weight.dtype == torch.bfloat16
