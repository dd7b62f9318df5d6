"""Text hidden in the lowest bits of a picture's pixels: NovelAI's and AUTOMATIC1111 extensions' "stealth pnginfo"."""

from __future__ import annotations

import json
import zlib

import numpy as np
from PIL import Image

_MARKS = {
    # what the bits begin with -> (the channels they are in, whether the text is gzip's)
    b"stealth_pnginfo": ("A", False),
    b"stealth_pngcomp": ("A", True),
    b"stealth_rgbinfo": ("RGB", False),
    b"stealth_rgbcomp": ("RGB", True),
}
_MARK_BYTES = 15


def read_stealth(image: Image.Image, limit: int) -> dict[str, str]:
    """The texts hidden in `image`: `parameters` for an infotext, NovelAI's own keys for its JSON; {} where none is.

    Bits go down each column, column after column, most significant first: the mark, the length in bits (32, big
    endian), UTF-8 text. Never more than `limit` bytes are unpacked.
    """
    if image.mode not in ("RGB", "RGBA"):
        return {}
    pixels = np.asarray(image)
    for channels in ("A", "RGB") if image.mode == "RGBA" else ("RGB",):
        planes = pixels[..., 3:] if channels == "A" else pixels[..., :3]
        text = _text(planes, channels, limit)
        if text is not None:
            return _keys(text)
    return {}


def _text(planes: np.ndarray, channels: str, limit: int) -> str | None:
    """(H, W, C) of 8 bits -> the text in their lowest bits."""
    head = _bytes(planes, 0, _MARK_BYTES + 4)
    mark = _MARKS.get(head[:_MARK_BYTES])
    if mark is None or mark[0] != channels:
        return None
    length = int.from_bytes(head[_MARK_BYTES:], "big") // 8
    if length > limit:
        return None
    data = _bytes(planes, _MARK_BYTES + 4, length)
    try:
        if mark[1]:
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(data, limit)
            if unpacker.unconsumed_tail:
                return None
        return data.decode()
    except (zlib.error, UnicodeDecodeError):
        return None


def _bytes(planes: np.ndarray, start: int, count: int) -> bytes:
    """`count` bytes from byte `start` of the lowest bits, read column by column."""
    height, width, depth = planes.shape
    per_column = height * depth
    first, last = start * 8 // per_column, ((start + count) * 8 - 1) // per_column + 1
    bits = (planes[:, first : min(last, width)] & 1).swapaxes(0, 1).reshape(-1)
    offset = start * 8 - first * per_column
    return np.packbits(bits[offset : offset + count * 8]).tobytes()


def _keys(text: str) -> dict[str, str]:
    """NovelAI hides its PNG chunks as one JSON object; others hide an infotext."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {"parameters": text}
    if not isinstance(fields, dict):
        return {"parameters": text}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
