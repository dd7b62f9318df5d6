"""The autoencoder's spaces, tiles and batches, without a reference."""

from dataclasses import replace

import pytest
import torch

from danqing.models.autoencoder import QUANTIZE_ROWS, Autoencoder, AutoencoderConfig, Posterior, Quantizer

SMALL = AutoencoderConfig(channels=(16, 32, 32), layers=1, groups=8)


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(SMALL).eval().requires_grad_(False)


def test_downscale() -> None:
    assert SMALL.downscale == 4
    assert AutoencoderConfig().downscale == 8


def test_posterior_is_in_model_space(network: Autoencoder) -> None:
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    raw = Autoencoder(replace(SMALL, scale=1.0))
    raw.load_state_dict(network.state_dict())
    other = Autoencoder(replace(SMALL, scale=0.5, mean=(1.0, 2.0, 3.0, 4.0), std=(2.0, 2.0, 4.0, 4.0)))
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        theirs, ours = raw.encode(pixels), other.encode(pixels)
    mean, std = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1), torch.tensor([2.0, 2, 4, 4]).view(1, 4, 1, 1)
    torch.testing.assert_close(ours.mode(), (theirs.mean - mean) / std * 0.5)
    noise = torch.randn(ours.mean.shape)
    torch.testing.assert_close(ours.sample(noise), (theirs.sample(noise) - mean) / std * 0.5)


def test_sample_is_mean_and_deviation() -> None:
    posterior = Posterior(torch.tensor([2.0]), torch.tensor([4.0]).log())
    assert posterior.sample(torch.tensor([3.0])).item() == pytest.approx(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Autoencoder(SMALL).to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    latents = torch.randn(5, 4, 20, 20)
    alone = torch.cat([network.decode(one) for one in latents.split(1)])
    # float32 convolutions take their kernel by the batch: to the last bits, not bit for bit
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(network.decode(latents), alone, **near)
    assert alone.dtype == torch.float32
    codes = torch.cat([network.encode(one).mode() for one in alone.split(1)])
    torch.testing.assert_close(network.encode(alone).mode(), codes, **near)


def test_tiles_of_one_value_blend_to_it(network: Autoencoder) -> None:
    """Where every tile says the same, seams cannot show: the weights sum to one everywhere."""
    flat = Autoencoder(SMALL)
    flat.load_state_dict(network.state_dict())
    torch.nn.init.zeros_(flat.decoder.conv_out.weight)
    torch.nn.init.constant_(flat.decoder.conv_out.bias, 0.25)
    with torch.no_grad():
        tiled = flat.decode_tiled(torch.randn(1, 4, 37, 23), tile=16, overlap=5)
    assert tiled.shape == (1, 3, 148, 92)
    torch.testing.assert_close(tiled, torch.full_like(tiled, 0.25))


def local(network: Autoencoder) -> Autoencoder:
    """The same network but for attention and normalisation, which look farther than a tile."""
    other = Autoencoder(SMALL)
    other.load_state_dict(network.state_dict())
    for module in list(other.modules()):
        for name, child in module.named_children():
            if child.__class__.__name__ == "GroupNorm":
                setattr(module, name, torch.nn.Identity())
            if child.__class__.__name__ == "Attention":
                setattr(module, name, torch.nn.Identity())
    other.encoder.mid_block.attentions[0] = torch.nn.Identity()
    other.decoder.mid_block.attentions[0] = torch.nn.Identity()
    return other.requires_grad_(False)


def test_tiled_equals_whole_where_the_network_is_local(network: Autoencoder) -> None:
    only_local = local(network)
    latents = torch.randn(2, 4, 40, 36)
    whole = only_local.decode(latents)
    tiled = only_local.decode_tiled(latents, tile=32, overlap=28)
    # the picture's own edges, away from all seams
    torch.testing.assert_close(tiled[:, :, :8, :8], whole[:, :, :8, :8])
    assert (tiled - whole).norm() / whole.norm() < 0.02
    pixels = torch.rand(2, 3, 160, 144) * 2 - 1
    codes, tiled_codes = only_local.encode(pixels), only_local.encode_tiled(pixels, tile=32, overlap=28)
    assert (codes.mean - tiled_codes.mean).norm() / codes.mean.norm() < 0.02
    torch.testing.assert_close(tiled_codes.logvar[:, :, 0, 0], codes.logvar[:, :, 0, 0])


def test_one_tile_is_the_whole(network: Autoencoder) -> None:
    latents = torch.randn(1, 4, 12, 9)
    torch.testing.assert_close(network.decode_tiled(latents, tile=64, overlap=16), network.decode(latents))


def test_overlap_must_be_less_than_the_tile(network: Autoencoder) -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        network.decode_tiled(torch.randn(1, 4, 8, 8), tile=4, overlap=4)


def test_trains() -> None:
    network = Autoencoder(SMALL)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    posterior = network.encode(pixels)
    decoded = network.decode(posterior.sample(torch.randn(posterior.mean.shape)))
    (decoded.square().mean() + posterior.logvar.mean()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_codebook_rounds_each_cell_to_its_nearest_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = Quantizer(7, 3).requires_grad_(False)
    quantizer.embedding.weight.copy_(torch.randn(7, 3, generator=generator))
    numbers = torch.randint(7, (2, 30, QUANTIZE_ROWS // 20), generator=generator)
    exact = quantizer.embedding(numbers).permute(0, 3, 1, 2)
    assert torch.equal(quantizer(exact + 1e-3 * torch.randn(exact.shape, generator=generator)), exact)


def test_a_codebook_leaves_the_encoder_no_doubt() -> None:
    network = Autoencoder(replace(SMALL, latent_channels=3, codebook=5, scale=1.0)).requires_grad_(False)
    posterior = network.encode(torch.rand(1, 3, 16, 16))
    assert posterior.mean.shape == (1, 3, 4, 4)
    assert torch.equal(posterior.sample(torch.randn(1, 3, 4, 4)), posterior.mean)
    assert network.decode(posterior.mean).shape == (1, 3, 16, 16)
