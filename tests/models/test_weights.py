"""Twins share all but what is replaced, and patches leave the base as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from danqing.models.weights import WeightPatch, patched, twin


def _network() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    return nn.Sequential(inner, nn.ReLU(), nn.Linear(6, 3, bias=False))


def _patch(change: object, part: slice | None = None) -> WeightPatch:
    return WeightPatch("unet", "0.0.weight", change, part)  # type: ignore[arg-type]


def test_a_twin_shares_everything_but_what_is_replaced() -> None:
    base = _network().eval()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    other = twin(base, {"0.0.weight": torch.ones(6, 4)})
    x = torch.randn(2, 4)
    assert torch.equal(other[0][0].weight, torch.ones(6, 4))
    assert not torch.equal(other(x), base(x))
    for name, parameter in other.named_parameters():
        assert (parameter is base.get_parameter(name)) == (name != "0.0.weight")
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert {id(module) for module in base.modules()}.isdisjoint(id(module) for module in other.modules())
    assert list(other.state_dict()) == list(base.state_dict())
    assert not other.training


def test_a_twin_of_a_twin_and_a_hook_on_one_of_them() -> None:
    base = _network()
    second = twin(twin(base, {"0.0.weight": torch.ones(6, 4)}), {"2.weight": torch.zeros(3, 6)})
    assert torch.equal(second[0][0].weight, torch.ones(6, 4))
    second[2] = nn.Identity()
    assert isinstance(base[2], nn.Linear)


def test_a_module_used_twice_stays_one() -> None:
    layer = nn.Linear(3, 3)
    other = twin(nn.ModuleList([layer, layer]), {"0.weight": torch.zeros(3, 3)})
    assert other[0] is other[1]


@pytest.mark.parametrize(("name", "shape"), [("0.0.nothing", (6, 4)), ("0.0.weight", (4, 6)), ("2.bias", (3,))])
def test_a_twin_refuses_what_has_no_place(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=name):
        twin(_network(), {name: torch.zeros(shape)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_patches_are_added_up_in_float32_and_keep_type_and_strides(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 4, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    before = weight.clone()
    add = _patch(lambda w, s: w + s * 0.001)
    out = patched(weight, [(add, 1.0)] * 100)
    assert out.dtype == dtype
    assert out.stride() == weight.stride()
    assert torch.equal(weight, before)
    wanted = weight.float()
    for _ in range(100):
        wanted = wanted + 0.001
    assert torch.equal(out, wanted.to(dtype))


def test_a_patch_of_some_rows() -> None:
    weight = torch.zeros(6, 4)
    out = patched(weight, [(_patch(lambda w, s: w + s, slice(2, 4)), 2.0)])
    assert out.sum(1).tolist() == [0, 0, 8, 8, 0, 0]
    assert not weight.any()


def test_no_strength_is_no_change() -> None:
    def never(weight: Tensor, strength: float) -> Tensor:
        raise AssertionError

    weight = torch.randn(3, 3)
    assert torch.equal(patched(weight, [(_patch(never), 0.0)]), weight)


def test_a_patch_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.weight"):
        patched(torch.zeros(2, 3), [(_patch(lambda w, s: w.T), 1.0)])
