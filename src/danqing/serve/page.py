"""The web page: Gradio's Blocks in the studio's own application, once for each language.

Of all that Gradio serves only what the page needs is let through (`served`): nothing of it fetches, proxies or runs what a
request names, and the page asks no other host for anything.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import threading
import time
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Message, Receive, Scope, Send

from danqing.errors import DanqingError
from danqing.serve.engine import Engine
from danqing.serve.page_texts import FILES, Language, wanted
from danqing.serve.security import page_policy
from danqing.serve.settings import ServeSettings

_EXACT = frozenset(
    {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/app_id"}
)
_BELOW = (
    "/assets/",
    "/static/",
    "/svelte/",
    "/gradio_api/run/",
    "/gradio_api/upload",
    "/gradio_api/file=",
    "/gradio_api/heartbeat/",
    "/gradio_api/component_server",
    "/gradio_api/reset",
    "/gradio_api/info",
    "/gradio_api/theme.css",
)
_EXAMPLES = re.compile(r"https://(?:raw\.githubusercontent|github)\.com/[\w./-]*")
_STREAMS = ("/gradio_api/heartbeat/", "/gradio_api/upload_progress")
_HOUR, _DAY = 3600.0, 86400.0


def mount(app: FastAPI, engine: Engine, settings: ServeSettings) -> None:
    """Serve the page at `/`. Gradio is loaded when it is first asked for, or by `app.state.page.build`.

    Raises DanqingError where it is not installed.
    """
    if find_spec("gradio") is None:
        raise DanqingError("page: needs the package gradio; pip install 'danqing[serve]', or start with --no-page")
    shutil.rmtree(engine.folder / "page", ignore_errors=True)  # uploads of the last run; jobs have their own copies
    app.state.page = Page(engine, settings)
    app.router.routes.append(app.state.page)


def served(path: str) -> bool:
    """Whether a path is one of those that the page needs."""
    below = path.startswith(_BELOW) and not re.match(r"/gradio_api/file=\w+:/", path)
    return path in _EXACT or below


class Page(BaseRoute):
    """A route to the page in the language of whoever asks."""

    def __init__(self, engine: Engine, settings: ServeSettings) -> None:
        self.engine, self.settings = engine, settings
        self._apps: dict[Language, FastAPI] = {}
        self._swept = 0.0
        self._lock = threading.Lock()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if scope["type"] == "http" and served(scope["path"]) else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)

    def build(self, language: Language) -> FastAPI:
        """Gradio's application of a language, made once. It takes seconds: call it in a thread."""
        with self._lock:
            if language not in self._apps:
                self._apps[language] = _application(self.engine, self.settings, language)
            return self._apps[language]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        language = wanted(headers.get("cookie", ""), headers.get("accept-language", ""))
        app = self._apps.get(language)
        if app is None:
            app = await asyncio.to_thread(self.build, language)
        path = scope["path"]
        if path == "/" and scope["method"] in ("GET", "HEAD"):
            await asyncio.to_thread(self._sweep)
            await _opened(app, language, scope, receive, send)
        elif path.startswith(_STREAMS):
            await self._until_closed(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    def _sweep(self) -> None:
        """Remove uploads that are older than a day, at most once an hour: jobs have copies of their own."""
        now = time.time()
        if now - self._swept < _HOUR:
            return
        self._swept = now
        for file in (self.engine.folder / "page").rglob("*"):
            if file.is_file() and now - file.stat().st_mtime > _DAY:
                file.unlink(missing_ok=True)

    async def _until_closed(self, app: FastAPI, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams end with the engine, so that the server need not wait for open pages."""
        stream = asyncio.create_task(app(scope, receive, send))
        closed = asyncio.create_task(self._closed())
        try:
            await asyncio.wait({stream, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stream, closed):
                task.cancel()
            await asyncio.gather(stream, closed, return_exceptions=True)

    async def _closed(self) -> None:
        async with self.engine.alisten("page") as events:
            async for event in events:
                if event is not None and event.name == "closed":
                    return


async def _opened(app: FastAPI, language: Language, scope: Scope, receive: Receive, send: Send) -> None:
    """The HTML of the page, as `cleaned` leaves it."""
    plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
    start: Message = {}
    body = b""

    async def kept(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
        else:
            body += message.get("body", b"")

    await app({**scope, "headers": plain}, receive, kept)
    if start["status"] != 200:
        await PlainTextResponse("the page cannot be shown; the server's log says more", 500)(scope, receive, send)
        return
    script = (FILES / "page.js").read_text(encoding="utf-8")
    nonce = secrets.token_hex(16)
    data = signed(cleaned(body.decode(), language, script), nonce).encode()
    headers = [
        (b"content-security-policy", page_policy(nonce).encode()),
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        (b"vary", b"cookie, accept-language"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else data})


def cleaned(page: str, language: Language, script: str) -> str:
    """Gradio's HTML in our language, with our script first, and without a word of other hosts.

    Those are its notes to robots, and the examples in its description of an API that nobody calls.
    """
    page = re.sub(r"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>", "", page)
    page = _EXAMPLES.sub("", page)
    page = page.replace('lang="en"', f'lang="{"zh" if language == "zh" else "en"}"', 1)
    return page.replace("<head>", f"<head><script>{script}</script>", 1)


def signed(page: str, nonce: str) -> str:
    """The page with a nonce in its own scripts, so that none runs which came into it later.

    It has no quotes around it, and would be in nobody's way within a script's text.
    """
    return re.sub(r"<script(?=[\s>])", f"<script nonce={nonce}", page)


def _application(engine: Engine, settings: ServeSettings, language: Language) -> FastAPI:
    folder = engine.folder / "page"
    folder.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where uploads lie; Gradio asks nothing else
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr

    from danqing.serve.page_blocks import blocks, theme
    from danqing.serve.page_uploads import guarded

    inner = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        inner,
        guarded(blocks(engine, settings, language), folder, engine.rules, language),
        path="/",
        allowed_paths=[str(engine.folder / "pictures")],
        show_error=True,
        max_file_size=engine.rules.picture_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        run_history=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=(FILES / "page.css").read_text(encoding="utf-8"),
    )
    return inner
