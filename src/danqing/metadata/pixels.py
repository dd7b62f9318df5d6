"""A hash of what a picture shows, whatever file it is in."""

from __future__ import annotations

import hashlib

from PIL import Image


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB (with transparency RGBA) values, row by row: 64 hexadecimal digits.

    The same for a PNG, a WebP without loss, and the picture in memory; metadata has no part in it.
    """
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    return hashlib.sha256(f"{mode} {image.width}x{image.height}\n".encode() + image.tobytes()).hexdigest()


def rgba_md5(image: Image.Image) -> str:
    """MD5 of the RGBA values, row by row: what AUTOMATIC1111 calls a picture that was painted over (`Init image hash`)."""
    return hashlib.md5(image.convert("RGBA").tobytes(), usedforsecurity=False).hexdigest()
