"""Training folders as they are read, and what is wrong with them by file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.train.dataset import Item, read_dataset, split


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def table(folder: Path, *rows: object) -> Path:
    picture(folder / "a.png")
    picture(folder / "sub" / "b.png")
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def test_a_table(tmp_path: Path) -> None:
    folder = table(
        tmp_path,
        {"file_name": "sub/b.png", "text": ["one\u2028", "二"], "concept": "c", "style": "s", "width": 8, "flip": True},
        "",
        {"file_name": "a.png", "text": "alone", "held_out": True},
        {"file_name": "a.png"},
    )
    first, second, third = read_dataset(folder)
    assert first == Item(folder / "sub" / "b.png", ("one\u2028", "二"), {"concept": "c", "style": "s"}, False, True)
    assert second == Item(folder / "a.png", ("alone",), {}, True, False)
    assert third.captions == ()
    assert split([first, second, third]) == ([first, third], [second])


def test_text_files(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "sub/c.webp", "d.bmp"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text(" a caption \n", "utf-8")
    (tmp_path / "b.caption").write_text("一个", "utf-8")
    (tmp_path / "d.txt").write_text("\n", "utf-8")
    (tmp_path / "notes.md").write_text("no picture")
    items = read_dataset(tmp_path)
    assert [item.path.name for item in items] == ["a.png", "b.jpg", "d.bmp", "c.webp"]
    assert [item.captions for item in items] == [("a caption",), ("一个",), (), ()]
    assert not any(item.held_out or item.flip for item in items)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"file_name": "a.png"', "line 2: is no JSON"),
        ("[1, 2]", "line 2: has no file_name"),
        ({"text": "x"}, "line 2: has no file_name"),
        ({"file_name": 3}, "line 2: has no file_name"),
        ({"file_name": "a.png", "text": 5}, "line 2: text is neither a caption nor a list of captions"),
        ({"file_name": "a.png", "text": ["x", None]}, "line 2: text is neither a caption nor a list of captions"),
        ({"file_name": "gone.png", "text": "x"}, "line 2: gone.png is not there"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, row: object, said: str) -> None:
    folder = table(tmp_path, {"file_name": "a.png", "text": "x"}, row)
    with pytest.raises(DanqingError, match=re.escape(f"{folder / 'metadata.jsonl'}, {said}")):
        read_dataset(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"gone: there is no such folder"):
        read_dataset(tmp_path / "gone")
    with pytest.raises(DanqingError, match=r"there are no pictures in it"):
        read_dataset(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(DanqingError, match=r"there are no pictures in it"):
        read_dataset(tmp_path)


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    folder = table(tmp_path)
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "红"}'.encode("gbk"))
    with pytest.raises(DanqingError, match=r"metadata\.jsonl: is not in UTF-8"):
        read_dataset(folder)
