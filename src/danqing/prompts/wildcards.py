"""Wildcard files for the library dynamicprompts, read strictly. Imported only where the extra `dynamic` is installed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from dynamicprompts.wildcards import WildcardManager
from dynamicprompts.wildcards.collection import WildcardCollection
from dynamicprompts.wildcards.collection.structured import parse_structured_file
from dynamicprompts.wildcards.item import WildcardItem
from dynamicprompts.wildcards.values import WildcardValues

from danqing.errors import DanqingError
from danqing.prompts.dynamic import shield
from danqing.vocabulary import nearest, quoted

_WEIGHTED = re.compile(r"(\d+\.?\d*|\.\d+)::(.*)", re.DOTALL)


class TextFile(WildcardCollection):
    """A file with a value on each line, read when it is first asked for; empty lines and those with # are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get_values(self) -> Iterable[str | WildcardItem]:
        """Raises DanqingError for a file that cannot be read."""
        return self._values

    @cached_property
    def _values(self) -> tuple[str | WildcardItem, ...]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise DanqingError(f"{self.path}: the wildcard cannot be read: {reason}") from None
        lines = [line.strip() for line in text.splitlines()]
        return tuple(_item(line) for line in lines if line and not line.startswith("#"))


def _item(line: str) -> str | WildcardItem:
    match = _WEIGHTED.fullmatch(line)
    return WildcardItem(match[2].strip(), float(match[1])) if match else line


def collections(folder: Path) -> dict[str, WildcardCollection]:
    """The wildcards below `folder` by name: `colours/warm` is colours/warm.txt. Raises DanqingError."""
    found: dict[str, WildcardCollection] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts) or not path.is_file():
            continue
        if path.suffix == ".txt":
            found[below.with_suffix("").as_posix()] = TextFile(path)
        elif path.suffix in (".json", ".yaml"):
            try:
                inside = list(parse_structured_file(path))
            except Exception as error:  # whatever the parsers of JSON and YAML raise
                reason = " ".join(str(error).split())[:200]
                raise DanqingError(f"{path}: the wildcards cannot be read: {reason}") from None
            found |= {(below.parent / name).as_posix(): values for name, values in inside}
    return found


class Wildcards(WildcardManager):
    """The wildcards of several folders; of those with one name the first folder's count."""

    def __init__(self, folders: Sequence[Path], weighted: bool) -> None:
        found: dict[str, WildcardCollection] = {}
        for folder in folders:
            found = collections(folder) | found
        super().__init__(root_map={"": [dict[str, WildcardCollection | list[str]](found)]})
        self.weighted = weighted

    def get_values(self, wildcard: str) -> WildcardValues:
        """The values of all wildcards that match the name or pattern, here or in any folder below.

        Raises DanqingError where none does, or they have no values.
        """
        matches = list(self.match_collections(wildcard)) or list(self.match_collections(f"**/{wildcard}"))
        if not matches:
            names = sorted(self.get_collection_names())
            like = nearest(wildcard, names)
            hint = f"did you mean {' or '.join(like)}?" if like else f"{len(names)} are known; see `danqing styles`"
            raise DanqingError(f"wildcard {quoted(wildcard)} is unknown; {hint}")
        items = dict.fromkeys(item for match in matches for item in match.get_values())
        if not items:
            raise DanqingError(f"wildcard {quoted(wildcard)} has no values; write one on each line of its file")
        return WildcardValues.from_items([self._shielded(item) for item in items])

    def _shielded(self, item: str | WildcardItem) -> str | WildcardItem:
        # the library takes weights below one for none, where it makes all combinations
        weight = getattr(item, "weight", 1.0)
        return WildcardItem(shield(str(item)), weight) if self.weighted and weight != 1 else shield(str(item))
