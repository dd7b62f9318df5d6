"""Training pictures as tensors: aspect buckets, the order in which they are shown, augmentation.

Which pictures an update sees, and how they are changed, is a function of the seed and the update's number alone: a run
that goes on from a saved state sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from danqing.errors import DanqingError
from danqing.train.dataset import Item
from danqing.train.recipe import Augment, Data

WHITE = (255, 255, 255)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or broken ones."""


def buckets(size: int, step: int, ratio: float = 2.0) -> list[tuple[int, int]]:
    """Sizes (width, height) with about size x size pixels, multiples of `step`, at most `ratio` as long as wide.

    A step of 0 is the one square.
    """
    if step == 0:
        return [(size, size)]
    sizes = {(size, size)}
    for width in range(step, int(size * ratio) + 1, step):
        height = int(size * size / width) // step * step
        if height and max(width, height) / min(width, height) <= ratio:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is nearest to the picture's."""
    return min(sizes, key=lambda size: abs(np.log(size[0] / size[1]) - np.log(width / height)))


class Pictures:
    """The pictures of a training folder, decoded, fitted to their buckets, and kept while memory is granted."""

    def __init__(self, items: Sequence[Item], data: Data) -> None:
        """Raises DanqingError that names a picture which cannot be opened."""
        self.items = list(items)
        sizes = buckets(data.size, data.bucket_step)
        self.sizes = [sizes[0] if len(sizes) == 1 else _bucket_of(item.path, sizes) for item in items]
        self._room = int(data.cache_gb * 2**30)
        self._kept: dict[int, Tensor] = {}

    def load(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W) uint8 of pictures of one bucket."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._kept]
        found: dict[int, Tensor] = {}
        with ThreadPoolExecutor(min(8, max(1, len(missing)))) as pool:
            pictures = pool.map(lambda row: read_picture(self.items[row].path, self.sizes[row]), missing)
            for row, picture in zip(missing, pictures):
                found[row] = picture
                if self._room >= picture.nbytes:
                    self._kept[row] = picture
                    self._room -= picture.nbytes
        return torch.stack([found[row] if row in found else self._kept[row] for row in rows])

    def batches(self, most: int) -> Iterator[list[int]]:
        """All rows once, at most so many of one bucket at a time."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for row, size in enumerate(self.sizes):
            by_size.setdefault(size, []).append(row)
        for rows in by_size.values():
            yield from (rows[start : start + most] for start in range(0, len(rows), most))


def _bucket_of(path: Path, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return nearest_bucket(*ImageOps.exif_transpose(image).size, sizes)
    except UNREADABLE as error:
        raise DanqingError(f"{path}: cannot be read as a picture ({error})") from None


def open_picture(path: Path) -> Image.Image:
    """The picture in RGB, upright, on white where it is clear. Raises DanqingError that names it."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
            return image.convert("RGB")
    except UNREADABLE as error:
        raise DanqingError(f"{path}: cannot be read as a picture ({error})") from None


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8: the picture, on white where it is clear, resized to cover `size` (width, height), centre cut."""
    image = open_picture(path)
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Order:
    """Which pictures each batch has: every epoch all of them in a new order, a batch of one bucket."""

    def __init__(self, sizes: Sequence[tuple[int, int]], batch: int, seed: int, parts: int = 1) -> None:
        """Batches of `batch` pictures, each shown in so many `parts`."""
        self.batch, self.seed, self.parts = batch, seed, parts
        self._rows: dict[tuple[int, int], list[int]] = {}
        for row, size in enumerate(sizes):
            self._rows.setdefault(size, []).append(row)
        self.per_epoch = sum(-(-len(rows) // batch) for rows in self._rows.values())
        self._epoch, self._batches = -1, [[0]]

    def at(self, number: int) -> list[int]:
        """The rows of part `number`, counted from 0 without end; a bucket's last batch is filled from its first."""
        batch, part = divmod(number, self.parts)
        epoch, place = divmod(batch, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place][part :: self.parts]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        draw = np.random.default_rng((self.seed, epoch))
        batches = []
        for rows in self._rows.values():
            mixed = [rows[i] for i in draw.permutation(len(rows))]
            for start in range(0, len(mixed), self.batch):
                batches.append([mixed[(start + i) % len(mixed)] for i in range(self.batch)])
        return [batches[i] for i in draw.permutation(len(batches))]


def augment(pixels: Tensor, flips: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1], changed as `settings` say.

    `flips` (B,) bool: whose meaning a mirror keeps. What a crop adds has the colour of the picture's corner.
    """
    x = pixels.float() / 127.5 - 1
    count = len(x)

    def draw(low: float = 0.0, high: float = 1.0) -> Tensor:
        return (torch.rand(count, generator=generator) * (high - low) + low).to(x.device)

    if settings.crop:
        scale = 1 + settings.crop * draw(-1, 1)
        reach = settings.crop
        theta = torch.zeros(count, 2, 3, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, 0, 2], theta[:, 1, 2] = reach * draw(-1, 1), reach * draw(-1, 1)
        corner = x[:, :, :1, :1]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x - corner, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + corner
    if settings.flip:
        mirrored = flips.to(x.device) & (draw() < settings.flip)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if settings.colour:
        reach = settings.colour
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (1 + reach * draw(-1, 1))[:, None, None, None]
        x = x * (1 + reach * draw(-1, 1))[:, None, None, None] + (reach * draw(-1, 1))[:, None, None, None] / 2
        x = x.clamp(-1, 1)
    if settings.grey:
        x = torch.where((draw() < settings.grey)[:, None, None, None], x.mean(1, keepdim=True).expand_as(x), x)
    if settings.hue:
        x = torch.einsum("bij,bjhw->bihw", turned_hues(torch.pi * settings.hue * draw(-1, 1)), x).clamp(-1, 1)
    return x


def turned_hues(angles: Tensor) -> Tensor:
    """(B,) radians -> (B, 3, 3): rotations of RGB about the axis of greys (Rodrigues' formula)."""
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    onto = torch.full((3, 3), 1 / 3, device=angles.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angles.device) / 3**0.5
    return cos * torch.eye(3, device=angles.device) + sin * cross + (1 - cos) * onto
