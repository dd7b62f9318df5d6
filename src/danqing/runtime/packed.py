"""Convolutions' weights in the order that oneDNN's kernels read them, kept from one call to the next.

Without that every call puts them into that order: with few pixels it takes as long as the convolution itself. The
products and their sums are the same, bit for bit.
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
FEW = 20480
"""Values of one picture that torch, in float32, convolves by kernels of its own, which add up in another order."""
SHARE = 4
"""A network's weights are kept where so many times their memory is free."""


@dataclass(eq=False)
class Kept:
    """A weight in oneDNN's order, and what it was made of."""

    called: bool = False
    made_of: tuple[Any, ...] = ()
    weight: Tensor | None = None


def keep_packed(network: nn.Module) -> None:
    """Let the network's convolutions keep their weights in oneDNN's order, from their second call on a CPU on.

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
    """The convolution of x (B, C, H, W) by a kept weight; None where it is not kept, or others compute."""
    kept: Kept | None = getattr(weight, "kept", None)
    if kept is None or not by_onednn(x, weight) or not isinstance(layer.padding, tuple):
        return None
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):  # torch has other kernels for those
        return None
    if x.dtype == torch.float32 and len(x) == 1 and x.numel() <= FEW:
        return None
    if not kept.called:  # who calls but once need not wait for it
        kept.called = True
        return None
    made_of = weight.data_ptr(), weight._version, weight.dtype
    shape = layer.padding, layer.stride, layer.dilation, layer.groups
    if kept.made_of != made_of:
        kept.made_of, kept.weight = (), None
        kept.weight = _OPS._reorder_convolution_weight(weight, *shape, list(x.shape))
        kept.made_of = made_of
    return _OPS._convolution_pointwise(x, kept.weight, bias, *shape, "none", [], "")  # type: ignore[no-any-return]
