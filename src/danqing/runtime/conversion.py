"""Memory for weights that are converted as they are read."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

PART = 1 << 20
"""Values converted at a time: what they take as float32 stays in the cache."""
_ALIGN = 64
"""Bytes: a cache line, and the widest vector."""


class Block:
    """CPU memory for a network's converted weights, taken at once and in huge pages where the system has them.

    Memory of the ordinary kind is handed out 4 KB at a time, which for gigabytes takes longer than the conversion.
    """

    def __init__(self, size: int) -> None:
        """`size` in bytes, `aligned` for each tensor."""
        # private: what is shared is counted apart, and has no huge pages
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
        self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        _touch(self._memory)
        self._used = 0

    @staticmethod
    def aligned(size: int) -> int:
        return -(-size // _ALIGN) * _ALIGN

    def take(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`tensor` in `dtype`, in the next free place."""
        count = tensor.numel()
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._used)
        self._used += self.aligned(count * dtype.itemsize)
        convert(tensor.reshape(-1), flat)
        return flat.view(tensor.shape)


def _touch(memory: mmap.mmap) -> None:
    """Have the system hand out all pages now, to several threads at once.

    A virtual machine may have to ask its host for each, seconds a gigabyte. Threads that convert would wait for each
    other there, as all are in one page at a time.
    """
    pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(0), np.array_split(pages, threads)))


def convert(source: Tensor, target: Tensor, part: int = PART) -> None:
    """Copy (n,) `source` into (n,) `target` of any type, `part` values at a time.

    Between float16 and bfloat16 by way of float32, for which torch has vector code on a CPU: the same bits, several
    times as fast.
    """
    detour = {source.dtype, target.dtype} == {torch.float16, torch.bfloat16}
    between = torch.empty(min(part, len(source)) if detour else 0)
    for values, places in zip(torch.split(source, part), torch.split(target, part)):
        places.copy_(between[: len(values)].copy_(values) if detour else values)


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`: itself where it is that already."""
    if tensor.dtype == dtype or tensor.device.type != "cpu":
        return tensor.to(dtype)
    converted = torch.empty(tensor.shape, dtype=dtype)
    convert(tensor.reshape(-1), converted.view(-1))
    return converted
