"""One file over HTTP to a `.part` beside its place: resumed, checked, never taken for what it is not.

RFC 9110 (ranges, validators, redirects), RFC 6266 and 5987 (names in Content-Disposition). The standard library's
client serves: the Hub's own does not go on with an interrupted file, and its HTTP package changes with its version.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from danqing.errors import DanqingError
from danqing.library.folders import SUFFIXES

Progress = Callable[[str, int, int | None], None]
"""progress(name, bytes so far, bytes in all if known), about once a megabyte."""

BLOCK = 1 << 20
TIMEOUT = 30.0
RETRIES = 5
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """A complete, checked `.part`, for the caller to look into and then rename with `settle`."""

    part: Path
    name: str
    sha256: str


class Refused(DanqingError):
    """The server says no: `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Dropped(Exception):
    """The connection ended early, or the server asks to come back: worth another try."""

    def __init__(self, reason: str, done: int = 0) -> None:
        super().__init__(reason)
        self.done = done
        """Bytes of the file that are here."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token goes along only within one origin, and never from https to http."""

    def __init__(self) -> None:
        self.linked = ""
        """The Hub's promise of the file's SHA-256, which it gives where it redirects to its storage."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise DanqingError(f"{req.full_url}: redirects to {newurl}, which is not safe to follow")
        self.linked = self.linked or headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if request and authorization and origin(newurl) == origin(req.full_url):
            request.add_unredirected_header("Authorization", authorization)
        return request


def fetch(
    url: str,
    folder: Path,
    *,
    name: str | None = None,
    token: str | None = None,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    pause: float = 1.0,
) -> Fetched:
    """Bring `url` to `folder/NAME.part`, going on where an earlier try of the same content ended.

    `name` defaults to the one the server gives, made safe. `size` in bytes and `sha256` (64 hex digits) are what is
    promised. A lost connection is tried again, `pause` seconds later the first time; five tries in a row without a
    byte end it. Raises DanqingError: unreachable, refused (what to do about it), a web page in place of a file,
    another size or hash than promised (the part is removed), a full disk or lost connection (the part is kept).
    """
    failures = furthest = 0
    while True:
        try:
            return _attempt(url, folder, name, token, size, sha256 and sha256.lower(), progress)
        except _Dropped as dropped:
            failures = 1 if dropped.done > furthest else failures + 1
            furthest = max(furthest, dropped.done)
            if failures >= RETRIES:
                kept = "; what came is kept, the same command goes on" if dropped.done else ""
                raise DanqingError(f"{url}: {dropped}{kept}") from None
            time.sleep(pause * failures)


def fetch_json(url: str, token: str | None = None, pause: float = 1.0) -> Any:
    """What an API answers. Raises DanqingError as `fetch` does, `Refused` where the server says no."""
    failures = 0
    while True:
        try:
            with closing(_open(url, token, {"Accept": "application/json"})[0]) as response:
                return json.loads(_read(response, 0, 64 * BLOCK))
        except ValueError:
            raise DanqingError(f"{url}: the answer is not JSON") from None
        except _Dropped as dropped:
            failures += 1
            if failures >= RETRIES:
                raise DanqingError(f"{url}: {dropped}") from None
            time.sleep(pause * failures)


def settle(part: Path, target: Path) -> None:
    """Give a complete `.part` its place, atomically, from another disk too. Raises DanqingError: a full disk."""
    beside = target.with_name(target.name + ".part")
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if part != beside:
            shutil.move(part, beside)
        os.replace(beside, target)
    _note(part).unlink(missing_ok=True)


def origin(url: str) -> tuple[str, str | None, int | None]:
    """(scheme, host, port): where a token may go."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def safe_name(name: str) -> str:
    """A file name out of a foreign one: its last part, without what any system takes for more than a name."""
    name = re.split(r"[/\\]", name)[-1]
    name = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", name).strip(". ")
    stem, suffix = os.path.splitext(name)
    if len(suffix) > 20:
        stem, suffix = name, ""
    room = 200 - len(suffix.encode())  # file systems end at 255 bytes, and `.part` comes after
    name = stem.encode()[:room].decode(errors="ignore") + suffix
    return "_" + name if _RESERVED.fullmatch(name) else name


def _attempt(
    url: str,
    folder: Path,
    name: str | None,
    token: str | None,
    size: int | None,
    sha256: str | None,
    progress: Progress | None,
) -> Fetched:
    response, linked = _open(url, token, {})
    with closing(response):
        _refuse_page(url, response)
        name = name or _name(url, response)
        part = folder / f"{name}.part"
        total = _length(response)
        if total is not None and size is not None and total != size:
            raise DanqingError(f"{url}: {total} bytes are offered, but {size} were promised")
        total = size if total is None else total
        promised = sha256 or (linked.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", linked) else None)
        validator = _validator(response)
        identity = promised or validator
        with _disk(part):
            folder.mkdir(parents=True, exist_ok=True)
            have = part.stat().st_size if identity and part.exists() and _read_note(part) == identity else 0
        if total is not None and have > total:
            have = 0
        if have == 0:
            _room(part, total)
            with _disk(part):
                _note(part).write_text(identity, encoding="utf-8")
            digest = _receive(response, part, 0, total, name, progress)
    if have:
        _room(part, None if total is None else total - have)
        digest = _resume(url, token, validator, part, have, total, name, progress)
    if promised and digest != promised:
        discard(part)
        raise DanqingError(f"{url}: SHA-256 is {digest}, but {promised} was promised; what came is removed, try again")
    return Fetched(part, name, digest)


def _resume(
    url: str, token: str | None, validator: str, part: Path, have: int, total: int | None, name: str, progress: Any
) -> str:
    if have == total:
        return _receive(None, part, have, total, name, progress)
    headers = {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    response, _ = _open(url, token, headers)
    with closing(response):
        _refuse_page(url, response)
        if response.status != 206:  # the server cannot go on, or its file has changed: all of it comes
            return _receive(response, part, 0, total, name, progress)
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise DanqingError(f"{url}: the server sends another range than asked; remove {part} and try again")
        return _receive(response, part, have, total, name, progress)


def _receive(
    response: http.client.HTTPResponse | None,
    part: Path,
    have: int,
    total: int | None,
    name: str,
    progress: Progress | None,
) -> str:
    """Write the response after the first `have` bytes of the part; returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    done = 0
    with _disk(part), open(part, "r+b" if have else "wb") as file:
        while done < have and (block := file.read(min(BLOCK, have - done))):
            digest.update(block)
            done += len(block)
        while response is not None and (block := _read(response, done)):
            file.write(block)
            digest.update(block)
            done += len(block)
            if progress:
                progress(name, done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Dropped(f"the connection was lost after {done} of {total} bytes", done)
    if total is not None and done > total:
        discard(part)
        raise DanqingError(f"{part}: {done} bytes came, but {total} were promised; what came is removed, try again")
    return digest.hexdigest()


def _read(response: http.client.HTTPResponse, done: int, most: int = BLOCK) -> bytes:
    try:
        return response.read(most)
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(f"the connection was lost: {error}", done) from None


def _open(url: str, token: str | None, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, str]:
    """The response, and the SHA-256 that a redirect of the Hub's promised."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port out of range, a broken IPv6 address
        usable = False
    if not usable:
        raise DanqingError(f"{url}: not a web address")
    redirects = _Redirects()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "danqing", **headers})
        if token and (parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with closing(error):
            if error.code in _PASSING:
                raise _Dropped(f"the server answers {error.code} {error.reason}") from None
            raise Refused(f"{url}: {_refusal(error.code, error.headers, token)}", error.code) from None
    except urllib.error.URLError as error:
        raise _Dropped(f"cannot be reached: {getattr(error.reason, 'strerror', None) or error.reason}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DanqingError(f"{url}: not a web address: {error}") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(f"cannot be reached: {error or type(error).__name__}") from None
    return response, redirects.linked


def _refusal(code: int, headers: Message, token: str | None) -> str:
    if headers.get("X-Error-Code") == "GatedRepo":
        return f"gated ({code}): accept its licence on its page, then give the token of that account"
    if code in (401, 403):
        return f"access is refused ({code}): " + (
            "the token does not open it" if token else "it needs a token; set hub_token or civitai_token, or --token"
        )
    if 300 <= code < 400:
        return f"its redirects lead nowhere that is safe to follow ({code})"
    return {404: "not found (404)", 410: "gone (410)"}.get(code, f"the server answers {code}")


def _refuse_page(url: str, response: http.client.HTTPResponse) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise DanqingError(
            f"{url}: a web page, not a file; give the address of the download, or a token if it asks one"
        )


def _name(url: str, response: http.client.HTTPResponse) -> str:
    """The name the server gives, else the last part of the first address, of those redirected through, with a suffix."""
    given = response.headers.get_filename()
    if given:
        # http.client reads headers as Latin-1; servers that put more into a plain filename= mean UTF-8.
        with suppress(UnicodeError):
            given = given.encode("latin-1").decode("utf-8")
        names = [safe_name(given)]
    else:
        paths = [urllib.parse.urlsplit(address).path for address in (url, response.url)]
        names = sorted(
            filter(None, (safe_name(urllib.parse.unquote(path)) for path in paths)),
            key=lambda name: not name.lower().endswith(SUFFIXES),
        )
    if not names or not names[0]:
        raise DanqingError(f"{url}: the address tells no file name; give the address of the file itself")
    return names[0]


def _length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """What If-Range takes: a strong entity tag or a date."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _note(part: Path) -> Path:
    """Beside the part: the hash or validator of the content that it is the beginning of."""
    return part.with_name(part.name + ".of")


def _read_note(part: Path) -> str:
    try:
        return _note(part).read_text(encoding="utf-8")
    except OSError:
        return ""


def discard(part: Path) -> None:
    """Remove a part, so that the next try begins anew."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _room(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and needed > free:
        raise DanqingError(f"{part.parent}: the disk is full: {needed / 1e9:.2f} GB to come, {free / 1e9:.2f} GB free")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into one line. Connection errors inside come as _Dropped, not as OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DanqingError(f"{path}: the disk is full; what came is kept, the same command goes on") from None
        raise DanqingError(f"{path}: cannot be written: {error.strerror or error}") from None
