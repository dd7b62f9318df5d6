"""The pairs that are never trained on, as a list for `danqing evaluate`, and the pictures that it measures by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.evaluate.bundled import HELD_OUT, Drawings, Pair
from danqing.train.dataset import Item, read_dataset, split
from danqing.train.pictures import Pictures
from danqing.train.recipe import Data


def pair_of(item: Item) -> Pair:
    """What a picture of metadata.jsonl shows; the first half of its captions is English, the second Chinese.

    Raises DanqingError where concept, style or captions are missing.
    """
    if not item.captions or not {"concept", "style"} <= item.labels.keys():
        raise DanqingError(f"{item.path}: metadata.jsonl should give its concept, style and captions")
    chinese = item.captions[len(item.captions) // 2]
    return Pair(item.labels["concept"], item.labels["style"], item.captions[0], chinese)


def write_held_out(folder: Path, target: Path = HELD_OUT) -> int:
    """Write the held-out pairs of a dataset's folder as the list that is committed; returns how many they are."""
    pairs = [pair_of(item) for item in split(read_dataset(folder))[1]]
    rows = ",\n".join(json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs)
    with beside(target, len(rows.encode())) as new:
        new.write_text(f"[\n{rows}\n]\n", "utf-8")
    return len(pairs)


def drawings(folder: Path, asked: Sequence[Pair], size: int) -> tuple[Drawings, Drawings]:
    """(those that are trained on, those of the pairs `asked`), size x size pixels, of a dataset's folder.

    Raises DanqingError: pictures without concept and style, pairs without a picture, nothing to train on.
    """
    items = read_dataset(folder)
    pairs = [pair_of(item) for item in items]
    places = {(pair.concept, pair.style): row for row, pair in enumerate(pairs)}
    absent = [f"{pair.style}/{pair.concept}" for pair in asked if (pair.concept, pair.style) not in places]
    if absent:
        raise DanqingError(
            f"{folder}: {len(absent)} of the {len(asked)} held-out pictures are not there ({', '.join(absent[:3])}"
            f"{' ...' if len(absent) > 3 else ''}); make the folder by danqing dataset emoji"
        )
    held_out = [places[pair.concept, pair.style] for pair in asked]
    training = sorted(set(range(len(items))) - set(held_out))
    if not training:
        raise DanqingError(f"{folder}: all pictures are held out; it needs those that were trained on too")
    return _load(items, training, size, [pairs[row] for row in training]), _load(items, held_out, size, asked)


def _load(items: Sequence[Item], rows: Sequence[int], size: int, pairs: Sequence[Pair]) -> Drawings:
    pictures = Pictures([items[row] for row in rows], Data(folder=Path(), size=size, cache_gb=0))
    return Drawings(tuple(pairs), pictures.load(range(len(rows))))
