"""A small web server on 127.0.0.1 that keeps files as a model site does, and misbehaves where it is told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest


@dataclass
class Page:
    """What a path answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Without it, 401."""
    ranges: bool = True
    drops: list[int] = field(default_factory=list)
    """Bytes after which the connection is closed, of each answer in turn; then no more."""
    failures: int = 0
    """Answers 503 so many times first."""
    length: bool = True


class Site:
    """Pages by path (the query too), and a log of (path, headers) asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def put(self, path: str, body: bytes, **fields: object) -> str:
        """Keep `body` at `path`, with its hash as entity tag; returns its address."""
        page = Page(body, **fields)  # type: ignore[arg-type]
        page.headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"', **page.headers}
        self.pages[path] = page
        return self.url + path

    def redirect(self, path: str, target: str, **headers: str) -> str:
        self.pages[path] = Page(status=302, headers={"Location": target, **headers})
        return self.url + path

    def ranges(self) -> list[str]:
        return [headers["Range"] for _, headers in self.asked if "Range" in headers]

    def _handler(site) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                page = site.pages.get(self.path) or site.pages.get(urlsplit(self.path).path) or Page(status=404)
                if page.failures:
                    page.failures -= 1
                    page = Page(status=503)
                if page.token and self.headers.get("Authorization") != f"Bearer {page.token}":
                    page = Page(status=401, headers={k: v for k, v in page.headers.items() if k.startswith("X-")})
                self._answer(page)

            def _answer(self, page: Page) -> None:
                body, status = page.body, page.status
                asked = self.headers.get("Range")
                same = self.headers.get("If-Range") in (None, page.headers.get("ETag"))
                extra = {}
                if asked and page.ranges and same and status == 200:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    status = 206 if start < len(body) else 416
                    extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    body = body[start:]
                self.send_response(status)
                for name, value in {**page.headers, **extra}.items():
                    self.send_header(name, value)
                if page.length:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                drop = page.drops.pop(0) if page.drops else None
                try:
                    self.wfile.write(body if drop is None else body[:drop])
                except OSError:  # the client has seen enough
                    drop = 0
                if drop is not None or not page.length:
                    self.close_connection = True

        return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Site()
    yield server
    server.close()


@pytest.fixture
def other_site(site: Site) -> Iterator[Site]:
    server = Site()
    yield server
    server.close()
