"""Grids with labels: pictures in rows and columns, with what each row and column stands for, on white."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from danqing.errors import DanqingError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Label = str | Sequence[tuple[str, bool]]
"""A text; or lines of which those that are False are struck through, as for a prompt matrix."""

FONTS = (
    # Fonts with Chinese, by the names of their files on Linux, Windows and macOS; then one with many other scripts.
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("msyh.ttc", "simhei.ttf", "simsun.ttc", "PingFang.ttc", "STHeiti Light.ttc", "Hiragino Sans GB.ttc"),
    *("Arial Unicode.ttf", "DejaVuSans.ttf"),
)
SMALLEST = 10
"""Pixels of the smallest text."""
MOST_PIXELS = 200_000_000
"""A larger grid is made of smaller pictures (AUTOMATIC1111's limit)."""
_BLACK, _GREY, _WHITE = (0, 0, 0), (153, 153, 153), (255, 255, 255)


@dataclass(frozen=True)
class Fonts:
    """The fonts to draw `text` with, at any size."""

    name: str | None
    """A font file of the system; None is Pillow's own."""
    missing: str
    """What of the text it has no glyphs for."""

    def at(self, size: int) -> Font:
        return ImageFont.load_default(size) if self.name is None else ImageFont.truetype(self.name, size)


def fonts_for(text: str, names: Sequence[str] = FONTS) -> Fonts:
    """Pillow's own font where it has all glyphs of `text`; else the font of the system that misses the fewest."""
    best = Fonts(None, _missing(ImageFont.load_default(SMALLEST), text))
    for name in names:
        if not best.missing:
            break
        try:
            found = Fonts(name, _missing(ImageFont.truetype(name, SMALLEST), text))
        except OSError:
            continue
        best = min(best, found, key=lambda fonts: len(fonts.missing))
    return best


def _missing(font: Font, text: str) -> str:
    """The characters of `text` that `font` draws as it draws one that no font has."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return "".join(sorted({char for char in text if ord(char) > 255}))
    nothing = bytes(font.getmask("\U0010ffff"))
    chars = {char for char in text if not char.isspace() and char.isprintable()}
    return "".join(sorted(char for char in chars if ord(char) > 126 and bytes(font.getmask(char)) == nothing))


def labelled(
    pictures: Sequence[Image.Image | None],
    columns: Sequence[Label],
    rows: Sequence[Label],
    *,
    title: str = "",
    margin: int = 0,
    note: Callable[[str], None] = lambda line: None,
) -> Image.Image:
    """Pictures row by row, labels of `columns` above and of `rows` at the left, `title` over all; None is left white.

    Sizes follow AUTOMATIC1111: text of a 25th of a picture's width and height, row labels three quarters of a
    picture wide. `margin` is the pixels between pictures. Cells are as large as the largest picture. `note` is told
    of characters that no font has, and where the pictures had to be made smaller.
    Raises DanqingError without any picture.
    """
    known = [picture for picture in pictures if picture is not None]
    if not known:
        raise DanqingError("a grid needs at least one picture")
    fonts = fonts_for("".join(_text(label) for label in (*columns, *rows, title)))
    if fonts.missing:
        note(
            f"no font on this system has {fonts.missing[:20]}; install one, such as Noto Sans CJK, to see labels whole"
        )
    width, height = max(p.width for p in known), max(p.height for p in known)
    size = max((width + height) // 25, SMALLEST)
    left = max(width * 3 // 4, 4 * size) if any(map(_text, rows)) else 0
    heads = [_fit(label, fonts, size, width, None) for label in columns]
    sides = [_fit(label, fonts, size, left - size, height) for label in rows]
    top = max((block.height for block in heads), default=0)
    top += size if top else 0
    across = left + len(columns) * width + (len(columns) - 1) * margin
    over = _fit(title, fonts, size, across, None)
    banner = over.height + size if over.height else 0
    down = banner + top + len(rows) * height + (len(rows) - 1) * margin
    sheet = Image.new("RGB", (across, down), _WHITE)
    pen = ImageDraw.Draw(sheet)
    over.draw(pen, across / 2, banner / 2)
    for index, block in enumerate(heads):
        block.draw(pen, left + index * (width + margin) + width / 2, banner + top / 2)
    for index, block in enumerate(sides):
        block.draw(pen, left / 2, banner + top + index * (height + margin) + height / 2)
    for index, picture in enumerate(pictures):
        if picture is not None:
            row, column = divmod(index, len(columns))
            x = left + column * (width + margin) + (width - picture.width) // 2
            sheet.paste(picture, (x, banner + top + row * (height + margin) + (height - picture.height) // 2))
    return sheet


def beside(sheets: Sequence[Image.Image], margin: int = 0) -> Image.Image:
    """Grids side by side, on white, as the Z axis has them."""
    across = sum(sheet.width for sheet in sheets) + margin * (len(sheets) - 1)
    whole = Image.new("RGB", (across, max(sheet.height for sheet in sheets)), _WHITE)
    x = 0
    for sheet in sheets:
        whole.paste(sheet, (x, whole.height - sheet.height))
        x += sheet.width + margin
    return whole


def shrunk(pictures: Sequence[Image.Image | None], note: Callable[[str], None]) -> list[Image.Image | None]:
    """The pictures, made smaller where all of them together are above MOST_PIXELS; `note` is told."""
    sizes = [picture.width * picture.height for picture in pictures if picture is not None]
    pixels = max(sizes, default=0) * len(pictures)
    if pixels <= MOST_PIXELS:
        return list(pictures)
    scale = (MOST_PIXELS / pixels) ** 0.5
    note(f"the grid of {len(pictures)} pictures would be too large; it shows them at {scale:.0%}")

    def smaller(picture: Image.Image) -> Image.Image:
        size = (max(int(picture.width * scale), 1), max(int(picture.height * scale), 1))
        return picture.resize(size, Image.Resampling.LANCZOS)

    return [None if picture is None else smaller(picture) for picture in pictures]


@dataclass(frozen=True)
class _Block:
    """Lines of text, each with whether it is struck through, centred on a point."""

    lines: tuple[tuple[str, bool], ...]
    font: Font
    step: int
    """Pixels from line to line."""

    @property
    def height(self) -> int:
        return self.step * len(self.lines)

    def draw(self, pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
        for index, (line, active) in enumerate(self.lines):
            middle = y - self.height / 2 + (index + 0.5) * self.step
            pen.text((x, middle), line, fill=_BLACK if active else _GREY, font=self.font, anchor="mm")
            if not active:
                half = self.font.getlength(line) / 2
                pen.line((x - half, middle, x + half, middle), fill=_GREY, width=max(self.step // 12, 1))


def _text(label: Label) -> str:
    return label if isinstance(label, str) else "".join(text for text, _ in label)


def _fit(label: Label, fonts: Fonts, size: int, width: int, height: int | None) -> _Block:
    """The label in lines of at most `width` pixels; smaller where it is higher than `height`, and then cut."""
    parts = [(label, True)] if isinstance(label, str) else list(label)
    while True:
        font, step = fonts.at(size), size + size // 4
        lines = tuple((line, active) for text, active in parts for line in _wrapped(text, font, width))
        if height is None or len(lines) * step <= height or size <= SMALLEST:
            break
        size = max(size * 4 // 5, SMALLEST)
    most = len(lines) if height is None else max(height // step, 1)
    if len(lines) > most:
        last, active = lines[most - 1]
        lines = (*lines[: most - 1], (last[:-1] + "…", active))
    return _Block(lines, font, step)


def _wrapped(text: str, font: Font, width: int) -> Iterator[str]:
    """Lines of `text`: broken at spaces, and within words that are longer than a line or of Chinese."""
    for paragraph in text.splitlines():
        line = ""
        for word in _words(paragraph):
            if font.getlength(line + word.rstrip()) <= width:
                line += word
                continue
            if line.strip():
                yield line.strip()
            line = word
            while len(line) > 1 and font.getlength(line.rstrip()) > width:
                count = next(
                    n for n in itertools.count(len(line) - 1, -1) if n == 1 or font.getlength(line[:n]) <= width
                )
                yield line[:count]
                line = line[count:]
        if line.strip():
            yield line.strip()


def _words(text: str) -> Iterator[str]:
    word = ""
    for char in text:
        if ord(char) >= 0x2E80:  # Chinese, Japanese and Korean have no spaces to break at
            if word:
                yield word
            yield char
            word = ""
            continue
        word += char
        if char == " ":
            yield word
            word = ""
    if word:
        yield word
