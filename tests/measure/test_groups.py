from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danqing.measure.groups import GROUPS, REST, Count, bottleneck, count, group_of, spent
from danqing.measure.inputs import cost
from danqing.measure.works import Work
from danqing.models.layers import Conv2d
from danqing.runtime.attention import attention


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("ConvolutionBackward0", "convolution"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::bmm", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::addmm", "linear"),
        ("aten::mm", "linear"),
        ("aten::native_group_norm", "normalisation"),
        ("aten::cat", None),
        ("prims::convert_element_type", None),
    ],
)
def test_names_tell_groups(operation: str, group: str | None) -> None:
    assert group_of(operation) == group


def test_flops_and_bytes_are_counted_exactly() -> None:
    x = torch.empty(2, 3, 8, 8, device="meta")
    weight, matrix = torch.empty(5, 3, 3, 3, device="meta"), torch.empty(7, 8, device="meta")
    heads = torch.empty(2, 4, 16, 8, device="meta")

    def run() -> None:
        y = F.conv2d(x, weight, padding=1)
        F.linear(y.view(-1, 8), matrix)
        F.scaled_dot_product_attention(heads, heads, heads)
        y + y

    found = count(run)
    pixels = 2 * 8 * 8
    assert found.flops["convolution"] == 2 * pixels * 5 * 3 * 9
    assert found.flops["linear"] == 2 * (2 * 5 * 8) * 8 * 7
    assert found.flops["attention"] == 2 * (2 * 2 * 4 * 16 * 16 * 8)
    assert found.total == sum(found.flops.values())
    assert found.moved["convolution"] == 4 * (x.numel() + weight.numel() + 5 * pixels)
    assert found.moved[REST] == 4 * 2 * 5 * pixels, "the sum alone: attention's parts are attention's"


def test_a_step_of_stable_diffusion_is_what_it_is_known_to_be() -> None:
    found = cost(Work("step", "sd1", 512, 1, 20, "bfloat16", "cpu"))
    assert found.total == pytest.approx(1.606e12, rel=1e-3)
    assert found.flops["convolution"] / found.total == pytest.approx(0.52, abs=0.01)


@pytest.mark.parametrize("kind", ["decode", "picture", "train"])
def test_every_kind_has_its_cost(kind: str) -> None:
    one, two = (cost(Work(kind, "danqing", 64, batch, 3, "float32", "cpu")) for batch in (1, 2))  # type: ignore[arg-type]
    assert 1.5 < two.total / one.total <= 2, "but for the texts, twice as many pictures take twice as much"
    if kind == "train":
        row = cost(Work("step", "danqing", 64, 1, 3, "float32", "cpu")).total / 2
        assert 2 * row < one.total <= 3 * row, "backwards as much for the weights and, but for the text, the inputs"


def test_time_goes_to_the_groups() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(256, 8))
    seconds = spent(lambda: network(torch.zeros(1, 4, 8, 8)), "cpu")
    assert tuple(seconds) == GROUPS
    assert all(seconds[group] > 0 for group in ("convolution", "normalisation", "linear"))
    assert seconds["attention"] == 0


@torch.no_grad()
def test_what_is_within_an_operation_is_its_groups() -> None:
    """Attention and convolutions of our own are made of operations that are called linear layers."""
    heads = torch.randn(1, 2, 512, 16).bfloat16()
    convolution = Conv2d(256, 256, 3, padding=1)
    x = torch.randn(1, 256, 16, 16).contiguous(memory_format=torch.channels_last)
    for run, group in ((lambda: attention(heads, heads, heads), "attention"), (lambda: convolution(x), "convolution")):
        seconds = spent(run, "cpu")
        assert seconds[group] > 0
        assert seconds["linear"] == 0


def test_the_next_bottleneck_is_furthest_above_its_bound() -> None:
    needed = Count({**dict.fromkeys(GROUPS, 0), "convolution": 80, "attention": 10}, dict.fromkeys(GROUPS, 5))
    seconds = {**dict.fromkeys(GROUPS, 0.0), "convolution": 9.0, "attention": 4.0, REST: 1.0}
    found = bottleneck(seconds, needed, peak=10, bandwidth=10)
    assert found is not None
    assert (found.group, found.bound) == ("attention", 1.0)
    assert found.share == pytest.approx(3 / 14)
    assert bottleneck({**dict.fromkeys(GROUPS, 0.0), "convolution": 8.0}, needed, peak=10, bandwidth=10) is None
