"""Pictures as files: what they carry, and that none is ever half there."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from danqing.errors import DanqingError
from danqing.metadata.files import MAX_TEXT, check_suffix, free_name, read_picture, save

TEXT = "一只猫, a cat\nSteps: 1, Sampler: Euler"


@pytest.fixture
def image() -> Image.Image:
    return Image.frombytes("RGB", (16, 8), bytes(range(128)) * 3)


def test_png(image: Image.Image, tmp_path: Path) -> None:
    save(image, tmp_path / "x.png", TEXT, '{"a": 1}')
    back = Image.open(tmp_path / "x.png")
    assert back.text == {"parameters": TEXT, "danqing": '{"a": 1}'}
    assert back.tobytes() == image.tobytes()


def test_latin_text_is_a_plain_chunk_and_other_text_an_international_one(image: Image.Image, tmp_path: Path) -> None:
    save(image, tmp_path / "x.png", "plain", None)
    save(image, tmp_path / "y.png", TEXT, None)
    assert b"tEXtparameters\0plain" in (tmp_path / "x.png").read_bytes()
    assert b"iTXtparameters\0" in (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize("name", ["x.jpg", "x.jpeg", "x.webp"])
def test_exif(image: Image.Image, tmp_path: Path, name: str) -> None:
    save(image, tmp_path / name, TEXT, '{"a": 1}')
    comment = Image.open(tmp_path / name).getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT


def test_webp_is_lossless(image: Image.Image, tmp_path: Path) -> None:
    save(image, tmp_path / "x.webp", None, None)
    assert Image.open(tmp_path / "x.webp").tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_nothing_is_said_where_nothing_is_given(image: Image.Image, tmp_path: Path, name: str) -> None:
    save(image, tmp_path / name, None, None)
    back = Image.open(tmp_path / name)
    assert not getattr(back, "text", {})
    assert not back.getexif()


def test_the_rights_are_those_of_any_new_file(image: Image.Image, tmp_path: Path) -> None:
    save(image, tmp_path / "x.png", None, None)
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_size_that_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"x\.webp: the picture could not be written"):
        save(Image.new("RGB", (16384, 1)), tmp_path / "x.webp", None, None)
    with pytest.raises(DanqingError, match=r"x\.jpg: .* no room for so long a prompt"):
        save(Image.new("RGB", (8, 8)), tmp_path / "x.jpg", "x" * 40_000, None)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"before")

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        save(image, tmp_path / "x.png", None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"before"


def test_suffixes() -> None:
    assert check_suffix(Path("a.PNG")) == "PNG"
    for name in ("a", "a.bmp", ".png"):
        with pytest.raises(DanqingError, match=r"\.png, \.jpg, \.jpeg, \.webp, \.avif, \.jxl"):
            check_suffix(Path(name))


def test_free_names(tmp_path: Path) -> None:
    for expected in ("x.png", "x-2.png", "x-3.png"):
        path = free_name(tmp_path / "x.png")
        assert path.name == expected
        path.touch()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.avif"])
def test_what_is_written_is_read(image: Image.Image, tmp_path: Path, name: str) -> None:
    save(image, tmp_path / name, TEXT, '{"猫": 1}')
    back = read_picture(tmp_path / name)
    assert back.texts["parameters"] == TEXT
    assert back.texts["danqing"] == '{"猫": 1}'
    assert back.image.size == (16, 8)


def test_jpeg_xl(image: Image.Image, tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    save(image, tmp_path / "x.jxl", TEXT, "{}")
    back = read_picture(tmp_path / "x.jxl")
    assert back.image.tobytes() == image.tobytes()
    assert back.texts == {"parameters": TEXT, "danqing": "{}"}


def test_jpeg_xl_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(DanqingError, match=r"x\.jxl: JPEG XL needs the extra \[jxl\]"):
        check_suffix(tmp_path / "x.jxl")


def test_quality_and_loss(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    for name in ("x.jpg", "x.avif", "x.webp"):
        sizes = []
        for quality in (20, 90):
            save(noise, tmp_path / name, None, None, quality=quality, lossless=False)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes[0] < sizes[1]
    save(noise, tmp_path / "x.webp", None, None, quality=20, lossless=True)
    assert read_picture(tmp_path / "x.webp").image.convert("RGB").tobytes() == noise.tobytes()


def damaged(image: Image.Image, tmp_path: Path) -> dict[str, bytes]:
    save(image, tmp_path / "good.png", TEXT, "{}")
    save(image, tmp_path / "good.jpg", TEXT, "{}")
    png, jpg = ((tmp_path / name).read_bytes() for name in ("good.png", "good.jpg"))
    return {
        "text.png": b"hello", "empty.png": b"", "cut.png": png[:-40], "head.png": png[:40], "cut.jpg": jpg[: len(jpg) // 2],
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
    }  # fmt: skip


def test_files_that_are_no_picture(image: Image.Image, tmp_path: Path) -> None:
    for name, data in damaged(image, tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DanqingError, match=name) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    for missing, word in ((tmp_path / "none.png", "no such file"), (tmp_path, "folder")):
        with pytest.raises(DanqingError, match=word):
            read_picture(missing)


def test_exif_garbage_and_bombs(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert "parameters" not in read_picture(tmp_path / "x.jpg").texts
    save(image, tmp_path / "x.png", "x" * (MAX_TEXT + 1), None)
    with pytest.raises(DanqingError, match="8 MB of text"):
        read_picture(tmp_path / "x.png")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "x" * (20 << 20), zip=True)
    image.save(tmp_path / "y.png", pnginfo=chunks)
    with pytest.raises(DanqingError, match=r"y\.png"):
        read_picture(tmp_path / "y.png")
