"""Weights that are kept in oneDNN's order: the same bits, whatever happens to the weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d, Linear, Upsample
from danqing.models.weights import twin
from danqing.runtime import packed
from danqing.runtime.packed import Kept, keep_packed

pytestmark = pytest.mark.skipif(not packed.AVAILABLE, reason="this torch has no such operations")


def kept(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, dtype: torch.dtype = torch.float32) -> Conv2d:
    torch.manual_seed(0)
    layer = Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2).to(dtype).requires_grad_(False)
    keep_packed(layer)
    assert hasattr(layer.weight, "kept")
    return layer


def packs(layer: Conv2d) -> Kept:
    return layer.weight.kept  # type: ignore[attr-defined, no-any-return]


def picture(*size: int) -> Tensor:
    return torch.randn(*size).contiguous(memory_format=torch.channels_last)  # as in the U-Net


def plain(layer: Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """With one, torch does not give 1x1 in float32 to oneDNN."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("c_in", "c_out", "kernel", "stride"), [(192, 320, 3, 1), (320, 640, 3, 2), (640, 320, 1, 1)])
def test_the_bits_are_torchs_own_at_any_size_and_from_call_to_call(
    dtype: torch.dtype, c_in: int, c_out: int, kernel: int, stride: int
) -> None:
    layer = kept(c_in, c_out, kernel, stride, dtype)
    for batch, height, width in ((1, 16, 16), (2, 8, 8), (1, 33, 20), (2, 5, 7), (3, 1, 1), (1, 16, 16)):
        x = picture(batch, c_in, height, width).to(dtype)
        assert torch.equal(layer(x), plain(layer, x)), (batch, height, width)
    assert packs(layer).weights


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_call_has_the_bits_of_the_third(threads: int) -> None:
    layer, x = kept(640, 320, 1), picture(1, 640, 8, 8)
    torch.set_num_threads(threads)
    first, *others = [layer(x) for _ in range(4)]
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, plain(layer, x))


def test_a_small_picture_has_the_bits_that_it_has_beside_another() -> None:
    layer, x = Conv2d(64, 32, 3, padding=1).requires_grad_(False), picture(2, 64, 8, 8)
    layers = layer, kept(64, 128)
    for each in layers:
        both = each(x)
        for _ in range(4):
            assert torch.equal(torch.cat([each(x[:1]), each(x[1:])]), both)


def test_who_paints_but_a_step_packs_nothing() -> None:
    layer = kept(64, 128)
    for _ in range(2):
        layer(picture(1, 64, 32, 32))
    assert not packs(layer).weights


def test_a_weight_that_changes_is_packed_again() -> None:
    layer, x = kept(64, 128), picture(2, 64, 16, 16)
    for _ in range(4):
        layer(x)
    (before,) = packs(layer).weights
    layer.weight.mul_(2)
    assert torch.equal(layer(x), plain(layer, x))
    assert packs(layer).weights[0] is not before
    layer.weight.data = layer.weight.data.clone() + 1
    assert torch.equal(layer(x), plain(layer, x))
    layer.to(torch.bfloat16)
    assert torch.equal(layer(x.bfloat16()), plain(layer, x.bfloat16()))


def test_what_is_kept_is_made_again_where_it_was_split_in_another_way() -> None:
    """The convolution of an upsampling, four of 2x2 for large pictures, and of 320 channels by tiles."""
    for layer, side in ((kept(352, 352), 8), (kept(320, 320), 16)):
        large, small = (picture(1, layer.in_channels, n, n) for n in (2 * side, 4))
        up = Upsample(layer.in_channels)
        up.conv = layer
        wanted = layer(large), up(large), layer(small), up(small)
        for _ in range(3):
            assert all(
                torch.equal(each(x), out)
                for (each, x), out in zip([(layer, large), (up, large), (layer, small), (up, small)], wanted)
            )


def test_a_twin_keeps_its_own_and_a_copy_nothing() -> None:
    layer, x = kept(64, 128), picture(2, 64, 16, 16)
    for _ in range(4):
        layer(x)
    other = twin(layer, {"weight": layer.weight * 3})
    for _ in range(4):
        assert torch.equal(other(x), plain(other, x))
    assert packs(other).weights[0] is not packs(layer).weights[0]
    assert not hasattr(copy.deepcopy(layer).weight, "kept")


def test_gradients_flow() -> None:
    layer, x = kept(64, 128), picture(2, 64, 16, 16).requires_grad_()
    for _ in range(4):
        layer(x).sum().backward()
    assert x.grad is not None
    assert not packs(layer).weights


@pytest.mark.parametrize(("room", "keeps"), [(1, [False, False]), (3, [True, False]), (5, [True, True])])
def test_convolutions_come_first_where_memory_is_little(
    monkeypatch: pytest.MonkeyPatch, room: int, keeps: list[bool]
) -> None:
    both = nn.Sequential(Linear(288, 256), Conv2d(64, 128, 3, padding=1))
    monkeypatch.setattr(packed, "available", lambda device: room * both[1].weight.nbytes)
    keep_packed(both)
    assert [hasattr(both[at].weight, "kept") for at in (1, 0)] == keeps
