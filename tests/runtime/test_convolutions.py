"""Nearest neighbours and a 3x3 convolution in four ninths of its products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.models.layers import Upsample
from danqing.models.seamless import seamless
from danqing.runtime import packed
from danqing.runtime.convolutions import FEW_PIXELS, FEW_WEIGHTS, folded, upsampled
from danqing.runtime.packed import keep_packed

CHANNELS = 352
SIDE = 16
assert CHANNELS * CHANNELS * 9 >= FEW_WEIGHTS
assert SIDE * SIDE >= FEW_PIXELS
pytestmark = pytest.mark.skipif(not packed.AVAILABLE, reason="this torch has no such operations")


def layer(dtype: torch.dtype = torch.float32, channels: int = CHANNELS) -> Upsample:
    torch.manual_seed(0)
    return Upsample(channels).to(dtype).requires_grad_(False)


def picture(batch: int = 1, height: int = SIDE, width: int = SIDE, channels: int = CHANNELS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator).contiguous(
        memory_format=torch.channels_last
    )


def plain(up: Upsample, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), up.conv.weight, up.conv.bias, padding=1)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("size", [(1, 16, 16), (2, 17, 20)])
def test_it_is_the_plain_way(dtype: torch.dtype, bound: float, size: tuple[int, int, int]) -> None:
    up, x = layer(dtype), picture(*size).to(dtype)
    found = upsampled(up.conv, x)
    assert found is not None
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(up(x), found)
    assert off(found, plain(up, x)) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_stay_from_call_to_call_and_beside_another_picture(dtype: torch.dtype) -> None:
    up, other, both = layer(dtype), layer(dtype), picture(2).to(dtype)
    keep_packed(up)
    first, *others = [up(both) for _ in range(4)]
    assert len(up.conv.weight.kept.weights) == 4  # type: ignore[union-attr]
    assert all(torch.equal(first, again) for again in others)
    assert torch.equal(first, other(both))
    assert torch.equal(first, torch.cat([up(both[:1]), up(both[1:])]))


def test_a_changed_weight_is_split_anew() -> None:
    up, x = layer(), picture()
    keep_packed(up)
    for _ in range(4):
        up(x)
    up.conv.weight.mul_(2)
    assert off(up(x), plain(up, x)) < 1e-5


def test_the_weights_parts_add_up() -> None:
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    assert [part.flatten().tolist() for part in folded(weight)] == [
        # 0 | 1 + 2 before the middle of a value that stands twice, 0 + 1 | 2 after it; rows, then columns
        [0, 1 + 2, 3 + 6, 4 + 5 + 7 + 8],
        [0 + 1, 2, 3 + 4 + 6 + 7, 5 + 8],
        [0 + 3, 1 + 2 + 4 + 5, 6, 7 + 8],
        [0 + 1 + 3 + 4, 2 + 5, 6 + 7, 8],
    ]


def test_what_keeps_the_plain_way() -> None:
    up = layer()
    assert upsampled(up.conv, picture(1, 7, 8)) is None
    assert upsampled(up.conv, picture().contiguous()) is None
    assert upsampled(layer(channels=32).conv, picture(channels=32)) is None
    with torch.enable_grad():
        assert upsampled(up.conv, picture().requires_grad_(True)) is None


def test_borders_that_join_and_odd_sizes_are_kept() -> None:
    up, x = layer(), picture()
    around = seamless(up, "both")(x)
    rolled = seamless(up, "both")(x.roll(3, -1).contiguous(memory_format=torch.channels_last))
    assert off(rolled, around.roll(6, -1)) < 1e-5
    assert up(x, (31, 32)).shape[-2:] == (31, 32)
