"""Scaled dot-product attention, by the kernel that is fastest where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.runtime.dense import by_onednn

ROWS = 512
"""Queries at a time, at least: by 256 they take 1.05 to 1.25 times as long."""
SCORES = 1 << 21
"""Where keys are few, as many queries at a time as have so many scores: 4 MB, which stay in the cache between the two
products."""
MANY = 512
"""From so many keys and queries on, blocks of queries take 0.6 to 0.8 of the time of torch's kernel."""
SAMPLE = 16
"""One of so many keys is in the sample of which a query's greatest score is guessed."""
MARGIN = 40.0
"""How far under zero that greatest score is put. Scores that exceed the guess by less than 30 are as good as exact, and
what is left out is less than exp(-47) of the greatest."""
KEPT = 1 << 26
"""Scores that a training step may keep: 128 MB of bfloat16 for one attention of a batch."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale * query key^T) value (Vaswani et al. 2017, equation 1).

    query (B, heads, T, D), key and value (B, heads, S, D); `mask` is bool, True where a key counts, and broadcasts to
    (B, heads, T, S); `scale` is D^-0.5 unless given. Returns (B, heads, T, D). Each picture's result is the same bits
    in any batch.

    On a CPU torch's kernel is slow in bfloat16 where there are many keys, so there blocks of queries are multiplied
    out. Where gradients are wanted, its backward is slower still, so all scores are kept while they are few (`KEPT`).
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
        with torch.profiler.record_function("attention by blocks"):  # its parts are called linear layers
            _by_blocks(one, q, k, v, scale)
    return out


def _trains(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


def _blocks_pay(query: Tensor, key: Tensor, value: Tensor) -> bool:
    fits = query.dtype == torch.bfloat16 and min(key.shape[2], query.shape[2]) >= MANY
    return fits and by_onednn(query, key, value)


def _by_blocks(out: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    """One picture's attention into `out` (heads, T, D): query (heads, T, D); key, value (heads, S, D).

    The softmax takes no pass over the scores of its own. A constant per query leaves it as it is, so each query's
    greatest score, guessed from a sample of the keys, and `MARGIN` are taken off inside the first product, by a column
    more: now all scores are far below zero, where exp(x) is sigmoid(x) = exp(x) / (1 + exp(x)), which oneDNN applies to
    its float32 sums. The second product adds them up as well, by a row of ones, where that does not cost it another
    block of rows: with 64 rows, which it does as one, 65 would take 1.6 times as long.
    """
    fused = torch.ops.mkldnn._linear_pointwise
    heads, length, width = query.shape
    ones = width % 16 != 0
    asked = torch.cat([query * scale, query.new_empty(heads, length, 1)], -1)
    keys = torch.cat([key, key.new_ones(heads, key.shape[1], 1)], -1)
    values = value.transpose(1, 2)
    if ones:
        whole = -(-(width + 1) // 8) * 8  # whole vectors are faster
        values = F.pad(values, (0, 0, 0, whole - width), value=1)
    values = values.contiguous()
    sample = key[:, ::SAMPLE].transpose(1, 2)
    asked[:, :, width] = -torch.bmm(asked[:, :, :width], sample).amax(-1) - MARGIN
    step = max(ROWS, SCORES // key.shape[1])
    for head in range(heads):
        for start in range(0, length, step):
            rows = slice(start, start + step)
            weights = fused(asked[head, rows], keys[head], None, "sigmoid", [], "")
            made = fused(weights, values[head], None, "none", [], "")
            total = made[:, width : width + 1] if ones else weights.sum(-1, keepdim=True)
            torch.div(made[:, :width], total, out=out[head, rows])
