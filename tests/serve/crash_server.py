"""A studio in a process of its own, to be killed: `python crash_server.py FOLDER PORT SECONDS`. The painter is a fake
that takes so many seconds for a step; everything else is real."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from danqing.serve.run import serve
from danqing.serve.settings import ServeSettings
from studio import fake_studio


class Slow(threading.Semaphore):
    """A gate that opens after a while."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        time.sleep(float(sys.argv[3]))
        return True

    __enter__ = acquire


if __name__ == "__main__":
    engine, _ = fake_studio(Path(sys.argv[1]), start=False, gate=Slow())
    engine.models.get = lambda name=None, vae=None: None  # type: ignore[assignment,method-assign,return-value]
    settings = ServeSettings(port=int(sys.argv[2]), api=False, page=False)
    serve(engine, settings, lambda url: print(url, flush=True))
