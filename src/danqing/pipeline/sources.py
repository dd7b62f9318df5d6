"""The requests of a command line: one, or one for each picture of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.pipeline.expand import draw_seed
from danqing.pipeline.extras import pictures_in
from danqing.requests import ImageToImage, Painting, read


def read_all(kind: type[Painting], fields: dict[str, Any]) -> tuple[list[Painting], list[str]]:
    """The requests that `fields` ask for, and a line for each picture of a folder that cannot have one.

    Where `image` is a folder, each of its pictures has a request, all with one seed as in AUTOMATIC1111; and where
    `mask` is a folder too, the mask of its name. Raises DanqingError for a wrong field, or a folder without a picture.
    """
    source = Path(str(fields.get("image", "")))
    if not issubclass(kind, ImageToImage) or not source.is_dir():
        return [read(kind, fields)], []
    pictures = pictures_in([source])
    first = read(kind, {**fields, "image": str(pictures[0]), "mask": None} if "mask" in fields else fields)
    seed = draw_seed() if first.seed in (None, -1) else first.seed
    masks = Path(str(fields.get("mask", "")))
    by_name = {path.stem: path for path in pictures_in([masks])} if fields.get("mask") and masks.is_dir() else None
    requests: list[Painting] = []
    failed: list[str] = []
    for path in pictures:
        more: dict[str, Any] = {"image": str(path), "seed": seed}
        if by_name is not None:
            if path.stem not in by_name:
                failed.append(f"mask: the folder '{masks}' has none for '{path.name}'")
                continue
            more["mask"] = str(by_name[path.stem])
        requests.append(read(kind, {**fields, **more}))
    if not requests:
        raise DanqingError(failed[0])
    return requests, failed
