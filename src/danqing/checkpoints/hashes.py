"""The hashes by which people and tools name model files, all read as streams."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from danqing.errors import DanqingError

_CHUNK = 4 << 20


def sha256(path: Path, start: int = 0, length: int | None = None, seen: Callable[[int], None] | None = None) -> str:
    """Lower-case hex SHA-256 of the file, or of `length` bytes from `start`. `seen` is told each chunk's bytes.

    Raises DanqingError if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
                if not chunk:
                    break
                digest.update(chunk)
                left = None if left is None else left - len(chunk)
                if seen is not None:
                    seen(len(chunk))
    except OSError as error:
        raise DanqingError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def short_hash(path: Path) -> str:
    """AUTOMATIC1111's `Model hash`: the first 10 digits of the SHA-256."""
    return sha256(path)[:10]


def legacy_hash(path: Path) -> str:
    """AUTOMATIC1111's old hash: 8 digits of the SHA-256 of 64 KiB at 1 MiB."""
    return sha256(path, 0x100000, 0x10000)[:8]


def addnet_hash(path: Path) -> str:
    """Civitai's AutoV3 and kohya's `sshs_model_hash`: SHA-256 of a safetensors file's data, its header left out."""
    with Path(path).open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return sha256(path, 8 + header)
