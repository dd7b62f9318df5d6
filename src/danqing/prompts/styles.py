"""Styles: named pieces of prompt, from AUTOMATIC1111's styles.csv and from the JSON lists of Fooocus and SDXL.

The CSV's columns are name, prompt, negative_prompt; the old name, text is read too. A JSON file is a list of
{"name", "prompt", "negative_prompt"}.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.paths import path_of
from danqing.vocabulary import nearest, quoted

PLACE = "{prompt}"
"""Where a style's text has this, the prompt goes there; else the style's text follows the prompt after a comma."""
SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str
    negative_prompt: str
    path: Path
    """The file that it is from."""


def merge(prompt: str, style: str) -> str:
    """`prompt` in the place that `style` has for it, or before it; AUTOMATIC1111's rule (its modules/styles.py)."""
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def apply(prompt: str, negative_prompt: str, styles: Iterable[Style]) -> tuple[str, str]:
    """(prompt, negative prompt) with all styles merged in, one after another."""
    for style in styles:
        prompt = merge(prompt, style.prompt)
        negative_prompt = merge(negative_prompt, style.negative_prompt)
    return prompt, negative_prompt


def style_files(roots: Iterable[Path]) -> tuple[Path, ...]:
    """The style files of each root, in their order: styles*.csv, and all in the folders styles and sdxl_styles."""
    found: list[Path] = []
    for root in roots:
        found += sorted(root.glob("styles*.csv"))
        for folder in (root / "styles", root / "sdxl_styles"):
            found += sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    return tuple(dict.fromkeys(path for path in found if path.is_file()))


def read_styles(path: Path) -> tuple[Style, ...]:
    """The styles of one file; rows without a name, or whose name begins with #, are none.

    Raises DanqingError: a file that cannot be read, or is no such list.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DanqingError(f"{path}: the styles cannot be read: {reason}") from None
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    styles = [Style(name.strip(), prompt, negative, path) for name, prompt, negative in rows]
    return tuple(style for style in styles if style.name and not style.name.startswith("#"))


def _csv_rows(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        fields = reader.fieldnames or []
        prompt = "prompt" if "prompt" in fields else "text"
        if fields and not {"name", prompt} <= set(fields):
            raise DanqingError(f"{path}: no styles: its first line should be name,prompt,negative_prompt")
        return [(row["name"] or "", row[prompt] or "", row.get("negative_prompt") or "") for row in reader]
    except csv.Error as error:
        raise DanqingError(f"{path}: the styles cannot be read: {error}") from None


def _json_rows(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DanqingError(f"{path}: the styles cannot be read, it is no JSON: {error}") from None
    kept: list[tuple[str, str, str]] = []
    for row in rows if isinstance(rows, list) else [rows]:
        keys = ("name", "prompt", "negative_prompt")
        texts: list[Any] = [row.get(key) or "" for key in keys] if isinstance(row, dict) else [0]
        if not all(isinstance(text, str) for text in texts):
            raise DanqingError(f'{path}: no styles: it should be a list of {{"name", "prompt", "negative_prompt"}}')
        kept.append((texts[0], texts[1], texts[2]))
    return kept


def all_styles(files: Iterable[Path]) -> tuple[Style, ...]:
    """The styles of all files. Of those with one name the first counts, as what is nearest to the user."""
    by_name: dict[str, Style] = {}
    for path in files:
        for style in read_styles(path):
            by_name.setdefault(style.name, style)
    return tuple(by_name.values())


def choose_styles(names: Sequence[str], files: Iterable[Path]) -> tuple[Style, ...]:
    """The styles of those names, in any case. `FILE.csv:NAME` and `FILE.json:NAME` take them from that file.

    Raises DanqingError for a name that none has, with the nearest.
    """
    known: tuple[Style, ...] | None = None
    chosen = []
    for name in names:
        by_path = re.fullmatch(r"(.+\.(?:csv|json)):(.+)", name, re.IGNORECASE | re.DOTALL)
        if by_path:
            path = path_of(by_path[1])
            chosen.append(_named(by_path[2], all_styles([path]), f"{path} has no style {quoted(by_path[2])}"))
        else:
            known = all_styles(files) if known is None else known
            chosen.append(_named(name, known, f"style {quoted(name)} is unknown"))
    return tuple(chosen)


def _named(name: str, styles: Sequence[Style], missing: str) -> Style:
    name = name.strip()
    for style in styles:
        if style.name == name:
            return style
    for style in styles:
        if style.name.casefold() == name.casefold():
            return style
    like = nearest(name, [style.name for style in styles])
    if like:
        raise DanqingError(f"{missing}; did you mean {' or '.join(like)}?")
    if styles:
        raise DanqingError(f"{missing}; `danqing styles` lists the {len(styles)} that are")
    raise DanqingError(f"{missing}, and no file of styles is there; `danqing styles` says where they are looked for")
