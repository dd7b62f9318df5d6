"""Linear layers on a CPU by oneDNN's kernels, with what follows them done before a sum leaves the registers.

torch gives float32 linear layers to MKL, which is slow on processors that are not Intel's: on an AMD EPYC oneDNN takes
0.8 to 0.9 of its time, with a gate 0.7 to 0.8; in bfloat16 it is as fast, with a gate 0.8 to 0.9.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_OPS = torch.ops.mkldnn
AVAILABLE = bool(torch.backends.mkldnn.is_available()) and hasattr(_OPS, "_linear_pointwise")  # type: ignore[no-untyped-call]
FEW_ROWS = 64
"""Fewer vectors than that are not worth it: a prompt's, a step's embedding."""


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
    if weight.dim() > 2:
        weight = weight.flatten(1)
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    return _OPS._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer (2 C', C) whose first half is multiplied by GELU of its second: x (..., C) -> (..., C')."""
    if not _pays(x, weight):
        hidden, gate = F.linear(x, weight, bias).chunk(2, -1)
        return hidden * F.gelu(gate)
    (first, second), (b, c) = weight.chunk(2), bias.chunk(2)
    gate = _OPS._linear_pointwise(x, second, c, "gelu", [], "none")
    return _OPS._linear_pointwise.binary(x, gate, first, b, "mul")  # type: ignore[no-any-return]


def _pays(x: Tensor, weight: Tensor) -> bool:
    return x.numel() >= FEW_ROWS * x.shape[-1] and by_onednn(x, weight)
