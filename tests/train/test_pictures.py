"""Buckets, the order of pictures, reading and augmentation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from danqing.errors import DanqingError
from danqing.train.dataset import Item
from danqing.train.pictures import Order, Pictures, augment, buckets, nearest_bucket, read_picture, turned_hues
from danqing.train.recipe import Augment, Data

SIZES = st.lists(st.sampled_from([(64, 64), (32, 96), (96, 32)]), min_size=1, max_size=40)


@given(sizes=SIZES, batch=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_epoch_shows_every_picture(sizes: list[tuple[int, int]], batch: int, seed: int, epoch: int) -> None:
    order = Order(sizes, batch, seed)
    shown = [order.at(epoch * order.per_epoch + place) for place in range(order.per_epoch)]
    counts = Counter(row for rows in shown for row in rows)
    assert set(counts) == set(range(len(sizes)))
    assert all(len(rows) == batch and len({sizes[row] for row in rows}) == 1 for rows in shown)
    for size, pictures in Counter(sizes).items():  # only the last batch of a bucket is filled up
        filled = -(-pictures // batch) * batch
        assert sum(counts[row] for row in range(len(sizes)) if sizes[row] == size) == filled
        assert max(counts[row] for row in range(len(sizes)) if sizes[row] == size) == -(-filled // pictures)


@given(sizes=SIZES, batch=st.integers(1, 9), seed=st.integers(0, 5), numbers=st.lists(st.integers(0, 200), max_size=8))
def test_order_is_a_function_of_seed_and_number(
    sizes: list[tuple[int, int]], batch: int, seed: int, numbers: list[int]
) -> None:
    order = Order(sizes, batch, seed)
    assert [order.at(number) for number in numbers] == [Order(sizes, batch, seed).at(number) for number in numbers]


def test_orders_differ_by_epoch_and_seed() -> None:
    sizes = [(8, 8)] * 100
    first = [Order(sizes, 100, seed).at(number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(rows) for rows in first}) == 4


@given(batch=st.integers(1, 6), parts=st.integers(1, 4), number=st.integers(0, 50), pictures=st.integers(1, 30))
def test_parts_make_up_the_batch(batch: int, parts: int, number: int, pictures: int) -> None:
    sizes, batch = [(8, 8)] * pictures, batch * parts
    split, whole = Order(sizes, batch, 3, parts), Order(sizes, batch, 3)
    shown = [split.at(number * parts + part) for part in range(parts)]
    assert sorted(row for rows in shown for row in rows) == sorted(whole.at(number))
    assert {len(rows) for rows in shown} == {batch // parts}


@given(size=st.integers(1, 16).map(lambda n: 64 * n), step=st.sampled_from([8, 16, 32, 64]))
def test_buckets_have_about_the_area(size: int, step: int) -> None:
    sizes = buckets(size, step)
    assert (size, size) in sizes
    assert len(sizes) == len(set(sizes))
    for width, height in sizes:
        assert width % step == height % step == 0
        assert max(width, height) <= 2 * min(width, height)
        assert width * height <= size * size
        assert width * height > size * size - step * max(width, height), "the next multiple would be too large"
        assert (height, width) in sizes


def test_no_buckets_is_one_square() -> None:
    assert buckets(100, 0) == [(100, 100)]


@given(width=st.integers(50, 4000), height=st.integers(50, 4000))
def test_nearest_bucket(width: int, height: int) -> None:
    sizes = buckets(512, 64)
    chosen = nearest_bucket(width, height, sizes)

    def cut(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert cut(chosen) <= min(map(cut, sizes)) + 1e-9


def save(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_reading(tmp_path: Path) -> None:
    """Clear parts are white, rotated photographs stand upright, what is too wide is cut in the middle."""
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 16))
    found = read_picture(save(tmp_path, "clear.png", clear), (32, 32))
    assert found.dtype == torch.uint8
    assert found.shape == (3, 32, 32)
    assert found[:, 0, 0].tolist() == [0, 0, 255]
    assert found[:, 31, 0].tolist() == [255, 255, 255]
    wide = Image.new("RGB", (96, 32), (0, 0, 0))
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    assert read_picture(save(tmp_path, "wide.png", wide), (32, 32)).min() == 255
    assert read_picture(save(tmp_path, "wide.png", wide), (96, 32)).shape == (3, 32, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # its first row is the right side
    top = Image.new("RGB", (32, 16), (0, 0, 0))
    top.paste((255, 255, 255), (0, 0, 32, 8))
    turned = read_picture(save(tmp_path, "turned.png", top, exif=exif), (16, 32))
    assert (turned[0, 16, 0], turned[0, 16, 15]) == (0, 255)
    paletted = clear.convert("P")
    assert read_picture(save(tmp_path, "palette.png", paletted, transparency=0), (32, 32)).shape == (3, 32, 32)


def test_pictures_by_bucket(tmp_path: Path) -> None:
    shapes = [(64, 64), (128, 64), (64, 128), (70, 66)]
    items = [Item(save(tmp_path, f"{i}.png", Image.new("RGB", shape, (i, 0, 0))), ()) for i, shape in enumerate(shapes)]
    pictures = Pictures(items, Data(folder=tmp_path, size=64, bucket_step=16, cache_gb=1e-5))
    assert pictures.sizes[0] == pictures.sizes[3] == (64, 64)
    assert pictures.sizes[1] == (pictures.sizes[2][1], pictures.sizes[2][0]) == (80, 48)
    assert sorted(row for rows in pictures.batches(1) for row in rows) == [0, 1, 2, 3]
    assert sorted(map(sorted, pictures.batches(5))) == [[0, 3], [1], [2]]
    for _ in range(2):  # decoded, then from memory, which is for one picture only
        assert pictures.load([3, 0, 3])[:, 0, 5, 5].tolist() == [3, 0, 3]
    assert len(pictures._kept) == 0
    roomy = Pictures(items, Data(folder=tmp_path, size=64, cache_gb=3 * 64 * 64 * 1.5 / 2**30))
    for _ in range(2):
        assert roomy.load([3, 0])[:, 0, 5, 5].tolist() == [3, 0]
    assert list(roomy._kept) == [3]


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    with pytest.raises(DanqingError, match=r"broken.png: cannot be read as a picture"):
        Pictures([Item(path, ())], Data(folder=tmp_path, size=64)).load([0])
    with pytest.raises(DanqingError, match=r"broken.png: cannot be read as a picture"):
        Pictures([Item(path, ())], Data(folder=tmp_path, size=64, bucket_step=16))


def some(count: int = 5, size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))


def changed(pixels: torch.Tensor, flips: bool = True, seed: int = 0, **settings: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return augment(pixels, torch.full((len(pixels),), flips), Augment(**settings), generator)


def test_no_augmentation_is_the_picture() -> None:
    assert torch.equal(changed(some()), some().float() / 127.5 - 1)


@settings(max_examples=30, deadline=None)
@given(
    crop=st.floats(0, 1), colour=st.floats(0, 1), grey=st.floats(0, 1), hue=st.floats(0, 1), flip=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_range_stays(crop: float, colour: float, grey: float, hue: float, flip: float, seed: int) -> None:
    found = changed(some(3, 16), seed=seed, crop=crop, colour=colour, grey=grey, hue=hue, flip=flip)
    assert found.shape == (3, 3, 16, 16)
    assert found.dtype == torch.float32
    assert found.abs().max() <= 1 + 1e-6
    assert torch.equal(found, changed(some(3, 16), seed=seed, crop=crop, colour=colour, grey=grey, hue=hue, flip=flip))


def test_flips_only_where_they_keep_the_meaning() -> None:
    pixels = some(200, 4)
    plain = pixels.float() / 127.5 - 1
    allowed = torch.arange(200) % 2 == 0
    found = augment(pixels, allowed, Augment(flip=0.5), torch.Generator().manual_seed(1))
    same = (found == plain).flatten(1).all(1)
    turned = (found == plain.flip(-1)).flatten(1).all(1)
    assert (same | turned).all()
    assert same[~allowed].all()
    assert 30 <= turned[allowed].sum() <= 70
    assert torch.equal(augment(pixels, allowed, Augment(flip=1.0), torch.Generator())[allowed], plain.flip(-1)[allowed])


def test_crop_fills_with_the_corners_colour() -> None:
    pixels = torch.full((64, 3, 32, 32), 50, dtype=torch.uint8)
    pixels[:, :, 8:24, 8:24] = 200
    found = changed(pixels, crop=0.3)
    back, front = 50 / 127.5 - 1, 200 / 127.5 - 1
    torch.testing.assert_close(found[:, :, 0, 0], torch.full((64, 3), back))
    assert found.min() >= back - 1e-5
    assert found.max() <= front + 1e-5
    areas = ((found - back) / (front - back)).mean((1, 2, 3)) * 32 * 32
    scales = 16 / areas.sqrt()  # a larger window makes the square smaller
    assert 0.7 - 0.02 <= scales.min() < 0.8
    assert 1.2 < scales.max() <= 1.3 + 0.02


def test_grey_and_colour() -> None:
    grey = changed(some(), grey=1.0)
    assert torch.equal(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(grey[:, 0], (some().float() / 127.5 - 1).mean(1))
    share = (changed(some(1000, 2), grey=0.25).std(1).amax((1, 2)) < 1e-6).float().mean()
    assert share == pytest.approx(0.25, abs=0.05)
    assert not torch.allclose(changed(some(), colour=0.3), changed(some()))


def test_hues_turn_about_grey() -> None:
    angles = torch.tensor([0.0, 2 * math.pi / 3, 1.0])
    turns = turned_hues(angles)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(turns @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(turns[0], torch.eye(3))
    red_to_green = turns[1] @ torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(red_to_green, torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    grey = torch.full((4, 3, 8, 8), 77, dtype=torch.uint8)
    torch.testing.assert_close(changed(grey, hue=1.0), grey.float() / 127.5 - 1)
    assert np.ptp([float(t[0, 0]) for t in changed(some(1, 1).repeat(50, 1, 1, 1), hue=1.0)[:, 0]]) > 0.1
