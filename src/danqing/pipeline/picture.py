"""A painted picture, with the request that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from danqing.errors import DanqingError
from danqing.metadata import files
from danqing.metadata.infotext import infotext
from danqing.requests import Reference, ResolvedRequest


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels with the resolved request that paints them alone."""

    image: Image.Image
    resolved: ResolvedRequest
    hashes: Mapping[str, Future[str]] = field(default_factory=dict)
    """SHA-256 of the files that took part, by the record's field (`checkpoint`, `vae`), as they become known."""

    @property
    def record(self) -> ResolvedRequest:
        """`resolved` with the files' hashes; waits for them."""
        known: dict[str, Reference] = {}
        for name, future in self.hashes.items():
            reference: Reference = getattr(self.resolved, name)
            known[name] = reference.model_copy(update={"sha256": future.result()})
        return self.resolved.model_copy(update=known)

    @property
    def infotext(self) -> str:
        """What AUTOMATIC1111 writes under a picture."""
        return infotext(self.record)

    def save(self, path: str | Path, *, metadata: bool = True, overwrite: bool = True) -> Path:
        """Write the picture, PNG, JPEG or WebP by its suffix, and return where it is.

        Without `overwrite` a name that is taken becomes `name-2`. Raises DanqingError for a suffix that is
        no picture's, a full disk, or a folder that cannot be written.
        """
        target = Path(path)
        files.check_suffix(target)
        if target.is_dir():
            raise DanqingError(f"{target}: this is a folder; give the picture a name")
        if not overwrite:
            target = files.free_name(target)
        text = self.infotext if metadata else None
        # Defaults are written too: those of a later version may be others.
        record = self.record.model_dump_json(exclude_none=True) if metadata else None
        files.save(self.image, target, text, record)
        return target


def grid(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """All pictures as one, row by row, on black; as near to a square as their number allows."""
    if not pictures:
        raise DanqingError("a grid needs at least one picture")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, ((index % columns) * width, (index // columns) * height))
    return sheet
