"""Weights that are kept in the order in which oneDNN's kernels read them, on a CPU.

Without that every call puts them into that order: for a convolution of few pixels that takes as long as the convolution
itself. The products and their sums are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danqing.runtime import winograd
from danqing.runtime.memory import available

AVAILABLE = all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight", "_reorder_linear_weight")
)
SMALL = 1 << 16
"""Values: fewer are put in order in no time."""
LATE = 2
"""Calls before a weight is put in order, which takes about as long as one: who wants to see the first step need not wait."""
SHARE = 2
"""Weights are kept where so many times their memory is free."""


@dataclass(eq=False)
class Kept:
    """A weight in oneDNN's order, and what it was made of."""

    calls: int = 0
    """Without it so far."""
    made_of: tuple[Any, ...] = ()
    weights: Sequence[Tensor] = ()
    """One, or those that a layer's weight is split into."""


def keep_packed(network: nn.Module) -> None:
    """Let the network's convolutions and linear layers keep their weights in oneDNN's order, from their third call on a
    CPU on.

    That takes the weights' memory once more; where there is little, only the convolutions', to which it matters most,
    or nothing. A weight that is changed in its place is put in order again.
    """
    free, used = available("cpu"), 0
    for kind in (nn.Conv2d, nn.Linear):
        weights = [layer.weight for layer in network.modules() if isinstance(layer, kind)]
        weights = [weight for weight in weights if weight.numel() >= SMALL and weight.device.type == "cpu"]
        used += sum(winograd.changed_bytes(weight) for weight in weights)
        if AVAILABLE and (free is None or SHARE * used <= free):
            for weight in weights:
                weight.kept = Kept()  # type: ignore[attr-defined]


def keep_alike(new: Tensor, old: Tensor) -> None:
    """Keep `new`, which takes the place of `old` in a network, where that was kept."""
    if hasattr(old, "kept"):
        new.kept = Kept()  # type: ignore[attr-defined]


def _whole(weight: Tensor) -> list[Tensor]:
    return [weight]


def ordered(
    weight: Tensor,
    put_in_order: Callable[[Tensor], Tensor],
    split: Callable[[Tensor], Sequence[Tensor]] = _whole,
) -> Sequence[Tensor]:
    """The parts that `split` makes of a weight: put in oneDNN's order where the weight is kept, but for its first calls.

    Who asks for other parts of a weight than before names another function.
    """
    kept: Kept | None = getattr(weight, "kept", None)
    if kept is None:
        return split(weight)
    if kept.calls < LATE:
        kept.calls += 1
        return split(weight)
    made_of = split, weight.data_ptr(), weight._version, weight.dtype
    if not kept.weights or kept.made_of != made_of:
        kept.weights = ()
        kept.weights, kept.made_of = [put_in_order(part) for part in split(weight)], made_of
    return kept.weights
