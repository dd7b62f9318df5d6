"""What would hurt a training is found, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from danqing.errors import DanqingError
from danqing.prompts.tokenizer import clip
from danqing.train.check import Checked, check, contact_sheet, near_pairs, refuse
from danqing.train.dataset import read_dataset


def noise(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    ).resize(size, Image.Resampling.NEAREST)


def folder_of(folder: Path, count: int = 6, held_out: tuple[int, ...] = (5,)) -> Path:
    """Different pictures of 48x48, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise(number).save(folder / f"{number}.png")
    return describe(folder, {f"{n}.png": {"text": f"noise {n}", "held_out": n in held_out} for n in range(count)})


def describe(folder: Path, rows: dict[str, dict[str, object]]) -> Path:
    lines = [json.dumps({"file_name": name, **row}) for name, row in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def described(folder: Path) -> dict[str, dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return {row.pop("file_name"): row for row in rows}


def add(folder: Path, name: str, picture: Image.Image | bytes, **row: object) -> None:
    if isinstance(picture, bytes):
        (folder / name).write_bytes(picture)
    else:
        picture.save(folder / name)
    describe(folder, {**described(folder), name: {"text": name, **row}})


def found(checked: Checked) -> dict[str, tuple[str, ...]]:
    return {finding.text: finding.files for finding in (*checked.errors, *checked.warnings)}


def test_a_folder_without_fault(tmp_path: Path) -> None:
    checked = check(folder_of(tmp_path), 32, 0)
    assert (checked.pictures, checked.held_out) == (6, 1)
    assert checked.errors == checked.warnings == ()
    assert checked.sizes == {"48x48": 6}
    assert checked.buckets == {"32x32": 6}
    refuse(read_dataset(tmp_path), tmp_path)


def test_broken_pictures_are_all_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    whole = (folder / "0.png").read_bytes()
    noise(9).save(tmp_path / "x.jpg")
    add(folder, "cut.png", whole[: len(whole) // 2])
    add(folder, "cut.jpg", (tmp_path / "x.jpg").read_bytes()[:300])
    add(folder, "text.png", b"hello")
    add(folder, "empty.webp", b"")
    checked = check(folder, 32, 0)
    (error,) = checked.errors
    assert error.text == "4 pictures that cannot be read"
    assert [name.partition(" (")[0] for name in error.files] == ["cut.png", "cut.jpg", "text.png", "empty.webp"]
    assert "truncated" in error.files[0]
    assert error.files[2] == "text.png (it is of no known format)"
    assert checked.sizes == {"48x48": 6}
    assert not checked.warnings
    with pytest.raises(DanqingError) as raised:
        refuse(read_dataset(folder), folder)
    for name in ("cut.png", "cut.jpg", "text.png", "empty.webp"):
        assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_many_broken_pictures_make_a_short_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for number in range(20):
        add(folder, f"broken-{number:02}.png", b"")
    with pytest.raises(
        DanqingError, match=rf"20 pictures .* and 15 more; danqing dataset check {folder} lists all"
    ) as raised:
        refuse(read_dataset(folder), folder)
    assert str(raised.value).count("broken-") == 5
    assert len(check(folder, 32, 0).errors[0].files) == 20


def test_captions(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    add(folder, "none.png", noise(10), text=[])
    add(folder, "blank.png", noise(11), text=" \n")
    add(folder, "some.png", noise(12), text=["yes", ""])
    checked = check(folder, 32, 0)
    assert found(checked) == {
        "2 pictures without a caption": ("none.png", "blank.png"),
        "1 picture with an empty caption among others": ("some.png",),
    }
    assert [error.text for error in checked.errors] == ["2 pictures without a caption"]
    with pytest.raises(DanqingError, match=r"2 pictures without a caption: none\.png, blank\.png"):
        refuse(read_dataset(folder), folder)


def test_captions_that_are_not_read_to_the_end(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    add(folder, "fits.png", noise(10), text="apple " * 75)
    add(folder, "long.png", noise(11), text=["short", "apple " * 76])
    add(folder, "zh.png", noise(12), text="红" * 30)
    (warning,) = check(folder, 32, 0).warnings
    count = len(clip().encode("红" * 30))
    assert "longer than the 75 tokens that are read, by CLIP's own vocabulary" in warning.text
    assert [name.partition(":")[0] for name in warning.files] == ["long.png (76 tokens"] + (
        [f"zh.png ({count} tokens"] if count > 75 else []
    )


@pytest.mark.parametrize(("count", "held_out", "said"), [(1, (), "one picture"), (3, (0, 1, 2), "no picture")])
def test_too_few(tmp_path: Path, count: int, held_out: tuple[int, ...], said: str) -> None:
    folder = folder_of(tmp_path, count, held_out)
    assert f"{said} to train on; two are needed at least" in [error.text for error in check(folder, 32, 0).errors]
    with pytest.raises(DanqingError, match=f"{said} to train on; two are needed"):
        refuse(read_dataset(folder), folder)


def test_nothing_held_out_is_a_warning(tmp_path: Path) -> None:
    checked = check(folder_of(tmp_path, held_out=()), 32, 0)
    assert not checked.errors
    assert [warning.text for warning in checked.warnings] == [
        "no picture is held out: an overfit (炸炉) would not be seen"
    ]


def test_sizes_buckets_and_crops(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    add(folder, "tiny.png", noise(20, (24, 48)))
    add(folder, "wide.png", noise(21, (120, 48)))
    square = check(folder, 32, 0)
    assert square.sizes == {"48x48": 6, "24x48": 1, "120x48": 1}
    assert square.buckets == {"32x32": 8}
    assert found(square) == {
        "1 picture smaller than trained at, to be enlarged": ("tiny.png (24x48)",),
        "2 pictures cropped by more than a third; bucket_step keeps shapes": (
            "tiny.png (24x48)",
            "wide.png (120x48)",
        ),
    }
    aspect = check(folder, 32, 8)
    assert aspect.buckets["32x32"] == 6
    assert sum(aspect.buckets.values()) == 8
    assert not any("crop" in text for text in found(aspect))


def test_duplicates(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    noise(0).save(tmp_path / "x.bmp")
    add(folder, "again.bmp", (tmp_path / "x.bmp").read_bytes())  # another format, the same pixels
    add(folder, "third.png", noise(0))
    faint = np.asarray(noise(1)).astype(int)
    faint[:, :, 0] = np.clip(faint[:, :, 0] + 2, 0, 255)
    add(folder, "like.png", Image.fromarray(faint.astype(np.uint8)))
    add(folder, "held.png", noise(2), held_out=True)
    add(folder, "apart.png", Image.fromarray(np.clip(np.asarray(noise(3)).astype(int) + 9, 0, 255).astype(np.uint8)))
    assert found(check(folder, 32, 0)) == {
        "2 pictures there before, which counts twice": ("again.bmp = 0.png", "third.png = 0.png"),
        "1 picture nearly the same as one before": ("like.png ~ 1.png",),
        "1 held-out picture trained on as well, or nearly: scores on it say little": ("held.png = 2.png",),
    }


@given(st.integers(0, 2**16), st.integers(0, 700), st.floats(0.5, 8))
def test_near_pairs_are_those_of_a_plain_search(seed: int, count: int, near: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 6, generator=draw) * 30
    gaps = (rows.double()[:, None] - rows.double()[None]).square().mean(-1).sqrt()
    plain = {(i, j) for i, j in torch.nonzero(gaps <= near).tolist() if i < j}
    close = {(i, j) for i, j in torch.nonzero((gaps - near).abs() < 1e-3).tolist() if i < j}  # rounding decides
    assert set(near_pairs(rows, near)) - close == plain - close


def test_equal_rows_are_near() -> None:
    assert near_pairs(torch.full((300, 4), 7.0)) == [(i, j) for i in range(300) for j in range(i + 1, 300)]
    assert near_pairs(torch.zeros(1, 4)) == []


def test_the_sheet_shows_crops_as_training_sees_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    two = Image.new("RGB", (96, 48), (255, 0, 0))
    two.paste((0, 0, 255), (24, 0, 72, 48))  # the middle half: what a square crop keeps
    add(folder, "wide.png", two)
    add(folder, "broken.png", b"")
    sheet = contact_sheet(folder, 64, 0)
    assert sheet.size == (4 * 136 + 8, 144)
    cell = np.asarray(sheet)[40:104, 8 + 3 * 136 + 32 : 8 + 3 * 136 + 96]
    assert (cell[:, 8:-8] == (0, 0, 255)).all()
    wide = np.asarray(contact_sheet(folder, 64, 8))[40:104, 8 + 3 * 136 :]
    assert (wide == (255, 0, 0)).all(-1).any()


def test_the_sheet_has_64_pictures_at_most(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 70)
    assert contact_sheet(folder, 32, 0).size == (8 * 136 + 8, 8 * 136 + 8)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DanqingError, match="no picture in it can be read"):
        contact_sheet(folder, 32, 0)


def test_thousands_of_small_pictures_take_seconds(tmp_path: Path) -> None:
    data = []
    for number in range(32):
        noise(number, (64, 64)).save(tmp_path / "x.png")
        data.append((tmp_path / "x.png").read_bytes())
    rows = {}
    for number in range(2000):
        (tmp_path / f"{number}.png").write_bytes(data[number % 32])
        rows[f"{number}.png"] = {"text": "x"}
    describe(tmp_path, rows)
    items = read_dataset(tmp_path)
    began = time.process_time()
    refuse(items, tmp_path)
    assert time.process_time() - began < 4
    assert len(items) == 2000
