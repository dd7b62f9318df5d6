"""Pictures to files and back: what they say of themselves goes with them, and none is ever half-written."""

from __future__ import annotations

import errno
import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from danqing.errors import DanqingError
from danqing.metadata.stealth import read_stealth

_USER_COMMENT = 0x9286
_MAKER_NOTE = 0x927C
_EXIF_IFD = 0x8769
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".jxl": "JXL",
}
SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
LOSSY: tuple[str, ...] = ("JPEG", "AVIF")
"""Formats that pillow writes in no lossless way."""
RECORD_KEY = "danqing"
"""The PNG text chunk that holds Danqing's own JSON record; elsewhere EXIF's MakerNote, which begins with this word."""
_RECORD_MARK = RECORD_KEY.encode() + b"\0"
_PNG_LEVEL = 4
"""As ComfyUI's: half the time of zlib's own 6, for pictures a few hundredths larger."""
MAX_TEXT = 8 << 20
"""Characters of metadata that are read of a file; the largest workflows have a tenth of it."""


def check_suffix(path: Path) -> str:
    """Pillow's format name for `path`.

    Raises DanqingError for a suffix that is no picture's, or one that this installation cannot write.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise DanqingError(f"{path}: '{path.suffix}' is no picture format that is written; use {', '.join(_FORMATS)}")
    if suffix == ".jxl":
        _import_jpeg_xl(path)
    Image.preinit()
    if _FORMATS[suffix] not in Image.SAVE:
        Image.init()  # takes twenty times as long
    if _FORMATS[suffix] not in Image.SAVE:
        raise DanqingError(f"{path}: this pillow was built without {_FORMATS[suffix]}; use another format")
    return _FORMATS[suffix]


def _import_jpeg_xl(path: Path) -> None:
    """Pillow reads and writes JPEG XL with a plugin, which registers itself when it is imported."""
    try:
        import pillow_jxl  # noqa: F401
    except ImportError:
        raise DanqingError(
            f"{path}: JPEG XL needs the extra [jxl]: pip install 'danqing[jxl]'; or use another format"
        ) from None


def save(
    image: Image.Image,
    path: Path,
    infotext: str | None,
    record: str | None,
    *,
    quality: int = 95,
    lossless: bool = True,
) -> None:
    """Write `image` to `path`: beside it first, then renamed, so that no half-written picture is left.

    The infotext goes where AUTOMATIC1111 puts it: PNG text chunk `parameters`; EXIF UserComment in UTF-16
    big-endian elsewhere. The JSON record goes to the chunk `danqing`, or to EXIF's MakerNote. `quality` (1 to 100) is
    that of JPEG and AVIF, and of WebP and JPEG XL unless `lossless`.
    Raises DanqingError for an unknown suffix, a full disk, a folder that cannot be written, or what the format has
    no room for: sides above 65535 (JPEG) and 16383 (WebP), and above 64 kB of metadata in a JPEG.
    """
    kind = check_suffix(path)
    options: dict[str, Any] = {}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if infotext is not None:
            chunks.add_text("parameters", infotext)
        if record is not None:
            chunks.add_text(RECORD_KEY, record)
        options = {"pnginfo": chunks, "compress_level": _PNG_LEVEL}
    else:
        options = {"lossless": True} if lossless and kind not in LOSSY else {"quality": quality}
        if infotext is not None or record is not None:
            options["exif"] = _exif(infotext, record)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:
            image.save(file, format=kind, **options)
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        raise DanqingError(f"{path}: the picture could not be written: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _exif(infotext: str | None, record: str | None) -> bytes:
    exif = Image.Exif()
    tags = exif.get_ifd(_EXIF_IFD)
    if infotext is not None:
        tags[_USER_COMMENT] = b"UNICODE\0" + infotext.encode("utf-16-be")
    if record is not None:
        tags[_MAKER_NOTE] = _RECORD_MARK + record.encode()
    return exif.tobytes()


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


@dataclass(frozen=True, eq=False)
class PictureFile:
    """A picture that was read, and every text that its file carries."""

    path: Path
    image: Image.Image
    """All its pixels are there."""
    texts: Mapping[str, str]
    """By PNG's keywords. A JPEG's or WebP's EXIF gives `parameters`, `danqing`, and ComfyUI's `prompt`, `workflow`."""

    @property
    def lossy(self) -> bool:
        """Whether the pixels may be others than those that were painted."""
        return self.image.format not in ("PNG", None)


def read_picture(path: Path) -> PictureFile:
    """Read a picture and its texts.

    Raises DanqingError where the file is missing, no picture, cut short, far too large, or carries more than 8 MB of
    text.
    """
    if path.suffix.lower() == ".jxl" and path.is_file():
        _import_jpeg_xl(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns of damaged EXIF; what it could read is used
            image = Image.open(path)
            # tags after the pixels are there only when these are read
            image.load()
            exif = _texts_of_exif(image)
    except FileNotFoundError:
        raise DanqingError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DanqingError(f"{path}: a folder; give a picture") from None
    except UnidentifiedImageError:
        raise DanqingError(f"{path}: not a picture, or of a format that is not read") from None
    except Image.DecompressionBombError:
        raise DanqingError(f"{path}: the picture is far too large to be opened safely") from None
    except MemoryError:
        raise
    except Exception as error:  # each of pillow's readers has its own ways to meet a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DanqingError(f"{path}: the picture is damaged or cut short: {reason.splitlines()[0]}") from None
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)} | exif
    if sum(map(len, texts.values())) > MAX_TEXT:
        raise DanqingError(f"{path}: carries more than {MAX_TEXT >> 20} MB of text; that is no picture's metadata")
    if not texts.keys() & {"parameters", "Comment"} and (hidden := read_stealth(image, MAX_TEXT)):
        texts |= hidden
    return PictureFile(path, image, texts)


def _texts_of_exif(image: Image.Image) -> dict[str, str]:
    """What tools write into EXIF: UserComment (AUTOMATIC1111, Fooocus), Make and Model (ComfyUI), MakerNote (Danqing)."""
    try:
        exif = image.getexif()
        inner = exif.get_ifd(_EXIF_IFD)
    except Exception:  # damaged: nothing can be told from it
        return {}
    texts: dict[str, str] = {}
    for tags in (exif, inner):  # Fooocus writes UserComment into the outer directory
        if comment := _comment(tags.get(_USER_COMMENT)):
            texts["parameters"] = comment
    note = inner.get(_MAKER_NOTE)
    if isinstance(note, bytes) and note.startswith(_RECORD_MARK):
        with suppress(UnicodeDecodeError):
            texts[RECORD_KEY] = note[len(_RECORD_MARK) :].rstrip(b"\0").decode()
    for tag in (ExifTags.Base.Model, ExifTags.Base.Make):
        key, colon, value = str(exif.get(tag, "")).partition(":")
        if colon and key in ("prompt", "workflow"):
            texts[key] = value.rstrip("\0")
    return texts


def _comment(value: object) -> str:
    """EXIF's UserComment: 8 bytes that name the encoding, and the text (Exif 2.32, table 9)."""
    if isinstance(value, str):
        return value.rstrip("\0")
    if not isinstance(value, bytes):
        return ""
    code, text = value[:8], value[8:]
    if code.startswith(b"UNICODE"):
        # The byte order is not written down. In either, most texts have more zeros in the high bytes.
        big = text[::2].count(0) >= text[1::2].count(0)
        if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return text.decode("utf-16", errors="replace")
        return text.decode("utf-16-be" if big else "utf-16-le", errors="replace").rstrip("\0")
    if code[:5] in (b"ASCII", b"\0\0\0\0\0"):
        return text.decode("utf-8", errors="replace").strip("\0")
    return value.decode("utf-8", errors="replace").strip("\0")
