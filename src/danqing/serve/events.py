"""What happens in the studio, told to whoever listens."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Happening = Literal[
    "queued", "started", "progress", "picture", "note", "ended", "changed", "paused", "resumed", "closed"
]
_BACKLOG = 256
"""Events that wait for one slow listener before the oldest are dropped."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    name: Happening
    job: str
    """Its id; empty where the whole queue is meant."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Plain values, as JSON has them."""


class Listeners:
    """Those who listen. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._all: list[Callable[[Event], None]] = []
        self._closing = False

    def tell(self, event: Event) -> None:
        """Tell all of them."""
        for hear in list(self._all):
            hear(event)

    def close(self) -> None:
        """Nothing more will happen: whoever waits is let go."""
        self._closing = True
        self.tell(Event("closed", ""))

    @contextmanager
    def ending(self, identity: str) -> Iterator[threading.Event]:
        """An event that is set when that job is over, or the studio closes."""
        over = threading.Event()

        def hear(event: Event) -> None:
            if event.name == "closed" or (event.name == "ended" and event.job == identity):
                over.set()

        with self._heard(hear):
            yield over

    @asynccontextmanager
    async def aending(self, identity: str) -> AsyncIterator[asyncio.Event]:
        """The same for asyncio: whoever waits for the end is not woken at every step."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def hear(event: Event) -> None:
            if event.name == "closed" or (event.name == "ended" and event.job == identity):
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(over.set)

        with self._heard(hear):
            yield over

    @contextmanager
    def listen(self, identity: str | None = None) -> Iterator[Iterator[Event | None]]:
        """What happens from now on, to one job or all; None after a quiet second."""
        waiting: queue.Queue[Event] = queue.Queue()

        def hear(event: Event) -> None:
            if identity in (None, event.job) or not event.job:
                waiting.put(event)

        def events() -> Iterator[Event | None]:
            while True:
                try:
                    yield waiting.get(timeout=1.0)
                except queue.Empty:
                    yield None

        with self._heard(hear):
            yield events()

    @asynccontextmanager
    async def alisten(self, identity: str | None = None) -> AsyncIterator[AsyncIterator[Event | None]]:
        """The same for asyncio. Of a listener that is too slow the oldest progress is dropped first."""
        loop = asyncio.get_running_loop()
        waiting: deque[Event] = deque()
        bell = asyncio.Event()

        def put(event: Event) -> None:
            if len(waiting) >= _BACKLOG:
                waiting.remove(next((each for each in waiting if each.name == "progress"), waiting[0]))
            waiting.append(event)
            bell.set()

        def hear(event: Event) -> None:
            if identity in (None, event.job) or not event.job:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(put, event)

        async def events() -> AsyncIterator[Event | None]:
            while not self._closing:
                while waiting:
                    yield waiting.popleft()
                bell.clear()
                try:
                    await asyncio.wait_for(bell.wait(), 1.0)
                except TimeoutError:
                    yield None

        with self._heard(hear):
            yield events()

    @contextmanager
    def _heard(self, hear: Callable[[Event], None]) -> Iterator[None]:
        self._all.append(hear)
        try:
            yield
        finally:
            self._all.remove(hear)
