"""How a program comes to its work sooner. No torch here: this comes before it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def load_torch_early() -> None:
    """Begin to load torch's largest library, in a thread, while Python imports what is its own.

    A third of `import torch` is waiting for that library, which then is there. Linux only; elsewhere, and where there
    is no such file, this does nothing.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        return
    library = os.path.join(os.path.dirname(spec.origin), "lib", "libtorch_cpu.so")
    # called as any function of C, other threads run meanwhile; ctypes.CDLL would hold them up
    load = getattr(ctypes.CDLL(None), "dlopen", None)
    if load is None:
        return
    load.argtypes, load.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    threading.Thread(target=load, args=(os.fsencode(library), os.RTLD_NOW), name="danqing-torch", daemon=True).start()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within, or while a function runs that this decorates, garbage is not looked for.

    For what makes many things and drops few, as imports do, and networks: each round looks at all that there is.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
