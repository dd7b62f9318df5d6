"""Convolutions on a CPU by oneDNN, with weights that are kept in the order its kernels read them.

Without that every call puts them into that order: with few pixels it takes as long as the convolution itself. The
products and their sums are the same, bit for bit.

torch gives convolutions to oneDNN as well, but some in float32 to kernels of its own, which add up in another order:
those of one small picture, and of 1x1 where there is one thread (`use_mkldnn` in its Convolution.cpp). Here all go one
way, so that a picture has its bits alone and beside others, and on the first call and the third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danqing.runtime.dense import by_onednn
from danqing.runtime.memory import available

_OPS = torch.ops.mkldnn
AVAILABLE = hasattr(_OPS, "_reorder_convolution_weight") and hasattr(_OPS, "_convolution_pointwise")
SMALL = 1 << 16
"""Values: fewer are put in order in no time."""
LATE = 2
"""Calls before a weight is put in order, which takes about as long as one: who wants to see the first step need not wait."""
SHARE = 4
"""A network's weights are kept where so many times their memory is free."""


@dataclass(eq=False)
class Kept:
    """A weight in oneDNN's order, and what it was made of."""

    calls: int = 0
    """Without it so far."""
    made_of: tuple[Any, ...] = ()
    weight: Tensor | None = None


def keep_packed(network: nn.Module) -> None:
    """Let the network's convolutions keep their weights in oneDNN's order, from their third call on a CPU on.

    That takes the weights' memory once more; where there is little, nothing is kept. A weight that is changed in its
    place is put in order again.
    """
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    weights = [weight for weight in weights if weight.numel() >= SMALL and weight.device.type == "cpu"]
    free = available("cpu")
    if AVAILABLE and (free is None or SHARE * sum(weight.nbytes for weight in weights) <= free):
        for weight in weights:
            weight.kept = Kept()  # type: ignore[attr-defined]


def keep_alike(new: Tensor, old: Tensor) -> None:
    """Keep `new`, which takes the place of `old` in a network, where that was kept."""
    if hasattr(old, "kept"):
        new.kept = Kept()  # type: ignore[attr-defined]


def convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The layer's convolution of x (B, C, H, W) -> (B, C', H', W'), both channels last.

    None where torch's own is as good: another device, another layout of x, gradients, padding by name, and bfloat16
    without a kept weight.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    if not AVAILABLE or not by_onednn(x, weight) or not isinstance(layer.padding, tuple):
        return None
    shape = layer.padding, layer.stride, layer.dilation, layer.groups
    kept: Kept | None = getattr(weight, "kept", None)
    used = weight if kept is None else _ordered(kept, weight, shape, x)
    if used is weight and x.dtype != torch.float32:
        return None
    return _OPS._convolution_pointwise(x, used, bias, *shape, "none", [], "")  # type: ignore[no-any-return]


def _ordered(kept: Kept, weight: Tensor, shape: tuple[Any, ...], x: Tensor) -> Tensor:
    """The weight in oneDNN's order; in the first calls `weight` itself."""
    if kept.calls < LATE:
        kept.calls += 1
        return weight
    made_of = weight.data_ptr(), weight._version, weight.dtype
    if kept.weight is None or kept.made_of != made_of:
        kept.weight = None
        kept.weight, kept.made_of = _OPS._reorder_convolution_weight(weight, *shape, list(x.shape)), made_of
    return kept.weight
