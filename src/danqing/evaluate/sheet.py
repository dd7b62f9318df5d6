"""The contact sheet: what was painted, what is real, what it may have been copied from."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from danqing.evaluate.bundled import Shown

TITLES = ("painted", "real", "nearest trained on")
GAP, HEAD = 8, 20
MOST = 48


def contact_sheet(shown: Shown, columns: int = 4) -> Image.Image:
    """Triples of pictures, `columns` of them side by side, at most 48 spread over all pairs, with titles above."""
    count = min(MOST, len(shown.pairs))
    rows = [place * len(shown.pairs) // count for place in range(count)]
    size = shown.painted.shape[-1]
    columns = min(columns, count)
    width, lines = 3 * size + GAP, -(-count // columns)
    sheet = Image.new("RGB", (columns * width - GAP, HEAD + lines * (size + GAP) - GAP), (235, 235, 235))
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        left, top = place % columns * width, HEAD + place // columns * (size + GAP)
        for index, pictures in enumerate((shown.painted, shown.real, shown.nearest)):
            sheet.paste(_image(pictures[row]), (left + index * size, top))
            if place < columns:
                pen.text((left + index * size + 2, 4), TITLES[index], fill=(0, 0, 0))
    return sheet


def _image(pixels: Tensor) -> Image.Image:
    """(3, H, W) uint8 as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
