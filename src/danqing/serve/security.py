"""Who may ask, from where, and how much: one ASGI middleware around all that the studio serves.

A page of another site that a person has open must not be able to use the studio on their machine: `Host` is checked
against DNS rebinding, `Origin` and `Sec-Fetch-Site` against forged requests. Whoever comes from another machine gives a
password or a token.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danqing.errors import DanqingError
from danqing.library.settings import write_atomically
from danqing.serve.settings import ServeSettings

log = logging.getLogger("danqing.serve")
access = logging.getLogger("danqing.access")

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthz"})
"""What is answered without a password: it says nothing but that the studio is there."""
PAGE = "/"
"""Where the web page is; HTML from anywhere else may do nothing."""
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{}' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_DATA_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "application/pdf")
"""What a browser might run a script in; it is handed out as a download."""
_BODY_SECONDS = 60.0
"""Without a byte, before a slow body is given up; a whole body may take ten times that."""
_REMEMBERED = 1024
_REMEMBERED_SECONDS = 600.0


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        """Raises DanqingError where the file of users cannot be read."""
        self.app, self.settings = app, settings
        self.users = Users(settings.users) if settings.users is not None else None
        self._hosts = allowed_hosts(settings)
        self._rates = Buckets(settings.requests_per_minute)
        self._failures = Buckets(settings.logins_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = _headers(scope)
        client = client_of(scope, headers, self.settings)
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                dressed(message, scope["path"], time.perf_counter() - began)
            await send(message)

        try:
            refusal = await self._refused(scope, headers, client)
            if refusal is not None:
                await _answer(scope, told, *refusal)
            else:
                await self._limited(scope, receive, told)
        finally:
            seconds = time.perf_counter() - began
            # %r: nothing that a caller sends makes a line of its own
            access.info(
                "%s %s %r %d %.3f s", client, scope.get("method", "WS"), scope["path"], status, seconds,
                extra={"client": client, "path": scope["path"], "status": status, "seconds": round(seconds, 4)},
            )  # fmt: skip

    async def _refused(
        self, scope: Scope, headers: dict[str, str], client: str
    ) -> tuple[int, str, dict[str, str]] | None:
        """(status, reason, headers) where the request is not let in."""
        if not host_allowed(headers.get("host", ""), self._hosts):
            return 421, "host: this name is not known to be this machine's; start with --allow-host NAME", {}
        if (why := forged(scope, headers, self.settings)) is not None:
            return 403, why, {}
        if not is_loopback(client) and (wait := self._rates.take(client)) > 0:
            return 429, "rate: too many requests; wait a little", {"retry-after": str(int(wait) + 1)}
        if not self.settings.guarded or scope["path"] in OPEN_PATHS or scope.get("method") == "OPTIONS":
            return None
        return await self._unknown(scope, headers, client)

    async def _unknown(
        self, scope: Scope, headers: dict[str, str], client: str
    ) -> tuple[int, str, dict[str, str]] | None:
        ask = {"www-authenticate": 'Basic realm="danqing", charset="UTF-8"'}
        given = headers.get("authorization", "")
        if not given:
            return 401, "authorization: give a user and password, or a token", ask
        enough = 429, "authorization: too many failed attempts; wait a minute", {"retry-after": "60"}
        if self._failures.left(client) < 1:
            return enough
        if known(given, self.users, self.settings.tokens, quickly=True):
            return None
        # taken before the password is looked at, which takes a while: guesses that come at once count at once
        if self._failures.take(client) > 0:
            return enough
        if await asyncio.to_thread(known, given, self.users, self.settings.tokens):
            self._failures.give_back(client)
            return None
        return 401, "authorization: this user and password, or token, is not known", ask

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a body that is neither too large nor too slow."""
        most, seen, ends = self.settings.body_bytes, 0, time.monotonic() + 10 * _BODY_SECONDS
        refused: tuple[int, str] | None = None
        more = True
        length = _headers(scope).get("content-length", "")
        if length and (not length.isdigit() or int(length) > most):
            await _answer(scope, send, 413, f"body: more than {most >> 20} MB", {"connection": "close"})
            return

        async def counted() -> Message:
            nonlocal seen, refused, more
            if scope["type"] != "http" or not more:
                return await receive()
            try:
                left = min(_BODY_SECONDS, ends - time.monotonic())
                message = await asyncio.wait_for(receive(), max(left, 0.0))
            except TimeoutError:
                refused = 408, "body: it comes too slowly"
                raise _Refused from None
            seen += len(message.get("body", b""))
            more = bool(message.get("more_body", False))
            if seen > most:
                refused = 413, f"body: more than {most >> 20} MB"
                raise _Refused
            return message

        started = False

        async def held(message: Message) -> None:
            nonlocal started
            if refused is None:
                started = started or message["type"] in ("http.response.start", "websocket.accept")
                await send(message)

        try:
            await self.app(scope, counted, held)
        except _Refused:
            pass
        except Exception:
            # the log has it; the caller learns that it happened and no more
            log.exception("%s %r failed", scope.get("method", "WS"), scope["path"])
            if not started:
                await _answer(scope, send, 500, "an error of Danqing's own; the server's log says more", {})
        if refused is not None and not started:
            await _answer(scope, send, *refused, {"connection": "close"})


class _Refused(Exception):
    """The body is not read on."""


class Users:
    """Names and argon2 hashes from a file: `name:$argon2id$...`, a line each; read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises DanqingError for a file that cannot be read or holds none."""
        self.path = path
        self._stamp: float = -1.0
        self._hashes: dict[str, str] = {}
        self._good: OrderedDict[bytes, float] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._nobody = ""
        self._read()

    def check(self, name: str, password: str, quickly: bool = False) -> bool:
        """Whether it is that user's password. Argon2 takes its time, so that what was right is known for ten minutes.

        `quickly` looks only whether it is known.
        """
        from argon2 import PasswordHasher
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            self._read()
        except DanqingError as error:  # somebody works on the file: until it is whole nobody comes in
            log.warning("%s", error)
            return False
        told = hmac.digest(self._key, f"{name}\0{password}\0{self._hashes.get(name)}".encode(), "sha256")
        now = time.monotonic()
        if self._good.get(told, 0.0) > now:
            return True
        if quickly:
            return False
        self._nobody = self._nobody or PasswordHasher().hash(secrets.token_hex())
        try:
            # an unknown name takes as long as a known one
            PasswordHasher().verify(self._hashes.get(name, self._nobody), password)
        except (VerificationError, InvalidHashError):
            return False
        if name not in self._hashes:
            return False
        self._good[told] = now + _REMEMBERED_SECONDS
        while len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)
        return True

    def _read(self) -> None:
        try:
            stamp = self.path.stat().st_mtime
            if stamp == self._stamp:
                return
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DanqingError(f"{self.path}: the users cannot be read: {error}") from None
        rows = [line.partition(":") for line in lines if line.strip() and not line.startswith("#")]
        if not rows or not all(name and value.startswith("$argon2") for name, _, value in rows):
            raise DanqingError(f"{self.path}: should have lines of name:$argon2...; `danqing serve --auth` writes them")
        self._hashes = {name: value for name, _, value in rows}
        self._stamp = stamp


def write_users(path: Path, accounts: Iterable[tuple[str, str]]) -> None:
    """Add these (name, password) to the file of users, hashed; others stay. Raises DanqingError for a bad name."""
    from argon2 import PasswordHasher

    lines: dict[str, str] = {}
    if path.exists():
        rows = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        lines = {name: value for name, _, value in rows}
    for name, password in accounts:
        if not name or not password or ":" in name or not name.isprintable():
            raise DanqingError("auth: should be USER:PASSWORD, neither of them empty")
        lines[name] = PasswordHasher().hash(password)
    write_atomically(path, "".join(f"{name}:{value}\n" for name, value in lines.items()))


def token_hash(token: str) -> str:
    """What is kept of an API token. Raises DanqingError for one that could be guessed."""
    if len(token) < 16:
        raise DanqingError("token: should have at least 16 characters")
    return hashlib.sha256(token.encode()).hexdigest()


def known(authorization: str, users: Users | None, tokens: Iterable[str], quickly: bool = False) -> bool:
    """Whether an `Authorization` header is a user's (Basic) or holds a token (Bearer, or Basic with it as password).

    `quickly` takes only a password that was right a while ago.
    """
    kind, _, value = authorization.partition(" ")
    name, password = "", value.strip()
    if kind.casefold() == "basic":
        try:
            name, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return False
        if not colon:
            return False
    elif kind.casefold() != "bearer":
        return False
    hashed = hashlib.sha256(password.encode()).hexdigest()
    if any(hmac.compare_digest(hashed, token) for token in tokens):
        return True
    return bool(users is not None and name and users.check(name, password, quickly))


class Buckets:
    """So many a minute for each caller, a burst of as many at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, caller: str) -> float:
        """How many there are now."""
        count, when = self._left.get(caller, (float(self.per_minute), time.monotonic()))
        return min(count + (time.monotonic() - when) * self.per_minute / 60, float(self.per_minute))

    def take(self, caller: str) -> float:
        """Take one; returns the seconds to wait where there is none."""
        count = self.left(caller)
        if count < 1:
            return (1 - count) * 60 / max(self.per_minute, 1)
        self._left[caller] = (count - 1, time.monotonic())
        self._left.move_to_end(caller)
        while len(self._left) > _REMEMBERED * 16:
            self._left.popitem(last=False)
        return 0.0

    def give_back(self, caller: str) -> None:
        """What was taken does not count."""
        self._left[caller] = (min(self.left(caller) + 1, float(self.per_minute)), time.monotonic())


def allowed_hosts(settings: ServeSettings) -> frozenset[str]:
    """The names that `Host` may have, in lower case, without ports."""
    own = {"localhost", "127.0.0.1", "::1", *settings.hosts}
    if not _anywhere(settings.host):
        own.add(settings.host)
    if not is_loopback(settings.host):
        own |= {socket.gethostname(), f"{socket.gethostname()}.local", "*ip"}
    return frozenset(name.casefold().strip("[]") for name in own)


def host_allowed(host: str, allowed: frozenset[str]) -> bool:
    """Whether a `Host` header is one of this machine's.

    Where it listens to others (`*ip`) any address will do: what a rebound name points to is never written as an address.
    """
    name = _hostname(host)
    return bool(name) and (name in allowed or ("*ip" in allowed and _is_address(name)))


def forged(scope: Scope, headers: dict[str, str], settings: ServeSettings) -> str | None:
    """Why a request is another site's doing, or None.

    Browsers send `Origin` with all that is not a plain GET, and newer ones `Sec-Fetch-Site` with everything; tools send
    neither.
    """
    origin, host = headers.get("origin"), headers.get("host", "").casefold()
    if origin is not None:
        if origin in settings.origins:
            return None
        try:
            parts = urlsplit(origin)
            same = parts.scheme in ("http", "https") and _with_port(parts.netloc) == _with_port(host) and not parts.path
        except ValueError:
            same = False
        return None if same else "origin: another site's page may not use this studio (--cors-allow-origins)"
    unsafe = scope["type"] == "websocket" or scope.get("method") not in SAFE
    if unsafe and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "origin: another site's page may not use this studio"
    return None


def client_of(scope: Scope, headers: dict[str, str], settings: ServeSettings) -> str:
    """The caller's address; what a proxy says of it counts only where the proxy is known."""
    address = str((scope.get("client") or ("unknown", 0))[0])
    if address in settings.proxies:
        chain = [part.strip() for part in headers.get("x-forwarded-for", "").split(",") if part.strip()]
        for each in reversed(chain):
            if each not in settings.proxies:
                return each if _is_address(each) else address
    return address


def is_loopback(address: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address.casefold() in ("localhost", "testclient")


def check_exposure(settings: ServeSettings) -> None:
    """Raises DanqingError where the studio would listen beyond this machine and let anybody in."""
    if not is_loopback(settings.host) and not settings.guarded:
        raise DanqingError(
            "listen: whoever reaches this machine could use the studio, as bots on the internet do within hours; "
            "add --auth USER:PASSWORD or --token TOKEN"
        )


def warning(settings: ServeSettings) -> str | None:
    """What is allowed and yet risky: passwords and pictures that cross a network in the clear."""
    if is_loopback(settings.host) or settings.certificate is not None:
        return None
    return (
        "listen: passwords, tokens and pictures cross the network unencrypted; give --tls-certfile and --tls-keyfile, "
        "or put a proxy with TLS before it"
    )


def page_policy(nonce: str) -> str:
    """What the page may do: of the scripts that stand in its HTML those run that have the nonce, and no others."""
    return _PAGE_POLICY.format(nonce)


def dressed(message: MutableMapping[str, Any], path: str, seconds: float) -> None:
    """Add the headers that keep a browser from running, framing or guessing what it is given.

    The page brings a policy of its own (`page_policy`).
    """
    headers: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in message.get("headers", ())]
    present = dict(headers)
    kind = present.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().casefold()
    policy = present.get(b"content-security-policy", b"").decode("latin-1")
    page = kind == "text/html" and path == PAGE and message["status"] < 400 and bool(policy)
    extra = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "x-frame-options": "DENY",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "content-security-policy": policy if page else _DATA_POLICY,
        "x-process-time": f"{seconds:.4f}",
    }
    if kind in _ACTIVE and not page:
        extra["content-disposition"] = "attachment"
    if path.startswith(("/api/", "/sdapi/", "/v1/", "/internal/")) and b"cache-control" not in present:
        extra["cache-control"] = "no-store"
    names = {name.encode() for name in extra}
    kept = [(name, value) for name, value in headers if name not in names and name != b"server"]
    message["headers"] = kept + [(name.encode(), value.encode()) for name, value in extra.items()]


async def _answer(scope: Scope, send: Send, status: int, reason: str, headers: dict[str, str]) -> None:
    """A refusal, as JSON in the words of all the studio's errors."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
    body = json.dumps({"error": reason, "detail": reason}).encode()
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    start = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of one that comes twice the first, but two hosts or origins are none that is allowed."""
    found: dict[str, str] = {}
    for raw, value in scope.get("headers", ()):
        name = raw.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "content-length"):
            found[name] = "\0"
        found.setdefault(name, value.decode("latin-1"))
    return found


def _hostname(host: str) -> str:
    host = host.strip().casefold()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else ""
    name, colon, port = host.partition(":")
    return name.rstrip(".") if not colon or port.isdigit() else ""


def _with_port(netloc: str) -> str:
    """`localhost` and `localhost:80` alike: neither side says the scheme, so that its default port is left out."""
    return netloc.casefold().removesuffix(":80").removesuffix(":443")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _anywhere(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")
