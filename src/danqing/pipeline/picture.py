"""A painted picture, with the request that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata import files
from danqing.metadata.infotext import infotext
from danqing.metadata.pixels import pixels_sha256
from danqing.request_parts import Reference
from danqing.requests import Platform, ResolvedRequest


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels with the resolved request that paints them alone."""

    image: Image.Image
    resolved: ResolvedRequest
    hashes: Mapping[str, Future[str]] = field(default_factory=dict)
    """SHA-256 of the files that took part, by the record's field (`checkpoint`, `vae`, or a key of `others`), as they
    become known."""
    platform: Platform | None = None

    @property
    def record(self) -> ResolvedRequest:
        """`resolved` with the files' hashes, that of the pixels, and the platform; waits for them."""
        changes: dict[str, Any] = {"pixels": pixels_sha256(self.image), "platform": self.platform}
        others = dict(self.resolved.others)
        for name, future in self.hashes.items():
            reference: Reference = others[name] if name in others else getattr(self.resolved, name)
            hashed = reference.model_copy(update={"sha256": future.result()})
            if name in others:
                others[name] = hashed
            else:
                changes[name] = hashed
        return self.resolved.model_copy(update={**changes, "others": others})

    @property
    def infotext(self) -> str:
        """What AUTOMATIC1111 writes under a picture."""
        return infotext(self.record)

    def save(
        self,
        path: str | Path,
        *,
        metadata: bool = True,
        overwrite: bool = True,
        quality: int = 95,
        lossless: bool = True,
    ) -> Path:
        """Write the picture by its suffix, .png, .jpg, .webp, .avif or .jxl, and return where it is.

        Without `overwrite` a name that is taken becomes `name-2`. `quality` (1 to 100) is for JPEG and AVIF, and where
        `lossless` is False for WebP and JPEG XL. Raises DanqingError for a suffix that is
        no picture's, a full disk, or a folder that cannot be written.
        """
        target = Path(path)
        files.check_suffix(target)
        if target.is_dir():
            raise DanqingError(f"{target}: this is a folder; give the picture a name")
        if not overwrite:
            target = files.free_name(target)
        made = self.record if metadata else None
        text = infotext(made) if made else None
        # Defaults are written too: those of a later version may be others.
        record = made.model_dump_json(exclude_none=True) if made else None
        files.save(self.image, target, text, record, quality=quality, lossless=lossless)
        return target


def platform_of(model: Model) -> Platform:
    """What `model` computes on."""
    return Platform(
        torch=str(torch.__version__),
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        engine="eager" if model.engine is None else model.engine.name,
    )


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
