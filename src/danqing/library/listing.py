"""What `danqing models list` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from danqing.checkpoints import inspect
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
    """What is known, sorted by name; families from the files' headers, of checkpoints, adapters and unsorted files."""
    rows = (_row(entry) for entry in known(settings))
    return tuple(row for row in rows if kind in (None, row.kind))


def _row(entry: Entry) -> Row:
    family, kind, problem = "", entry.kind, ""
    if entry.kind != "other":
        try:
            report = inspect(entry.path)
        except (DanqingError, OSError) as error:
            problem = str(error)
        else:
            family = report.family or ""
            kind = kind if kind != "unknown" else look(entry.path).kind
    return Row(entry.name, kind, family, size_of(entry.path), entry.source, entry.path, problem)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where it is gone."""
    try:
        if path.is_dir():
            return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        return path.stat().st_size
    except OSError:
        return 0
