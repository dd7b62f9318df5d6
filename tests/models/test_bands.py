"""Decoding in bands of rows is decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danqing.models import bands
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.seamless import seamless
from danqing.runtime.numerics import guarded

SMALL = AutoencoderConfig(channels=(16, 32, 32), layers=1, groups=8)
LATENTS = torch.randn(2, 4, 19, 13, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def network() -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(SMALL).requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim == 1:  # norms and biases that do something
            weight.add_(0.2 * torch.randn_like(weight))
    return network


def decoded(network: Autoencoder, band: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(bands, "BAND", band)
    with torch.no_grad():
        return network.decode(LATENTS)


@pytest.mark.parametrize("band", [1, 3000, 20_000])
def test_bands_of_any_height_are_the_whole(network: Autoencoder, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decoded(network, 1 << 40, monkeypatch)
    torch.testing.assert_close(decoded(network, band, monkeypatch), whole, rtol=1e-5, atol=1e-5)
    network.to(torch.bfloat16)
    errors = [(decoded(network, size, monkeypatch) - whole).square().mean() for size in (band, 1 << 40)]
    assert errors[0] < 1.2 * errors[1]


def test_a_level_that_is_not_half_as_wide_as_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(channels=(16, 48, 32), layers=1, groups=8)).requires_grad_(False)
    whole = decoded(network, 1 << 40, monkeypatch)
    torch.testing.assert_close(decoded(network, 3000, monkeypatch), whole, rtol=1e-5, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(network: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    together = decoded(network.bfloat16(), 3000, monkeypatch)
    with torch.no_grad():
        assert torch.equal(together[1:], network.decode(LATENTS[1:]))


def test_gradients_and_joined_borders_take_the_other_way(network: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND", 3000)
    monkeypatch.setattr(bands, "res_block", None)
    latents = LATENTS.clone().requires_grad_()
    network.decode(latents).sum().backward()
    assert latents.grad is not None
    with torch.no_grad():
        seamless(network, "both").decode(LATENTS)


def test_what_is_not_finite_is_made_again_in_float32(network: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND", 3000)
    network.half()
    block = network.decoder.up_blocks[1].resnets[1]
    block.norm1.weight.fill_(500.0)
    block.conv1.weight.mul_(2e4)
    told: list[tuple[str, str]] = []
    with torch.no_grad():
        pixels = guarded(network, lambda: network.decode(LATENTS), lambda *it: told.append(it), "autoencoder")
    assert bool(pixels.isfinite().all())
    assert told == [("decoder", "decoder")]
