import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.runtime.numerics import all_finite, converted, first_not_finite, guarded, in_float32


class Square(nn.Module):
    """Overflows float16 from 256 up, between its own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.a.weight.data = torch.eye(4)
        self.b.weight.data = torch.eye(4) * 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) ** 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Identity(), Square()), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _told() -> tuple[list[tuple[str, str]], Any]:
    told: list[tuple[str, str]] = []
    return told, lambda *what: told.append(what)


def test_what_is_finite_is_left_alone() -> None:
    net, x = Net(), torch.randn(2, 4)
    told, note = _told()
    assert torch.equal(guarded(net, lambda: net(x), note, "net"), net(x))
    assert told == []


def test_overflow_between_layers_is_the_surrounding_modules() -> None:
    net = Net().half()
    x = torch.full((1, 4), 1000.0, dtype=torch.float16)
    assert first_not_finite(net, lambda: net(x)) == ["", "blocks.0", "blocks.0.1"]
    told, note = _told()
    out = guarded(net, lambda: net(x), note, "net")
    assert told == [("blocks.0.1", "blocks.0.1")]
    reference = copy.deepcopy(net).float()
    assert out.dtype == torch.float16
    assert torch.allclose(out.float(), reference(x.float()), rtol=2e-3)
    assert all("forward" not in module.__dict__ for module in net.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())


def test_when_a_part_is_too_large_for_half_precision_the_whole_runs() -> None:
    net = Net().half()
    net.blocks[0][1].b.weight.fill_(1.0)
    net.blocks[1].weight.mul_(1e-3)
    x = torch.full((1, 4), 1000.0, dtype=torch.float16)
    told, note = _told()
    out = guarded(net, lambda: net(x), note, "net")
    assert told == [("blocks.0.1", "net")]
    assert out.isfinite().all()


def test_what_comes_in_broken_is_said() -> None:
    net = Net()
    with pytest.raises(DanqingError, match="net: what goes in is not finite"):
        guarded(net, lambda: net(torch.full((1, 4), float("nan"))), lambda *_: None, "net")


def test_what_float32_does_not_mend_is_said() -> None:
    net = Net().half()
    net.blocks[1].weight[0, 0] = float("inf")
    with pytest.raises(DanqingError, match=r"net: blocks\.1 is not finite, because its weight weight is not"):
        guarded(net, lambda: net(torch.ones(1, 4).half()), lambda *_: None, "net")
    net = Net()
    with pytest.raises(DanqingError, match=r"blocks\.0\.1 is not finite, even in float32"):
        guarded(net, lambda: net(torch.full((1, 4), 1e25)), lambda *_: None, "net")


def test_a_decode_that_overflows_is_saved_whole() -> None:
    """SDXL's autoencoder overflows float16: its residual stream itself is too large."""
    net = Autoencoder(AutoencoderConfig(channels=(16, 32), layers=1, groups=8)).eval()
    net.decoder.mid_block.resnets[0].conv2.weight.mul_(1e6)
    half = copy.deepcopy(net).half()
    half.decoder.mid_block.resnets[0].conv2.weight.copy_(
        half.decoder.mid_block.resnets[0].conv2.weight.clamp(-6e4, 6e4)
    )
    net.load_state_dict(half.state_dict())
    latents = torch.randn(1, 4, 4, 4)
    told, note = _told()
    out = guarded(half, lambda: half.decode(latents.half()), note, "autoencoder")
    assert told[0][1] == "decoder"
    assert told[0][0].startswith("decoder.mid_block.resnets.0")
    assert torch.allclose(out.float(), net.decode(latents), atol=2e-2)


def test_all_finite_looks_into_everything() -> None:
    @dataclass
    class Output:
        hidden: Tensor
        others: tuple[Tensor, ...] = ()

    good, bad = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert all_finite([good, {"a": good}, Output(good, (good,)), None, 3, torch.tensor([1])])
    for value in (bad, [bad], {"a": (bad,)}, Output(good, (bad,))):
        assert not all_finite(value)


def test_a_copy_shares_what_is_not_changed() -> None:
    net = nn.BatchNorm1d(4)
    same = converted(net, lambda t: t)
    assert same.weight is net.weight
    assert same.running_mean is net.running_mean
    other = converted(net, lambda t: t.double() if t.is_floating_point() else t)
    assert other.weight.dtype == torch.float64
    assert net.weight.dtype == torch.float32


def test_in_float32_ends_also_when_the_run_fails() -> None:
    net = nn.Linear(2, 2).half()
    with in_float32(net):
        assert net(torch.ones(1, 2).half()).dtype == torch.float16
        with pytest.raises(RuntimeError):
            net(torch.ones(1, 3).half())
    with pytest.raises(ZeroDivisionError), in_float32(net):
        _ = 1 / 0
    assert "forward" not in net.__dict__
