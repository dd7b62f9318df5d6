"""Where pictures go."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.settings import Settings
from danqing.metadata.pixels import pixels_sha256
from danqing.metadata.read import read_record
from danqing.pipeline.naming import Job
from danqing.pipeline.outputs import check_output, grid_path, parse_size, picture_path, write_picture
from danqing.pipeline.picture import Picture
from danqing.request_parts import Reference
from danqing.requests import ResolvedRequest, TextToImage


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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(path=tmp_path / "config.toml", data_dir=tmp_path / "data", output_folder=tmp_path / "out")


def picture(**fields: Any) -> Picture:
    request = TextToImage(**{"prompt": "a red, (apple:1.2)", "seed": 5, "width": 64, **fields})
    resolved = ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name="castle"))
    return Picture(Image.new("RGB", (64, 32)), resolved)


def path_of(output: Path | None, settings: Settings, index: int = 0, total: int = 1, overwrite: bool = False) -> Path:
    return picture_path(picture(), output, settings, Job(index, total), overwrite)


def test_picture_names(tmp_path: Path, settings: Settings) -> None:
    named = tmp_path / "x.png"
    assert path_of(named, settings) == named
    assert path_of(named, settings, 0, 3) == tmp_path / "x-1.png"
    assert path_of(tmp_path / "new", settings, 0, 3) == tmp_path / "new" / "5.png"
    assert path_of(None, settings) == tmp_path / "out" / "5.png"
    named.touch()
    assert path_of(named, settings) == tmp_path / "x-2.png"
    assert path_of(named, settings, overwrite=True) == named


def test_names_by_the_settings(tmp_path: Path, settings: Settings) -> None:
    webp = settings.model_copy(update={"output_pattern": "[width]/[seed]-[prompt_words]", "output_format": "webp"})
    assert path_of(None, webp) == tmp_path / "out" / "64" / "5-a red apple 1 2.webp"
    assert path_of(tmp_path / "new", webp) == tmp_path / "new" / "64" / "5-a red apple 1 2.webp"
    assert path_of(tmp_path / "x.png", webp) == tmp_path / "x.png"


def test_names_by_a_pattern(tmp_path: Path, settings: Settings) -> None:
    assert path_of(tmp_path / "a" / "[model_name]" / "[seed].jpg", settings) == tmp_path / "a" / "castle" / "5.jpg"
    assert path_of(tmp_path / "[seed]", settings) == tmp_path / "5.png"
    assert path_of(tmp_path / "[not one].jpg", settings) == tmp_path / "[not one].jpg"


def test_written_as_the_settings_say(settings: Settings) -> None:
    noise = Image.frombytes("RGB", (64, 32), random.Random(0).randbytes(64 * 32 * 3))
    subject = replace(picture(), image=noise)
    sizes = {}
    for quality in (10, 95):
        chosen = settings.model_copy(update={"picture_quality": quality, "output_format": "jpg"})
        sizes[quality] = write_picture(subject, None, chosen, Job(), overwrite=True).stat().st_size
    assert sizes[10] < sizes[95] / 2
    path = write_picture(subject, None, settings, Job())
    assert pixels_sha256(noise) == read_record(Image.open(path).text["danqing"]).pixels
    for told, chosen in ((False, settings), (None, settings.model_copy(update={"write_metadata": False}))):
        assert Image.open(write_picture(subject, None, chosen, Job(), metadata=told)).text == {}


def test_a_folder_may_have_a_dot(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "v1.5"
    folder.mkdir()
    check_output(folder, settings)
    check_output(None, settings.model_copy(update={"output_folder": tmp_path / "v2.1"}))
    assert path_of(folder, settings) == folder / "5.png"


def test_grid_names(tmp_path: Path) -> None:
    assert grid_path(Path("x.jpg"), Path("x-1.jpg")) == Path("x-grid.jpg")
    assert grid_path(tmp_path, tmp_path / "5.png") == tmp_path / "5-grid.png"
    assert grid_path(None, Path("outputs/5.png")) == Path("outputs/5-grid.png")
    assert grid_path(Path("[seed].jpg"), Path("5.jpg")) == Path("5-grid.jpg")


def test_checking_makes_nothing(tmp_path: Path, settings: Settings) -> None:
    check_output(tmp_path / "a" / "b" / "x.png", settings)
    check_output(tmp_path / "a" / "b", settings)
    check_output(tmp_path / "a" / "[date]" / "[seed].png", settings)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "x.png", tmp_path / "file" / "deeper" / "x.png"):
        with pytest.raises(DanqingError, match="is a file, not a folder"):
            check_output(output, settings)
    with pytest.raises(DanqingError, match="is a file, not a folder"):
        check_output(None, settings.model_copy(update={"output_folder": tmp_path / "file"}))
    with pytest.raises(DanqingError, match=r"'\.bmp'"):
        check_output(tmp_path / "x.bmp", settings)
    with pytest.raises(DanqingError, match=r"'\[sead\]'; did you mean \[seed\]"):
        check_output(tmp_path / "[sead]-[steps].png", settings)
    with pytest.raises(DanqingError, match="names no picture"):
        check_output(None, settings.model_copy(update={"output_pattern": "../[seed]"}))
