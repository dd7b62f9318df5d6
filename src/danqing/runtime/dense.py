"""Linear layers on a CPU by oneDNN's kernels, with what follows them done before a sum leaves the registers.

torch gives float32 linear layers to MKL, which is slow on processors that are not Intel's: on an AMD EPYC oneDNN takes
0.8 to 0.9 of its time, with a gate 0.7 to 0.8; in bfloat16 it is as fast, with a gate 0.8 to 0.9. Weights that are kept
in its order (`packed`) save another twentieth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from danqing.runtime import packed

_OPS = torch.ops.mkldnn
AVAILABLE = bool(torch.backends.mkldnn.is_available()) and hasattr(_OPS, "_linear_pointwise")  # type: ignore[no-untyped-call]
FEW_ROWS = 64
"""Fewer vectors than that are not worth it: a prompt's, a step's embedding."""
FEED_FORWARD_ROWS = 1024
"""Vectors at a time, for the caches would not fit what is eight times as wide."""


def by_onednn(x: Tensor, *others: Tensor) -> bool:
    """Whether oneDNN's own operations may take x: on a CPU, in a type they know, where no gradient is wanted and nobody
    records the operations for another engine."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if any(is_traceable_wrapper_subclass(other) for other in others):  # weights in eight bits
        return False
    return (
        AVAILABLE
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and all(other.dtype == x.dtype for other in others)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others)))
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b: x (..., C), weight (C', C) or that of a 1x1 convolution (C', C, 1, 1), bias (C',) -> (..., C')."""
    if not _pays(x, weight):
        return F.linear(x, weight.flatten(1), bias)
    (used,) = packed.ordered(weight, _into_order(x), _flat)
    return _OPS._linear_pointwise(x.contiguous(), used, bias, "none", [], "")  # type: ignore[no-any-return]


def gated_feed_forward(x: Tensor, inner: nn.Linear, outer: nn.Linear) -> Tensor | None:
    """outer(h * GELU(g)), h and g the halves of inner(x) (Shazeer 2020): x (..., C) -> (..., C').

    None where the layers' own way is as good: another device or type, gradients, few vectors.
    """
    if not _pays(x, inner.weight) or not by_onednn(x, outer.weight):
        return None
    rows = x.reshape(-1, x.shape[-1])
    parts = torch.split(rows, FEED_FORWARD_ROWS)
    first, second = packed.ordered(inner.weight, _into_order(parts[0]), _halves)
    (third,) = packed.ordered(outer.weight, _into_order(parts[0]))
    b, c = inner.bias.chunk(2)
    done = []
    for part in parts:
        gate = _OPS._linear_pointwise(part, second, c, "gelu", [], "none")
        hidden = _OPS._linear_pointwise.binary(part, gate, first, b, "mul")
        done.append(_OPS._linear_pointwise(hidden, third, outer.bias, "none", [], ""))
    return torch.cat(done).view(*x.shape[:-1], -1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return by_onednn(x, weight) and x.numel() >= FEW_ROWS * x.shape[-1]


def _halves(weight: Tensor) -> Sequence[Tensor]:
    return weight.chunk(2)


def _flat(weight: Tensor) -> list[Tensor]:
    return [weight.flatten(1)]


def _into_order(x: Tensor) -> Callable[[Tensor], Tensor]:
    rows = x.numel() // x.shape[-1]
    return lambda weight: _OPS._reorder_linear_weight(weight, rows)
