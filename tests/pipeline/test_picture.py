"""Pictures and grids."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.pipeline.picture import Picture, grid
from danqing.request_parts import Reference
from danqing.requests import ResolvedRequest, TextToImage


@pytest.fixture
def picture() -> Picture:
    request = TextToImage(prompt="a cat", seed=5, steps=3)
    resolved = ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name="m"))
    hashed: Future[str] = Future()
    hashed.set_result("ab" * 32)
    return Picture(Image.new("RGB", (16, 8), "red"), resolved, {"checkpoint": hashed})


def test_a_saved_picture_says_how_it_was_made(picture: Picture, tmp_path: Path) -> None:
    path = picture.save(tmp_path / "x.png")
    text = Image.open(path).text
    assert text["parameters"] == picture.infotext
    assert "Model hash: ababababab" in text["parameters"]
    assert ResolvedRequest.model_validate_json(text["danqing"]) == picture.record
    assert picture.record.checkpoint.sha256 == "ab" * 32
    assert picture.resolved.checkpoint.sha256 is None


def test_without_metadata_no_hash_is_waited_for(picture: Picture, tmp_path: Path) -> None:
    endless = Picture(picture.image, picture.resolved, {"checkpoint": Future()})
    assert Image.open(endless.save(tmp_path / "x.png", metadata=False)).text == {}


def test_saving_beside_and_over(picture: Picture, tmp_path: Path) -> None:
    assert picture.save(tmp_path / "x.png").name == "x.png"
    assert picture.save(tmp_path / "x.png").name == "x.png"
    assert picture.save(tmp_path / "x.png", overwrite=False).name == "x-2.png"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DanqingError, match="this is a folder"):
        picture.save(tmp_path / "folder.png")
    with pytest.raises(DanqingError, match="picture format"):
        picture.save(tmp_path / "x.tiff")


@pytest.mark.parametrize(("count", "size"), [(1, (4, 2)), (2, (8, 2)), (3, (8, 4)), (4, (8, 4)), (5, (12, 4))])
def test_grids_are_as_square_as_can_be(count: int, size: tuple[int, int]) -> None:
    assert grid([Image.new("RGB", (4, 2))] * count).size == size


def test_a_grid_row_by_row() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = grid([Image.new("RGB", (2, 2), colour) for colour in colours], columns=2)
    assert [sheet.getpixel(at) for at in ((0, 0), (2, 0), (0, 2), (2, 2))] == [*colours, (0, 0, 0)]
    with pytest.raises(DanqingError):
        grid([])
