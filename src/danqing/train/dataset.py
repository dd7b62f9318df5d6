"""A folder of pictures with captions, as training reads it.

Either `metadata.jsonl` (the Hub's image folders: a line {"file_name": ..., "text": ...} per picture; `text` may be a
list of captions, of which one is drawn each time), or beside each picture a text file of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danqing.errors import DanqingError

METADATA = "metadata.jsonl"
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl", ".gif", ".tif", ".tiff"})
CAPTIONS = (".txt", ".caption")


@dataclass(frozen=True)
class Item:
    """A picture and what is known of it."""

    path: Path
    captions: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Other text columns of metadata.jsonl: `concept`, `style` ..."""
    held_out: bool = False
    """Never trained on: what a model is measured by."""
    flip: bool = False
    """Whether a mirror keeps its meaning."""


def read_dataset(folder: Path) -> list[Item]:
    """The folder's pictures, in the order of metadata.jsonl or of their names; pictures are not opened.

    Raises DanqingError that names the file and line: no such folder, no pictures, a line that is no JSON, a picture
    that is not there. A picture without a caption has none here: `check` says so.
    """
    if not folder.is_dir():
        raise DanqingError(f"{folder}: there is no such folder")
    table = folder / METADATA
    items = _from_table(table) if table.is_file() else _from_files(folder)
    if not items:
        raise DanqingError(f"{folder}: there are no pictures in it")
    return items


def _from_table(table: Path) -> list[Item]:
    items = []
    try:
        lines = table.read_text("utf-8").split("\n")  # a caption may hold what Unicode calls a line's end
    except UnicodeDecodeError as error:
        raise DanqingError(f"{table}: is not in UTF-8 ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DanqingError(f"{where}: is no JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DanqingError(f"{where}: has no file_name")
        text = row.get("text", ())
        captions = (text,) if isinstance(text, str) else text
        if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
            raise DanqingError(f"{where}: text is neither a caption nor a list of captions")
        path = table.parent / row["file_name"]
        if not path.is_file():
            raise DanqingError(f"{where}: {row['file_name']} is not there")
        known = ("file_name", "text", "held_out", "flip")
        labels = {key: value for key, value in row.items() if key not in known and isinstance(value, str)}
        items.append(
            Item(path, tuple(captions), labels, bool(row.get("held_out", False)), bool(row.get("flip", False)))
        )
    return items


def _from_files(folder: Path) -> list[Item]:
    items = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PICTURES or not path.is_file():
            continue
        beside = next((path.with_suffix(s) for s in CAPTIONS if path.with_suffix(s).is_file()), None)
        text = beside.read_text("utf-8", errors="replace").strip() if beside else ""
        items.append(Item(path, (text,) if text else ()))
    return items


def split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """(what is trained on, what is held out)."""
    return [item for item in items if not item.held_out], [item for item in items if item.held_out]
