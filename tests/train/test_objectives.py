"""What the denoiser is asked for agrees with what the samplers make of its answer."""

from __future__ import annotations

import pytest
import torch

from danqing.families import Process
from danqing.train.objectives import noised, weights

PROCESSES = {
    "epsilon": Process(),
    "v": Process(prediction="v"),
    "v zero": Process(prediction="v", zero_terminal_snr=True),
    "flow": Process(prediction="flow"),
    "flow shifted": Process(prediction="flow", shift=3.0),
    "edm": Process(prediction="edm"),
}
STEPS = torch.tensor([0, 1, 17, 250, 500, 900, 998, 999])


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(STEPS), 4, 6, 6)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_the_target_gives_the_clean_latents(name: str) -> None:
    """A network that answers the target makes c_skip x + c_out * output the clean latents, at every noise level."""
    process = PROCESSES[name]
    clean, noise = drawn()
    scaled, target, told = noised(process, clean, noise, STEPS)
    for row, step in enumerate(STEPS.tolist()):
        sigma = float(process.sigmas[step])
        c_skip, c_out, c_in = process.scalings(sigma)
        x = clean[row].double() + sigma * noise[row].double()
        torch.testing.assert_close(scaled[row].double(), c_in * x, rtol=1e-5, atol=1e-6)
        found = c_skip * x + c_out * target[row].double()
        # float32's rounding of the target counts c_out times
        torch.testing.assert_close(found, clean[row].double(), rtol=0, atol=4e-7 * max(1.0, abs(c_out)) * 4)
        assert float(told[row]) == pytest.approx(process.timestep(sigma), rel=1e-6, abs=1e-6)


def test_only_noise_is_left_at_a_terminal_snr_of_zero() -> None:
    clean, noise = drawn()
    scaled, target, told = noised(PROCESSES["v zero"], clean, noise, STEPS)
    torch.testing.assert_close(scaled[-1], noise[-1], rtol=0, atol=2e-3)
    torch.testing.assert_close(target[-1], -clean[-1], rtol=0, atol=2e-3)
    assert told[-1] == 999
    usual, _, _ = noised(PROCESSES["v"], clean, noise, STEPS)
    assert (usual[-1] - noise[-1]).abs().max() > 0.05


def snr(process: Process) -> torch.Tensor:
    """(alpha / (alpha sigma))^2 of the process's steps."""
    return process.sigmas[STEPS] ** -2


def test_min_snr_of_epsilon() -> None:
    """Hang et al. 2023, section 3.4: min(SNR, gamma) / SNR."""
    process = PROCESSES["epsilon"]
    expected = snr(process).clamp(max=5) / snr(process)
    torch.testing.assert_close(weights(process, STEPS, 5.0).double(), expected, rtol=1e-5, atol=0)
    assert weights(process, STEPS, 5.0)[0] < 0.01
    assert weights(process, STEPS, 5.0)[-1] == 1


@pytest.mark.parametrize("name", ["v", "v zero"])
def test_min_snr_of_v(name: str) -> None:
    """min(SNR + 1, gamma) / (SNR + 1): no noise level counts more than gamma, as errors of the clean picture."""
    process = PROCESSES[name]
    ratio = snr(process) + 1
    torch.testing.assert_close(weights(process, STEPS, 5.0).double(), ratio.clamp(max=5) / ratio, rtol=1e-5, atol=0)
    assert weights(process, STEPS, 5.0)[-1] == 1


def test_min_snr_of_flow() -> None:
    """With t = sigma / (1 + sigma) an error of the velocity is one of the picture times t."""
    process = PROCESSES["flow"]
    t = (STEPS + 1).double() / 1000
    expected = (5 * t**2).clamp(max=1)
    torch.testing.assert_close(weights(process, STEPS, 5.0).double(), expected, rtol=1e-3, atol=0)


def test_no_weighting() -> None:
    assert torch.equal(weights(PROCESSES["v"], STEPS, None), torch.ones(len(STEPS)))
