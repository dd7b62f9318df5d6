"""Weights in eight bits: how far off they are, and what adapters make of them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from danqing.errors import DanqingError
from danqing.models.weights import WeightPatch, patched, twin
from danqing.runtime.eight_bits import FP8_FROM, round_linears, whole
from danqing.runtime.numerics import in_float32


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128, bias=False), nn.SiLU(), nn.Linear(128, 64)).bfloat16()


def rounded_by(how: str, device: str = "cpu") -> tuple[nn.Module, nn.Module, float]:
    """(the network, the same rounded, how far its answer is off: the error's norm over the answer's)."""
    pytest.importorskip("torchao")
    plain, rounded = network().to(device), network().to(device)
    round_linears(rounded, how)
    x = torch.randn(32, 64, device=device).bfloat16()
    with torch.no_grad():
        wanted, found = plain(x).float(), rounded(x).float()
    return plain, rounded, float((found - wanted).norm() / wanted.norm())


def test_rounded_weights_are_near_and_smaller() -> None:
    plain, rounded, off = rounded_by("int8-weights")
    assert 0 < off < 0.02
    weight = rounded[0].weight
    assert type(weight.data) is not torch.Tensor
    assert whole(weight).dtype == torch.bfloat16
    steps = plain[0].weight.float().abs().amax(1, keepdim=True) / 127
    assert ((whole(weight).float() - plain[0].weight.float()).abs() <= 0.6 * steps).all()


def test_adapters_change_what_is_rounded_and_come_off() -> None:
    pytest.importorskip("torchao")
    rounded = network()
    round_linears(rounded, "int8-weights")
    x = torch.randn(3, 64).bfloat16()
    before = rounded(x)
    patch = WeightPatch("unet", "0.weight", lambda weight, strength: weight + strength)
    new = patched(rounded[0].weight, [(patch, 0.5)])
    assert type(new) is torch.Tensor
    assert torch.equal(new, (whole(rounded[0].weight).float() + 0.5).bfloat16())
    assert not torch.equal(twin(rounded, {"0.weight": new})(x), before)
    assert torch.equal(rounded(x), before)


def test_a_part_of_it_runs_in_float32() -> None:
    pytest.importorskip("torchao")
    rounded = network()
    round_linears(rounded, "int8-weights")
    x = torch.randn(3, 64).bfloat16()
    before = rounded(x)
    with in_float32(rounded[0]):
        assert torch.allclose(rounded(x).float(), before.float(), atol=0.05)
    assert torch.equal(rounded(x), before)


def test_activations_in_eight_bits_are_near() -> None:
    assert 0 < rounded_by("int8")[2] < 0.03


def test_the_steps_embedding_stays_as_it_is() -> None:
    pytest.importorskip("torchao")
    net = nn.ModuleDict({"time_embedding": nn.Linear(64, 64), "to_q": nn.Linear(64, 64)}).bfloat16()
    round_linears(net, "int8")
    kinds = [type(layer.weight.data) for layer in net.values()]
    assert kinds[0] is torch.Tensor
    assert kinds[1] is not torch.Tensor


def test_fp8_is_for_gpus_that_have_it() -> None:
    with pytest.raises(DanqingError, match="choose int8-weights"):
        round_linears(network(), "fp8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp8_is_near() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < FP8_FROM:
        pytest.skip("needs a GPU that multiplies in fp8")
    assert 0 < rounded_by("fp8", "cuda")[2] < 0.08


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(DanqingError, match=r"install danqing\[torchao\]"):
        round_linears(network(), "int8")
