"""Pictures to files: PNG, JPEG, WebP, with what they say of themselves, never half-written."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from PIL import Image, PngImagePlugin

from danqing.errors import DanqingError

_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
RECORD_KEY = "danqing"
"""The PNG text chunk that holds Danqing's own JSON record."""


def check_suffix(path: Path) -> str:
    """Pillow's format name for `path`. Raises DanqingError for a suffix that is no picture's."""
    if path.suffix.lower() not in _FORMATS:
        raise DanqingError(f"{path}: '{path.suffix}' is no picture format that is written; use {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]


def save(image: Image.Image, path: Path, infotext: str | None, record: str | None) -> None:
    """Write `image` to `path`: beside it first, then renamed, so that no half-written picture is left.

    The infotext goes where AUTOMATIC1111 puts it: PNG text chunk `parameters`; EXIF UserComment in UTF-16
    big-endian elsewhere. The JSON record goes to the chunk `danqing`, or after the EXIF's infotext not at all.
    Raises DanqingError for an unknown suffix, a full disk, a folder that cannot be written, or what the format has
    no room for: sides above 65535 (JPEG) and 16383 (WebP), and infotext above 32,000 characters in a JPEG.
    """
    kind = check_suffix(path)
    options: dict[str, object] = {}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if infotext is not None:
            chunks.add_text("parameters", infotext)
        if record is not None:
            chunks.add_text(RECORD_KEY, record)
        options = {"pnginfo": chunks}
    else:
        options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
        if infotext is not None:
            exif = Image.Exif()
            exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + infotext.encode("utf-16-be")
            options["exif"] = exif.tobytes()
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:
            image.save(file, format=kind, **options)  # type: ignore[arg-type]
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        raise DanqingError(f"{path}: the picture could not be written: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; make room, or write elsewhere"
    if str(error) == "EXIF data is too long":
        return "a JPEG has no room for so long a prompt; write a .png or .webp, or use --no-metadata"
    return getattr(error, "strerror", None) or str(error)


def free_name(path: Path) -> Path:
    """`path`, or the first of `stem-2.suffix`, `stem-3.suffix` ... that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate
