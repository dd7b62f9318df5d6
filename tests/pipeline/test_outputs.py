"""Where pictures go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.pipeline.outputs import check_output, grid_path, parse_size, picture_path


@pytest.mark.parametrize("text", ["512x768", "512X768", "512×768", " 512 x 768 ", "512*768"])
def test_sizes(text: str) -> None:
    assert parse_size(text) == {"width": "512", "height": "768"}


@given(st.text(alphabet="0123x× -²a."))
def test_any_size_is_two_numbers_or_one_line(text: str) -> None:
    message = ""
    try:
        assert all(int(side) >= 0 for side in parse_size(text).values())
    except DanqingError as error:
        message = str(error)
    assert not message or "512x768" in message


def test_picture_names(tmp_path: Path) -> None:
    named = tmp_path / "x.png"
    assert picture_path(named, tmp_path, 5, 0, 1, False) == named
    assert picture_path(named, tmp_path, 5, 0, 3, False) == tmp_path / "x-1.png"
    assert picture_path(tmp_path / "new", tmp_path, 5, 0, 3, False) == tmp_path / "new" / "5.png"
    assert picture_path(None, tmp_path, 5, 0, 1, False) == tmp_path / "5.png"
    named.touch()
    assert picture_path(named, tmp_path, 5, 0, 1, False) == tmp_path / "x-2.png"
    assert picture_path(named, tmp_path, 5, 0, 1, True) == named


def test_a_folder_may_have_a_dot(tmp_path: Path) -> None:
    folder = tmp_path / "v1.5"
    folder.mkdir()
    check_output(folder, tmp_path)
    check_output(None, tmp_path / "v2.1")
    assert picture_path(folder, tmp_path, 5, 0, 1, False) == folder / "5.png"


def test_grid_names(tmp_path: Path) -> None:
    assert grid_path(Path("x.jpg"), Path("x-1.jpg")) == Path("x-grid.jpg")
    assert grid_path(tmp_path, tmp_path / "5.png") == tmp_path / "5-grid.png"
    assert grid_path(None, Path("outputs/5.png")) == Path("outputs/5-grid.png")


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "x.png", tmp_path)
    check_output(tmp_path / "a" / "b", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "x.png", tmp_path / "file" / "deeper" / "x.png"):
        with pytest.raises(DanqingError, match="is a file, not a folder"):
            check_output(output, tmp_path)
    with pytest.raises(DanqingError, match="is a file, not a folder"):
        check_output(None, tmp_path / "file")
    with pytest.raises(DanqingError, match=r"'\.bmp'"):
        check_output(tmp_path / "x.bmp", tmp_path)
