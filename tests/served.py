"""A router over an engine, served on 127.0.0.1 by uvicorn in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import APIRouter, FastAPI


@contextmanager
def served(*routers: APIRouter, app: FastAPI | None = None) -> Iterator[int]:
    """The port on which the routers are served, or a whole app."""
    app = app or FastAPI()
    for router in routers:
        app.include_router(router)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < ends, "the server did not start"
        time.sleep(0.002)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
