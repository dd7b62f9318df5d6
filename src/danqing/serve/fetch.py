"""A picture by its URL, from the public internet alone: no address of this machine or its networks is ever asked.

A name is resolved once, all its addresses are looked at, and the connection goes to one of those, so that a name that
answers differently the second time (DNS rebinding) gains nothing. Redirections are followed by hand, each looked at
likewise; proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from danqing.errors import DanqingError
from danqing.vocabulary import quoted

_HOPS = 4
_SECONDS = 20.0
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORTS = (80, 443, None)


def fetch(url: str, field: str, most: int) -> bytes:
    """At most `most` bytes of what an http(s) URL gives.

    Raises DanqingError: an address that is not public, another port than the web's, no answer, too much.
    """
    ends = time.monotonic() + _SECONDS
    for _ in range(_HOPS):
        parts = _parts(url, field)
        connection = _connection(parts, field)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "danqing", "Accept": "image/*"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                url = urljoin(url, answer.headers.get("Location") or "")
                continue
            if answer.status != 200:
                raise DanqingError(f"{field}: {quoted(url)} answers {answer.status}")
            return _read(answer, field, most, ends)
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            raise DanqingError(f"{field}: {quoted(url)} cannot be fetched: {type(error).__name__}") from None
        finally:
            connection.close()
    raise DanqingError(f"{field}: {quoted(url)} leads from one place to the next, more than {_HOPS} times")


def public_address(host: str, port: int, field: str) -> str:
    """An address of `host`, all of whose addresses are public. Raises DanqingError."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise DanqingError(f"{field}: the host {quoted(host)} is unknown") from None
    for address in found:
        if not is_public(address):
            raise DanqingError(f"{field}: {quoted(host)} is not on the public internet; send the picture itself")
    return sorted(found)[0]


def is_public(address: str) -> bool:
    """Whether an IP address is a public one; IPv4 addresses within IPv6 ones are looked at too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _parts(url: str, field: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise DanqingError(f"{field}: {quoted(url)} is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise DanqingError(f"{field}: {quoted(url)} is no http(s) URL of a public host")
    if port not in _PORTS:
        raise DanqingError(f"{field}: pictures are fetched from ports 80 and 443 alone, not {port}")
    return parts


def _connection(parts: SplitResult, field: str) -> http.client.HTTPConnection:
    """A connection to an address that was looked at; certificates are checked against the name."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = public_address(host, port, field)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS / 2)
    try:
        plain = socket.create_connection((address, port), timeout=_SECONDS / 2)
        connection.sock = plain if context is None else context.wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise DanqingError(f"{field}: {quoted(host)} cannot be reached: {type(error).__name__}") from None
    return connection


def _read(answer: http.client.HTTPResponse, field: str, most: int, ends: float) -> bytes:
    data = bytearray()
    while chunk := answer.read(_CHUNK):
        data += chunk
        if len(data) > most:
            raise DanqingError(f"{field}: the picture has more than {most >> 20} MB")
        if time.monotonic() > ends:
            raise DanqingError(f"{field}: the picture took longer than {_SECONDS:.0f} seconds")
    return bytes(data)
