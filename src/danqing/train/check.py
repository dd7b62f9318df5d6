"""What would hurt a training on a folder of pictures, said before it begins: `danqing dataset check`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from danqing.errors import DanqingError
from danqing.prompts.tokenizer import Tokenizer, clip
from danqing.train.dataset import Item, read_dataset, split
from danqing.train.pictures import UNREADABLE, buckets, nearest_bucket, open_picture, read_picture

LONGEST = 75
"""Tokens of a caption that CLIP's text tower reads, besides start and end."""
THUMB = 16
"""Pixels along the edge of the small pictures by which near duplicates are found."""
NEAR = 2.0
"""Root of the mean squared difference of two thumbs, of 255, up to which pictures are near duplicates: among the four
emoji styles, 127 pairs are below 2, nearly all of them drawings used twice, and none lies between 1.2 and 2."""
CUT = 1 / 3
"""The share of a picture that a crop may take without a word."""
SHOWN = 64
"""Pictures on a contact sheet."""


@dataclass(frozen=True)
class Finding:
    """Something wrong, and the files it is wrong with (and what is the matter with each, where that differs)."""

    text: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What was found in a folder."""

    folder: str
    pictures: int
    held_out: int
    errors: tuple[Finding, ...]
    """What stops a training."""
    warnings: tuple[Finding, ...]
    sizes: Mapping[str, int]
    """How many pictures there are of each size, the most frequent first: "512x768" -> 3."""
    buckets: Mapping[str, int]
    """How many pictures training would show in each size."""


@dataclass(frozen=True)
class _Look:
    """A picture that could be read."""

    item: Item
    name: str
    size: tuple[int, int]
    digest: bytes
    """Of its pixels, so that the same picture in another format is the same."""
    thumb: Tensor
    """(3 * THUMB * THUMB,) float32 in 0..255."""


def check(folder: Path, size: int, bucket_step: int, tokenizer: Tokenizer | None = None) -> Checked:
    """Look at every picture and caption of a training folder.

    size, bucket_step: pixels, as in a recipe's `data`. tokenizer: by which captions are measured; None is Stable
    Diffusion's. Raises DanqingError: a size that no recipe may have, or a folder that cannot be read as one at
    all (see `read_dataset`).
    """
    if not 16 <= size <= 4096:
        raise DanqingError(f"size {size}: give 16 to 4096 pixels")
    if not 0 <= bucket_step <= size:
        raise DanqingError(f"bucket_step {bucket_step}: give 0 to {size} pixels")
    words, counted = (clip(), ", by CLIP's own vocabulary") if tokenizer is None else (tokenizer, "")
    items = read_dataset(folder)
    looks, broken = _looks(items, folder)
    sizes = buckets(size, bucket_step)
    fitted = [nearest_bucket(*look.size, sizes) for look in looks]
    warnings = (
        _finding("picture", "smaller than trained at, to be enlarged", _tiny(looks, fitted)),
        _finding("picture", "cropped by more than a third; bucket_step keeps shapes", _cut(looks, fitted)),
        *_duplicates(looks),
        _finding("picture", "with an empty caption among others", _blank(items, folder)),
        _finding("caption", f"longer than the {LONGEST} tokens that are read{counted}", _long(items, folder, words)),
    )
    _, held_out = split(items)
    if not held_out:
        warnings += (Finding("no picture is held out: an overfit (炸炉) would not be seen", ()),)
    return Checked(
        folder=str(folder),
        pictures=len(items),
        held_out=len(held_out),
        errors=tuple(_errors(items, folder, broken)),
        warnings=tuple(found for found in warnings if found is not None),
        sizes=_histogram(look.size for look in looks),
        buckets=_histogram(iter(fitted)),
    )


def refuse(items: Sequence[Item], folder: Path) -> None:
    """Raise DanqingError that names the files, if a training on these pictures would fail; every picture is decoded."""
    with ThreadPoolExecutor(8) as pool:
        reasons = pool.map(_unreadable, [item.path for item in items])
        broken = [f"{_name(item, folder)} ({reason})" for item, reason in zip(items, reasons) if reason is not None]
    for error in _errors(items, folder, broken):
        more = f" and {len(error.files) - 5} more; danqing dataset check {folder} lists all"
        names = ", ".join(error.files[:5]) + (more if len(error.files) > 5 else "")
        raise DanqingError(f"{folder}: {error.text}: {names}" if names else f"{folder}: {error.text}")


def contact_sheet(folder: Path, size: int, bucket_step: int) -> Image.Image:
    """At most 64 pictures, evenly chosen, as training would see them. Raises DanqingError: none can be read."""
    items = read_dataset(folder)
    readable = [item for item in items if _unreadable(item.path) is None]
    if not readable:
        raise DanqingError(f"{folder}: no picture in it can be read")
    chosen = [readable[i * len(readable) // min(SHOWN, len(readable))] for i in range(min(SHOWN, len(readable)))]
    sizes = buckets(size, bucket_step)
    cell, gap = 128, 8
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), (128, 128, 128))
    for place, item in enumerate(chosen):
        bucket = nearest_bucket(*open_picture(item.path).size, sizes)
        picture = Image.fromarray(read_picture(item.path, bucket).permute(1, 2, 0).numpy())
        picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        row, column = divmod(place, columns)
        left, top = (cell - picture.width) // 2, (cell - picture.height) // 2
        sheet.paste(picture, (gap + column * (cell + gap) + left, gap + row * (cell + gap) + top))
    return sheet


def _errors(items: Sequence[Item], folder: Path, broken: Sequence[str]) -> Iterator[Finding]:
    silent = [_name(item, folder) for item in items if not any(text.strip() for text in item.captions)]
    for text, files in (("that cannot be read", broken), ("without a caption", silent)):
        found = _finding("picture", text, files)
        if found is not None:
            yield found
    training, _ = split(items)
    if len(training) < 2:
        count = "no picture" if not training else "one picture"
        yield Finding(f"{count} to train on; two are needed at least", ())


def _finding(noun: str, text: str, files: Sequence[str]) -> Finding | None:
    plural = "" if len(files) == 1 else "s"
    return Finding(f"{len(files)} {noun}{plural} {text}", tuple(files)) if files else None


def _name(item: Item, folder: Path) -> str:
    return item.path.relative_to(folder).as_posix() if item.path.is_relative_to(folder) else str(item.path)


def _unreadable(path: Path) -> str | None:
    """Why the picture cannot be decoded; None where it can."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (64, 64))  # JPEG: all of it is read, little of it is computed
            image.load()
    except UNREADABLE as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known format"
    return str(error) or type(error).__name__


def _looks(items: Sequence[Item], folder: Path) -> tuple[list[_Look], list[str]]:
    """What can be read, and the names of what cannot, with the reasons."""

    def look(item: Item) -> _Look | str:
        name = _name(item, folder)
        reason = _unreadable(item.path)
        if reason is not None:
            return f"{name} ({reason})"
        image = open_picture(item.path)
        small = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32).ravel()
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return _Look(item, name, image.size, digest, torch.from_numpy(small))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, items))
    return [one for one in found if isinstance(one, _Look)], [one for one in found if isinstance(one, str)]


def _tiny(looks: Sequence[_Look], fitted: Sequence[tuple[int, int]]) -> list[str]:
    return [
        f"{look.name} ({look.size[0]}x{look.size[1]})"
        for look, size in zip(looks, fitted)
        if look.size[0] < size[0] or look.size[1] < size[1]
    ]


def _cut(looks: Sequence[_Look], fitted: Sequence[tuple[int, int]]) -> list[str]:
    def lost(own: tuple[int, int], bucket: tuple[int, int]) -> float:
        shapes = own[0] / own[1], bucket[0] / bucket[1]
        return 1 - min(shapes) / max(shapes)

    return [
        f"{look.name} ({look.size[0]}x{look.size[1]})"
        for look, size in zip(looks, fitted)
        if lost(look.size, size) > CUT
    ]


def _blank(items: Sequence[Item], folder: Path) -> list[str]:
    """Pictures with captions, of which some are empty."""
    return [
        _name(item, folder)
        for item in items
        if any(text.strip() for text in item.captions) and not all(text.strip() for text in item.captions)
    ]


def _long(items: Sequence[Item], folder: Path, tokenizer: Tokenizer) -> list[str]:
    found = []
    for item in items:
        for text in item.captions:
            # a token has a byte at least
            count = len(tokenizer.encode(text)) if len(text.encode("utf-8", "replace")) > LONGEST else 0
            if count > LONGEST:
                found.append(f"{_name(item, folder)} ({count} tokens: {text[:40]}...)")
    return found


def _histogram(sizes: Iterator[tuple[int, int]]) -> dict[str, int]:
    return {f"{width}x{height}": count for (width, height), count in Counter(sizes).most_common()}


def _duplicates(looks: Sequence[_Look]) -> Iterator[Finding | None]:
    """Pictures that are there twice, exactly or nearly, and those that are both trained on and held out."""
    same: dict[str, str] = {}
    like: dict[str, str] = {}
    across: dict[str, str] = {}
    for i, j in near_pairs(torch.stack([look.thumb for look in looks])) if looks else []:
        first, second = looks[i], looks[j]
        sign = "=" if first.digest == second.digest else "~"
        if first.item.held_out == second.item.held_out:
            found = same if sign == "=" else like
            found.setdefault(second.name, f"{second.name} {sign} {first.name}")  # of many alike, the first
        else:
            held, trained = (first, second) if first.item.held_out else (second, first)
            across.setdefault(held.name, f"{held.name} {sign} {trained.name}")
    yield _finding("picture", "there before, which counts twice", tuple(same.values()))
    yield _finding("picture", "nearly the same as one before", tuple(like.values()))
    yield _finding("held-out picture", "trained on as well, or nearly: scores on it say little", tuple(across.values()))


def near_pairs(thumbs: Tensor, near: float = NEAR) -> list[tuple[int, int]]:
    """Pairs (i < j) of rows of `thumbs` (N, D) whose root mean squared difference is at most `near`, in order.

    Exact: rows are sorted along their widest direction, and only those are compared that are near along it.
    """
    if len(thumbs) < 2:
        return []
    centred = thumbs - thumbs.mean(0)
    # the widest direction by power iteration: any direction is right, a wide one is quick
    direction = centred[int(centred.square().sum(1).argmax())].clone()
    for _ in range(8):
        direction = centred.T @ (centred @ direction)
        direction = direction / direction.norm().clamp(min=1e-12)
    along = centred @ direction
    order = along.argsort()
    along, centred = along[order].contiguous(), centred[order]
    reach = near * thumbs.shape[1] ** 0.5
    pairs, block = [], 256
    for start in range(0, len(centred), block):
        rows = centred[start : start + block]
        end = int(torch.searchsorted(along, along[start : start + block][-1] + reach, right=True))
        # float32's rounding of the matrix product is well below the distance that is asked about
        gaps = torch.cdist(rows, centred[start:end])
        for i, j in torch.nonzero(gaps <= reach).tolist():
            if j > i:
                a, b = int(order[start + i]), int(order[start + j])
                pairs.append((min(a, b), max(a, b)))
    return sorted(pairs)
