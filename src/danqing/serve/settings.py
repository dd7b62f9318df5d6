"""What `danqing serve` was told, for the faces of the studio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    """How the studio is reached, by whom, and how much anybody may ask for."""

    host: str = "127.0.0.1"
    port: int = 7860
    hosts: tuple[str, ...] = ()
    """Names besides this machine's own by which browsers may call it (`Host` and `Origin` headers)."""
    origins: tuple[str, ...] = ()
    """Other web pages' origins that may call the APIs (`--cors-allow-origins`), such as `https://example.org`."""
    users: Path | None = None
    """A file of names and argon2 hashes, a line each; None asks nobody for a password."""
    tokens: tuple[str, ...] = ()
    """API tokens (SHA-256, hexadecimal) that stand for a password in `Authorization: Bearer ...`."""
    certificate: Path | None = None
    key: Path | None = None
    """Files for TLS."""
    api: bool = True
    """AUTOMATIC1111's and OpenAI's APIs; Danqing's own is always there."""
    page: bool = True
    urls: bool = False
    """Whether pictures may be given by http(s) URL; never from private addresses."""
    body_bytes: int = 128 << 20
    """Of one request's body."""
    requests_per_minute: int = 600
    """Of one address, but for this machine's own."""
    logins_per_minute: int = 10
    """Failed ones of one address."""
    folders: tuple[Path, ...] = ()
    """Folders whose pictures may be imported into the gallery, besides the data folder's `import`."""
    proxies: tuple[str, ...] = ()
    """Addresses of proxies whose `X-Forwarded-For` is believed."""

    @property
    def guarded(self) -> bool:
        """Whether callers must say who they are."""
        return self.users is not None or bool(self.tokens)

    @property
    def scheme(self) -> str:
        """`https` where there is a certificate."""
        return "https" if self.certificate is not None else "http"
