"""Linear layers by oneDNN against the formula in double precision."""

import pytest
import torch
import torch.nn.functional as F

from danqing.models.layers import Linear
from danqing.runtime import dense
from danqing.runtime.packed import Kept

TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])


def given(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("rows", [3, 200])
@TYPES
def test_linear(rows: int, dtype: torch.dtype, bound: float) -> None:
    x, weight, bias = given(dtype, 2, rows, 96), given(dtype, 384, 96), given(dtype, 384)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert gap(dense.linear(x, weight, bias), exact) < bound
    assert gap(dense.linear(x, weight[:, :, None, None], bias), exact) < bound
    turned = x.transpose(0, 1)
    assert gap(dense.linear(turned, weight, None), F.linear(turned.double(), weight.double())) < bound


def feed_forward(dtype: torch.dtype) -> tuple[Linear, Linear]:
    torch.manual_seed(0)
    return tuple(Linear(*size).to(dtype).requires_grad_(False) for size in ((96, 512), (256, 96)))  # type: ignore[return-value]


@pytest.mark.parametrize("rows", [70, 700])
@TYPES
def test_gated_feed_forward(rows: int, dtype: torch.dtype, bound: float) -> None:
    x, (inner, outer) = given(dtype, 2, rows, 96), feed_forward(dtype)
    for layer in (inner, outer):
        layer.weight.kept = Kept()  # type: ignore[attr-defined]
    first, *others = [dense.gated_feed_forward(x, inner, outer) for _ in range(4)]
    assert first is not None
    assert all(other is not None and torch.equal(first, other) for other in others)
    assert [len(layer.weight.kept.weights) for layer in (inner, outer)] == [2, 1]  # type: ignore[union-attr]
    hidden, gate = F.linear(x.double(), inner.weight.double(), inner.bias.double()).chunk(2, -1)
    wanted = F.linear(hidden * F.gelu(gate), outer.weight.double(), outer.bias.double())
    assert first.shape == x.shape
    assert gap(first, wanted) < bound


def test_few_vectors_and_gradients_are_left_to_the_layers() -> None:
    inner, outer = feed_forward(torch.float32)
    assert dense.gated_feed_forward(given(torch.float32, 1, 7, 96), inner, outer) is None
    outer.weight.requires_grad_()
    assert dense.gated_feed_forward(given(torch.float32, 1, 99, 96), inner, outer) is None


def test_gradients_pass() -> None:
    x, weight, bias = given(torch.float32, 100, 96), given(torch.float32, 512, 96), given(torch.float32, 512)
    weight.requires_grad_()
    assert dense.linear(x, weight, bias).requires_grad


@pytest.mark.parametrize("size", [(384, 96), (384, 96, 1, 1)])
def test_a_kept_weight_gives_the_same_bits(size: tuple[int, ...]) -> None:
    weight, bias = given(torch.bfloat16, *size), given(torch.bfloat16, 384)
    weight.kept = Kept()  # type: ignore[attr-defined]
    for rows in (100, 64, 77, 1024):
        x = given(torch.bfloat16, rows, 96)
        wanted = dense.linear(x, weight.clone(), bias)
        for _ in range(4):
            assert torch.equal(dense.linear(x, weight, bias), wanted)
    assert len(weight.kept.weights) == 1  # type: ignore[attr-defined]


def test_a_recorded_network_has_torchs_operations() -> None:
    weight = given(torch.float32, 384, 96)
    recorded = torch.jit.trace(lambda x: dense.linear(x, weight, None), (given(torch.float32, 100, 96),))
    assert "mkldnn" not in str(recorded.graph)
