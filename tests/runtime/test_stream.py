from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danqing.models.weights import WeightPatch, patched, patched_anew, twin
from danqing.runtime import stream as streaming
from danqing.runtime.memory import weight_bytes
from danqing.runtime.numerics import converted, guarded
from danqing.runtime.stream import Streamed, filler, is_streamed, slot_bytes, stream, units, whole


class Part(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).tanh())  # type: ignore[no-any-return]


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part() for _ in range(4))
        self.end = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.end(x)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "UNIT", 150)
    monkeypatch.setattr(streaming, "SMALL", 20)


def pair(source: torch.dtype = torch.float16, staged: bool = False) -> tuple[Whole, Whole, list[str]]:
    """A network, the same with weights that come and go, and a record of what was read."""
    torch.manual_seed(0)
    plain, other = Whole().bfloat16().requires_grad_(False), Whole()
    read: list[str] = []

    def reader(name: str, weight: Tensor) -> Callable[[], Tensor]:
        def load() -> Tensor:
            read.append(name)
            return weight.to(source)

        return load

    state = {}
    for name, weight in plain.state_dict().items():
        weight.copy_(weight.to(source))
        here = name.startswith("end")
        state[name] = weight if here else Streamed.of(filler(reader(name, weight)), weight.shape, weight.dtype, "cpu")
    other.load_state_dict(state, assign=True)
    stream(other, "cpu", staged)
    return plain, other, read


X = torch.linspace(-1, 1, 24).view(3, 8).bfloat16()


def test_the_units_are_the_largest_parts_that_are_called() -> None:
    assert [name for name, _ in units(Whole())] == ["parts.0", "parts.1", "parts.2", "parts.3"]
    assert slot_bytes(Whole(), torch.bfloat16) == 2 * 144 * 2


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("source", [torch.float16, torch.float32, torch.bfloat16])
def test_the_same_bits_and_nothing_left_behind(source: torch.dtype, staged: bool) -> None:
    plain, other, read = pair(source, staged)
    for _ in range(3):
        assert torch.equal(other(X), plain(X))
    assert len(read) == 3 * 16
    assert is_streamed(other)
    assert weight_bytes(other) == 18 * 2
    assert all(w.isnan().all() and w.untyped_storage().nbytes() == 2 for w in other.parts.parameters())
    assert torch.equal(whole(other.parts[1].first.weight), plain.parts[1].first.weight)
    assert next(other.parameters()).dtype == torch.bfloat16


def test_the_next_part_comes_while_one_computes() -> None:
    _, other, read = pair()
    other(X)
    seen: list[int] = []
    for part in other.parts:
        part.register_forward_hook(lambda *_: seen.append(len(read)))
    read.clear()
    hook = other.parts[0].register_forward_pre_hook(lambda *_: _settled(read, 8))
    other(X)
    hook.remove()
    assert seen[0] == 8  # its own four and the next one's


def _settled(read: list[str], count: int) -> None:
    for _ in range(1000):
        if len(read) >= count:
            return
        torch.zeros(1000).sort()
    raise AssertionError("the next part did not come")


def test_a_part_that_fails_leaves_nothing_behind_and_other_orders_are_learnt() -> None:
    plain, other, _ = pair()
    other(X)
    fail = other.parts[2].register_forward_pre_hook(_fails)
    with pytest.raises(RuntimeError, match="here"):
        other(X)
    fail.remove()
    assert all(bool(w.isnan().all()) for w in other.parts.parameters())
    for network in (plain, other):
        network.parts = nn.ModuleList([network.parts[i] for i in (2, 0, 0, 3)])
    for _ in range(2):
        assert torch.equal(other(X), plain(X))


def _fails(*_: Any) -> None:
    raise RuntimeError("here")


def test_twins_and_copies_stream_too_and_patches_hold_in_them() -> None:
    plain, other, _ = pair()
    name = "parts.1.first.weight"
    change = [(WeightPatch("unet", name, lambda weight, strength: weight + strength), 0.25)]
    weight = other.get_parameter(name)
    assert isinstance(weight, Streamed)
    ours = twin(other, {name: patched_anew(weight, change)})
    theirs = twin(plain, {name: patched(plain.get_parameter(name), change)})
    assert torch.equal(ours(X), theirs(X))
    assert torch.equal(other(X), plain(X))
    copy = converted(other, lambda tensor: tensor)
    assert torch.equal(copy(X), plain(X))
    assert weight_bytes(ours, copy) == 18 * 2


class Narrow(nn.Linear):
    """Overflows unless it runs in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dtype == torch.float32 else x * torch.inf


def test_what_is_not_finite_is_named_and_runs_in_float32() -> None:
    plain, other, _ = pair()
    told: list[tuple[str, str]] = []
    for network in (plain, other):
        network.parts[1].second.__class__ = Narrow
    expected, got = (
        guarded(net, lambda net=net: net(X), lambda *it: told.append(it), "U-Net") for net in (plain, other)
    )
    assert torch.equal(got, expected)
    assert told == [("parts.1.second", "parts.1.second")] * 2
