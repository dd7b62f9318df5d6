"""What is done with the gallery besides looking: pictures of other tools come in, two are compared."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.metadata.files import SUFFIXES, PictureFile, free_name, read_picture, save
from danqing.metadata.read import as_dict, as_infotext, tell
from danqing.metadata.told import Told
from danqing.paths import path_of
from danqing.pipeline.naming import Job, Subject, expand
from danqing.requests import kind_of
from danqing.serve.accept import sync_folder
from danqing.serve.engine import Engine
from danqing.serve.store import NewPicture, Stored
from danqing.vocabulary import quoted

MOST = 100_000
"""Files that one import looks at."""


@dataclass(frozen=True)
class Imported:
    """What came of a folder."""

    added: int
    known: int
    """That the gallery had already."""
    failed: tuple[str, ...]
    """A line for each file that could not be read."""


def import_folder(engine: Engine, folder: Path, roots: Sequence[Path]) -> Imported:
    """Copy the pictures in `folder` and below into the gallery, found by their own metadata, whichever tool wrote it.

    A picture is known by its bytes, so that importing twice adds nothing. Raises DanqingError for a folder that is not
    in one of `roots`, or not there.
    """
    real = path_of(folder).resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise DanqingError(f"folder: {quoted(str(folder))} is in no folder that may be imported (--import-dir)")
    if not real.is_dir():
        raise DanqingError(f"folder: there is no folder {quoted(str(folder))}")
    added, known = 0, 0
    failed: list[str] = []
    for path in _pictures(real, roots):
        try:
            new = engine.store.add_pictures([_kept(engine.folder, path)])
        except DanqingError as error:
            failed.append(str(error))
            continue
        added, known = added + len(new), known + (not new)
    return Imported(added, known, tuple(failed))


def _pictures(folder: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """The picture files below, by name; links that lead out of the roots are left alone."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            count += 1
            if count > MOST:
                raise DanqingError(f"folder: has more than {MOST} files; import its folders one by one")
            inside = any(path.resolve().is_relative_to(root.resolve()) for root in roots)
            if path.suffix.lower() in SUFFIXES and inside and path.is_file():
                yield path


def _kept(data: Path, path: Path) -> NewPicture:
    """The picture, copied below `data` by its hash."""
    file = read_picture(path)
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    place = f"pictures/imported/{digest}{path.suffix.lower()}"
    target = data / place
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            shutil.copyfile(path, beside)
            with beside.open("rb") as copied:
                os.fsync(copied.fileno())
            os.replace(beside, target)
            sync_folder(target.parent)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise DanqingError(f"{path}: cannot be copied: {error.strerror}") from None
    return _described(file, place, path.stat().st_mtime)


def _described(file: PictureFile, place: str, created: float) -> NewPicture:
    width, height = file.image.size
    told = _told(file)
    if told is None:
        return NewPicture(0, place, width, height, created=created)
    request = told.request
    return NewPicture(
        index=0,
        path=place,
        width=width,
        height=height,
        record=None if told.resolved is None else told.resolved.model_dump_json(exclude_none=True),
        infotext=file.texts.get("parameters") or as_infotext(told),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model="" if told.checkpoint is None else told.checkpoint.name,
        sampler=request.sampler_name or "",
        seed=request.seed,
        kind=kind_of(request),
        created=created,
    )


def _told(file: PictureFile) -> Told | None:
    """How it was made, or None where it does not say."""
    try:
        return tell(file)
    except DanqingError:
        return None


def copied(engine: Engine, picture: Stored) -> Path:
    """A copy of a picture in the settings' folder of pictures, by their pattern and in their format. Returns its path.

    A folder that is not absolute is in the data folder. Raises DanqingError where the copy cannot be written.
    """
    settings = engine.models.settings
    folder = settings.data_dir / settings.output_folder
    path = engine.path(picture)
    file = read_picture(path)
    told = _told(file)
    name = folder / path.stem
    if told is not None and told.resolved is not None:
        name = expand(settings.output_pattern, Subject(told.resolved, file.image, Job()), folder)
    path = free_name(name.with_name(f"{name.name}.{settings.output_format}"))
    words = settings.write_metadata
    save(
        file.image,
        path,
        picture.infotext or None if words else None,
        picture.record if words else None,
        quality=settings.picture_quality,
        lossless=settings.picture_lossless,
    )
    return path


def request_of(engine: Engine, picture: Stored) -> dict[str, Any]:
    """How a picture was made, as `danqing pnginfo` has it. Raises DanqingError where it does not say."""
    return as_dict(tell(read_picture(engine.path(picture))))


def differences(engine: Engine, one: Stored, other: Stored) -> dict[str, tuple[Any, Any]]:
    """Each field that is not the same in both, with both values. Raises DanqingError as `request_of` does."""
    left, right = (_flat(request_of(engine, each)) for each in (one, other))
    return {
        name: (left.get(name), right.get(name))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    }


def _flat(told: dict[str, Any]) -> dict[str, Any]:
    """The request's fields, and what else took part."""
    others = {name: value for name, value in told.items() if name not in ("request", "pixels", "notes")}
    return {**told["request"], **others}
