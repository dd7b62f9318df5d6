"""Scaled dot-product attention, by the kernel that is fastest where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8 * 128 * 4096
"""Scores per block of queries: some 8 MB of bfloat16, which stay in the cache between the two products."""
KEPT = 1 << 26
"""Scores that a training step may keep: 128 MB of bfloat16 for one attention of a batch."""
FEW_KEYS = 256
"""With fewer keys (a prompt's 77), torch's kernel is as fast."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale * query key^T) value (Vaswani et al. 2017, equation 1).

    query (B, heads, T, D), key and value (B, heads, S, D); `mask` is bool, True where a key counts, and broadcasts to
    (B, heads, T, S); `scale` is D^-0.5 unless given. Returns (B, heads, T, D). Each picture's result is the same bits
    in any batch.

    On a CPU, torch's kernel is slow in bfloat16, so there blocks of queries are multiplied out. Where gradients are
    wanted, its backward is slower still, so all scores are kept while they are few (see `KEPT`).
    """
    if _trains(query, key, value) and query.device.type == "cpu" and query[..., 0].numel() * key.shape[2] <= KEPT:
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, -1, dtype=scores.dtype) @ value
    if mask is not None or not _blocks_pay(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scale is None else scale
    out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    for one, q, k, v in zip(out, query, key, value):
        _by_blocks(one, q.contiguous(), k, v.contiguous(), scale)
    return out


def _trains(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


def _blocks_pay(query: Tensor, key: Tensor, value: Tensor) -> bool:
    few = query.dtype != torch.bfloat16 or key.shape[2] < FEW_KEYS
    return query.device.type == "cpu" and not few and not _trains(query, key, value)


def _by_blocks(out: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    """One picture's attention into `out` (heads, T, D): query (heads, T, D); key, value (heads, S, D).

    bfloat16 scores would be as coarse as they are large, and the largest matter most. A constant per query leaves the
    softmax as it is, so each query's greatest score over a sample of the keys is taken off inside the product, whose
    sums are float32: the scores that matter are then near zero, where bfloat16 is fine.
    """
    heads, length, _ = query.shape
    keys = key.shape[1]
    rows = max(16, BLOCK // (heads * keys))
    sample = key[:, :: keys // FEW_KEYS].transpose(1, 2)
    key = torch.cat([key, key.new_ones(heads, keys, 1)], -1).transpose(1, 2)
    nothing = query.new_zeros(1)
    for start in range(0, length, rows):
        block = query[:, start : start + rows]
        top = torch.bmm(block, sample).amax(-1, keepdim=True)
        scores = torch.baddbmm(nothing, torch.cat([block, -top], -1), key, beta=0, alpha=scale)
        out[:, start : start + rows] = torch.bmm(torch.softmax(scores, -1), value)
