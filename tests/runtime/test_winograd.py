"""3x3 convolutions by tiles: beside double precision, at any size, with the same bits wherever they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import danqing
from danqing.models.layers import Conv2d
from danqing.runtime import packed, winograd
from danqing.runtime.convolutions import convolution
from danqing.runtime.packed import Kept, keep_packed

needs_onednn = pytest.mark.skipif(not packed.AVAILABLE, reason="this torch has no such operations")


def layer(c_in: int = 256, c_out: int = 320, padding: int = 1, dtype: torch.dtype = torch.float32) -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(c_in, c_out, 3, padding=padding).to(dtype).requires_grad_(False)


def picture(batch: int, height: int, width: int, channels: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator).contiguous(
        memory_format=torch.channels_last
    )


def exact(conv: Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, padding=conv.padding)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("by", [winograd.FOUR, winograd.TWO])
def test_the_matrices_make_a_convolution(by: winograd.Way) -> None:
    tile, weight = torch.randn(by.side, by.side).double(), torch.randn(3, 3).double()
    made = by.to_pixels.double() @ ((by.of_tiles.double() @ tile.view(-1)) * (by.of_weights.double() @ weight.view(-1)))
    wanted = F.conv2d(tile[None, None], weight[None, None])[0, 0]
    torch.testing.assert_close(made.view(by.side - 2, -1), wanted, rtol=1e-5, atol=1e-5)  # thirds are rounded


@needs_onednn
@pytest.mark.parametrize("few", [winograd.MANY_WEIGHTS, 0])
@pytest.mark.parametrize(("batch", "height", "width", "padding"), [(1, 16, 16, 1), (2, 17, 22, 1), (1, 20, 19, 0)])
def test_float32_is_as_exact_as_plain_sums(
    batch: int, height: int, width: int, padding: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "MANY_WEIGHTS", few)
    conv, x = layer(padding=padding), picture(batch, height, width)
    found, wanted = convolution(conv, x, conv.weight, conv.bias), exact(conv, x)
    assert found is not None
    assert found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert off(found, wanted) < (2e-6 if few else 1e-6)
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.std())


@needs_onednn
def test_bfloat16_is_rounded_a_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = layer(dtype=torch.bfloat16), picture(2, 18, 16).bfloat16()
    wanted = exact(conv, x)
    assert 1e-3 < off(F.conv2d(x, conv.weight, conv.bias, padding=1), wanted) < off(conv(x), wanted) < 6e-3
    monkeypatch.setattr(winograd, "MANY_WEIGHTS", 0)
    assert convolution(conv, x, conv.weight, conv.bias) is None  # so many are not worth it for so few pixels
    larger = picture(1, 32, 16).bfloat16()
    assert 1e-3 < off(conv(larger), exact(conv, larger)) < 6e-3
    assert winograd.way(conv.weight) is winograd.TWO


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_stay_from_call_to_call_and_beside_another_picture(dtype: torch.dtype) -> None:
    conv, other, both = layer(dtype=dtype), layer(dtype=dtype), picture(2, 16, 20).to(dtype)
    keep_packed(conv)
    first, *others = [conv(both) for _ in range(4)]
    kept: Kept = conv.weight.kept  # type: ignore[assignment]
    assert len(kept.weights) == (16 if dtype == torch.bfloat16 else 36)
    assert all(torch.equal(first, again) for again in others)
    assert torch.equal(first, other(both))
    assert torch.equal(first, torch.cat([conv(both[:1]), conv(both[1:])]))
    conv.weight.mul_(2)
    assert off(conv(both), exact(conv, both)) < 1e-2


@needs_onednn
@pytest.mark.parametrize("band", [1, 36 * 4 * 320 * 5])
def test_bands_change_nothing(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = layer(), picture(3, 18, 16)
    wanted = conv(x)
    monkeypatch.setattr(winograd, "BAND", band)  # a row of tiles, a picture
    assert torch.equal(conv(x), wanted)


@needs_onednn
def test_without_a_bias() -> None:
    conv, x = layer(), picture(1, 16, 16)
    conv.bias = None
    assert off(conv(x), exact(conv, x)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_of_changed_weights_is_known(dtype: torch.dtype) -> None:
    weight = layer(dtype=dtype).weight
    assert winograd.changed_bytes(weight) == sum(part.nbytes for part in winograd.changed(weight))
    small = layer(64).weight
    assert winograd.changed_bytes(small) == small.nbytes


def test_what_keeps_the_plain_way() -> None:
    assert winograd.way(layer(128).weight) is None
    assert winograd.way(layer(dtype=torch.float16).weight) is None
    assert winograd.way(torch.empty(320, 256, 1, 1)) is None
    assert winograd.way(torch.empty(320, 256)) is None


@needs_onednn
@pytest.mark.parametrize(
    ("size", "shape", "by_tiles"),
    [
        (16, {}, True),
        (8, {}, False),
        (32, {"stride": 2}, False),
        (32, {"dilation": 2}, False),
        (32, {"groups": 4}, False),
    ],
)
def test_which_convolutions_go_by_tiles(
    size: int, shape: dict[str, int], by_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    convolved = winograd.convolved
    monkeypatch.setattr(winograd, "convolved", lambda *known: asked.append(known) or convolved(*known))
    conv = Conv2d(256, 256, 3, padding=1, **shape).requires_grad_(False)  # type: ignore[arg-type]
    x = picture(1, size, size)
    with torch.no_grad():
        wanted = F.conv2d(x, conv.weight, conv.bias, padding=1, **shape)
    torch.testing.assert_close(conv(x), wanted, rtol=1e-4, atol=1e-5)
    assert bool(asked) == by_tiles


@needs_onednn
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 40), ("float32", 80)])
def test_a_whole_picture_is_the_plain_ways(dtype: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal to noise in decibels; the bundled model's convolutions are small, so here they count as large."""
    made, model = [], danqing.load(dtype=dtype, device="cpu")
    for few in (256, 64):
        monkeypatch.setattr(winograd, "FEW_CHANNELS", few)
        monkeypatch.setattr(winograd, "FEW_PIXELS", 16)
        (picture,) = danqing.paint("a red apple, 3d style", model, seed=1, steps=6)
        made.append(np.asarray(picture.image, dtype=np.float64))
    error = float(((made[0] - made[1]) ** 2).mean())
    assert 0 < error < 255**2 / 10 ** (least / 10)
