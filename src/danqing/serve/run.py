"""The server's process: from settings to a port that answers, and to an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from danqing.errors import DanqingError
from danqing.serve.accept import Rules
from danqing.serve.app import create_app
from danqing.serve.cache import ModelCache
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings
from danqing.serve.store import Store

if TYPE_CHECKING:  # it needs the page's own packages
    from danqing.serve.page import Page

log = logging.getLogger("danqing.serve")
_HEAD_SECONDS = 20.0
"""For a request's first lines: whoever takes longer keeps a connection from others."""
_IDLE_SECONDS = 60
"""How long a connection without a request stays open. Longer than clients pause between two: one that asks as the server
hangs up is told of an error that is none."""
_CONNECTIONS = 1000
_GRACE = 10


class Impatient(H11Protocol):
    """HTTP/1.1 that closes a connection whose request does not come."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(_HEAD_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._calm()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def open_engine(
    data: Path,
    models: ModelCache,
    *,
    url: str | None = None,
    rules: Rules | None = None,
    batch: int = 1,
    keep_days: float | None = None,
) -> Engine:
    """The engine of the studio in folder `data`, its database there unless `url` names another. Raises DanqingError."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DanqingError(f"{data}: cannot be made: {error.strerror}; give another --data-dir") from None
    store = Store(url or f"sqlite:///{data.absolute() / 'studio.db'}")
    return Engine(store, data, models, rules=rules, batch=batch, keep_days=keep_days)


def serve(engine: Engine, settings: ServeSettings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGINT or SIGTERM; the present step is finished, what waits goes on with the next start.

    `ready` is told the address once it answers. Raises DanqingError where the port is taken, the certificate is none, or
    everybody could come.
    """
    app = create_app(engine, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_GRACE,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )
    try:
        config.load()
    except OSError as error:
        engine.close()
        raise DanqingError(
            f"{settings.certificate}: TLS cannot begin with this certificate and its key: {error.strerror or error}"
        ) from None
    try:
        bound = config.bind_socket()
    except (OSError, SystemExit):
        engine.close()
        raise DanqingError(
            f"port: {settings.host}:{settings.port} is taken or not this machine's; give another --port"
        ) from None
    # asyncio sets this for sockets that say TCP by number, and uvicorn's does not: without it an answer's body waits for
    # the caller's word that the head has come, 40 ms
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    engine.start()
    page = app.state.page if settings.page else None
    threading.Thread(target=_warm, args=(engine, page), name="danqing-warm", daemon=True).start()
    port = bound.getsockname()[1]
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    _Server(config, engine, lambda: ready(f"{settings.scheme}://{shown}:{port}")).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when it answers, and ends the painting before it ends itself."""

    def __init__(self, config: uvicorn.Config, engine: Engine, told: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._told = engine, told

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._told()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        # before uvicorn waits for its callers: streams of events end with the engine; and the signal comes again after
        await asyncio.to_thread(self._engine.close)
        await super().shutdown(sockets=sockets)


def _warm(engine: Engine, page: Page | None) -> None:
    """Make the page and load the default model, so that who comes first need not wait for them."""
    if page is not None:
        page.build("en")
    try:
        engine.models.get(None)
    except DanqingError as error:
        log.warning("the default model is not loaded: %s", error)
    if page is not None:
        page.build("zh")
    gc.collect()
    gc.freeze()  # what is here stays: hundreds of thousands of objects, which the painter would wait for every so often
