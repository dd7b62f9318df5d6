"""Linear layers by oneDNN against the formula in double precision."""

import pytest
import torch
import torch.nn.functional as F

from danqing.runtime import dense

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


@pytest.mark.parametrize("rows", [3, 200])
@TYPES
def test_gated(rows: int, dtype: torch.dtype, bound: float) -> None:
    x, weight, bias = given(dtype, 2, rows, 96), given(dtype, 512, 96), given(dtype, 512)
    hidden, gate = F.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    assert gap(dense.gated(x, weight, bias), hidden * F.gelu(gate)) < bound


def test_gradients_pass() -> None:
    x, weight, bias = given(torch.float32, 100, 96), given(torch.float32, 512, 96), given(torch.float32, 512)
    weight.requires_grad_()
    assert dense.linear(x, weight, bias).requires_grad
    assert dense.gated(x, weight, bias).requires_grad


def test_a_recorded_network_has_torchs_operations() -> None:
    weight = given(torch.float32, 384, 96)
    recorded = torch.jit.trace(lambda x: dense.linear(x, weight, None), (given(torch.float32, 100, 96),))
    assert "mkldnn" not in str(recorded.graph)
