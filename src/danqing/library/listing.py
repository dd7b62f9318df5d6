"""What `danqing models list` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.errors import DanqingError
from danqing.library.content import look
from danqing.library.folders import Entry, Kind
from danqing.library.names import known
from danqing.library.settings import Settings


@dataclass(frozen=True)
class Row:
    """A line of `danqing models list`."""

    name: str
    kind: Kind
    family: str
    """`sd1`, `sdxl` ...; empty where the header does not tell."""
    size: int
    """Bytes."""
    source: str
    path: Path
    problem: str = ""
    """What is wrong with the file, where something is."""


def list_models(settings: Settings, kind: Kind | None = None) -> tuple[Row, ...]:
    """What is known, sorted by name, of one kind or all. Headers are read, but not of what is no model of ours."""
    entries = [entry for entry in known(settings) if kind is None or entry.kind in (kind, "unknown")]
    return tuple(row for entry in entries if (row := _row(entry)) and kind in (None, row.kind))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where it is gone."""
    try:
        if path.is_dir():
            return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _row(entry: Entry) -> Row:
    kind, family, problem = entry.kind, "", ""
    if kind not in ("other", "face_detector", "preprocessor"):
        try:
            content = look(entry.path)
            kind = content.kind if kind == "unknown" else kind
            family = content.family
            if content.kind == "checkpoint":
                family = open_checkpoint(entry.path).family.name
        except DanqingError as error:
            problem = str(error)
    return Row(entry.name, kind, family, size_of(entry.path), entry.source, entry.path, problem)
