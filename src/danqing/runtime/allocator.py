"""Memory of a process that paints: taken in huge pages, and kept. No torch here: this comes before it."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's names (malloc.h)."""
_LARGE = 64 << 20
"""Bytes from which a tensor still comes from the system and goes back to it: an autoencoder's, at its full size. Kept,
they would leave holes that no other fits."""
_KEEP = 1 << 30


def keep_memory() -> None:
    """For programs, before torch is imported: tensors take huge pages where the system has them, and what is freed is
    kept for the next tensor.

    A network's temporaries are tens of megabytes each. By default the C library gets each from the system and gives
    it back, a page of 4 KB at a time, in every step. Linux with the GNU C library only; elsewhere this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _KEEP)


def give_back() -> None:
    """What was freed and kept goes back to the system (the GNU C library only), so that what is used can be counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
