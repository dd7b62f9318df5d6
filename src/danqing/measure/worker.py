"""One contender in a process of its own: it says when it is ready, and answers each request with a line of JSON.

    python -m danqing.measure.worker '{"maker": "module:function", "work": {...}, "path": "...", "keep": true, "options": {}}'

Requests are lines: `time` runs once; `profile` runs once under torch's profiler. The end of the input ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from danqing.measure.works import Work
from danqing.runtime.allocator import keep_memory

_EVERY = 0.02
"""Seconds between looks at the memory."""
_WARM = 2
"""More steps before the first that is timed: a picture has many, and by its third everything is in its place."""


def memory() -> tuple[int, int]:
    """Bytes that this process holds now: its own, and mapped from files. (0, 0) where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0, 0
    sizes = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    own, mapped = (int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Within, memory is looked at again and again: the yielded list has the most that was seen, as `memory` gives it."""
    most, ended = list(memory()), threading.Event()

    def look() -> None:
        while not ended.wait(_EVERY):
            most[:] = map(max, most, memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def main(argument: str) -> None:
    job = json.loads(argument)
    work = Work(**job["work"])
    if job["keep"]:
        keep_memory()  # as the command line does, before torch
    # what libraries print, in C too, must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    begin = time.perf_counter()
    module, _, function = job["maker"].partition(":")
    call: Callable[[], Any] = getattr(import_module(module), function)(work, Path(job["path"]), **job["options"])
    call()
    answer(ready=time.perf_counter() - begin)
    for _ in range(_WARM if work.kind == "step" else 0):
        call()
    from danqing.measure.groups import spent
    from danqing.measure.machine import clock, device_memory

    for request in sys.stdin:
        if request.strip() == "profile":
            answer(groups=spent(call, work.device))
            continue
        with watched() as most:
            seconds, result = clock(call, work.device)
        own = result if isinstance(result, float) else seconds  # who times itself returns it
        answer(seconds=own, memory=device_memory(work.device) or most[0], mapped=most[1])


if __name__ == "__main__":
    main(sys.argv[1])
