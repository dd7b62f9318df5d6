import pytest
import torch
from torch import Tensor, nn

from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.layers import Conv2d, ResBlock
from danqing.models.seamless import seamless
from danqing.models.unet import UNet, UNetConfig

SMALL = UNetConfig(
    channels=(16, 32),
    down_depth=((0, 1), (1, 0)),
    up_depth=((1, 0, 0), (0, 1, 0)),
    heads=(2, 4),
    context_width=12,
    groups=8,
)
VAE = AutoencoderConfig(channels=(16, 32), layers=1, groups=8)
DIMS = {"x": (-1,), "y": (-2,), "both": (-2, -1)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _roll(x: Tensor, count: int, axes: str) -> Tensor:
    dims = DIMS[axes]
    return x.roll([count] * len(dims), dims)


@pytest.mark.parametrize("axes", ["x", "y", "both"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_stride_free_net_rolls_with_its_input(axes: str, channels_last: bool) -> None:
    net = nn.Sequential(Conv2d(4, 8, 3, padding=1), ResBlock(8, 16, 4, 1e-5), Conv2d(16, 4, 3, padding=1)).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    wrapped = seamless(net, axes)
    with torch.no_grad():
        expected, plain = wrapped(x), net(x)
        for count in (1, 3):
            assert torch.allclose(wrapped(_roll(x, count, axes)), _roll(expected, count, axes), atol=1e-12)
        assert not torch.allclose(net(_roll(x, 1, axes)), _roll(plain, 1, axes), atol=1e-3)
        other = {"x": "y", "y": "x"}.get(axes)
        if other:
            assert not torch.allclose(wrapped(_roll(x, 1, other)), _roll(expected, 1, other), atol=1e-3)
        # far from every edge nothing has changed but the normalisation's sums
        convolution = seamless(net[0], axes)
        assert torch.allclose(convolution(x)[..., 1:-1, 1:-1], net[0](x)[..., 1:-1, 1:-1], atol=1e-12)


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_the_unet_rolls_by_its_coarsest_cell(axes: str) -> None:
    net = UNet(SMALL).double().eval()
    wrapped = seamless(net, axes)
    x, t, context = torch.randn(1, 4, 8, 12).double(), torch.tensor([500.0]), torch.randn(1, 5, 12).double()
    with torch.no_grad():
        expected = wrapped(x, t, context)
        rolled = wrapped(_roll(x, 2, axes), t, context)
        assert torch.allclose(rolled, _roll(expected, 2, axes), atol=1e-9)
        assert not torch.allclose(net(_roll(x, 2, axes), t, context), _roll(net(x, t, context), 2, axes), atol=1e-4)


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_the_autoencoder_rolls_both_ways(axes: str) -> None:
    net = Autoencoder(VAE).eval()
    wrapped = seamless(net, axes)
    pixels, latents = torch.rand(1, 3, 16, 12) * 2 - 1, torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        moments, decoded = wrapped.encode(pixels).mean, wrapped.decode(latents)
        assert torch.allclose(wrapped.encode(_roll(pixels, 4, axes)).mean, _roll(moments, 2, axes), atol=1e-5)
        assert torch.allclose(wrapped.decode(_roll(latents, 3, axes)), _roll(decoded, 6, axes), atol=1e-5)
        assert not torch.allclose(net.decode(_roll(latents, 3, axes)), _roll(net.decode(latents), 6, axes), atol=1e-3)


def test_the_seam_of_a_decode_is_as_smooth_as_the_rest() -> None:
    net = Autoencoder(VAE).eval()
    with torch.no_grad():
        pixels = seamless(net, "x").decode(torch.zeros(1, 4, 6, 10) + torch.randn(1, 4, 6, 1))
    # equal columns in, equal columns out: across the seam too
    assert float((pixels[..., :1] - pixels).abs().max()) < 1e-5


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_a_decode_in_tiles_has_no_seam_either(axes: str) -> None:
    wrapped = seamless(Autoencoder(VAE).eval(), axes)
    latents = torch.randn(1, 4, 24, 24)
    with torch.no_grad():
        whole, tiled = wrapped.decode(latents), wrapped.decode_tiled(latents, tile=16, overlap=8)
        # tiles that wrap around within themselves, as they would if the picture were not continued
        blind = Autoencoder.decode_tiled(wrapped, latents, tile=16, overlap=8)
    assert tiled.shape == whole.shape
    for dim in DIMS[axes]:
        edge = whole.shape[dim] - 1

        def error(pixels: Tensor, at: int, dim: int = dim) -> float:
            return float((pixels - whole).select(dim, at).abs().mean())

        middle = sum(error(tiled, at) for at in range(16, 32)) / 16
        for at in (0, edge):
            assert error(tiled, at) < 2 * middle
            assert error(blind, at) > 2 * error(tiled, at)


def test_tensors_are_shared_and_the_original_stays() -> None:
    net = UNet(SMALL).eval()
    before = {name: type(module) for name, module in net.named_modules()}
    wrapped = seamless(net, "both")
    for (name, ours), (other, theirs) in zip(net.named_parameters(), wrapped.named_parameters()):
        assert name == other
        assert ours is theirs
    assert {name: type(module) for name, module in net.named_modules()} == before
    assert isinstance(wrapped, UNet)
