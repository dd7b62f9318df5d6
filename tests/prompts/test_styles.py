"""Files of styles, and how they join a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.errors import DanqingError
from danqing.prompts.lines import read_lines
from danqing.prompts.styles import all_styles, apply, choose_styles, read_styles, style_files

CSV = 'name,prompt,negative_prompt\r\nOil,"oil painting of {prompt}, thick",photo\n#off,x,y\n水墨,水墨画,\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    (tmp_path / "styles.csv").write_text(CSV, "utf-8-sig")
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "more.json").write_text(
        '[{"name": "sai-anime", "prompt": "anime {prompt}", "negative_prompt": "{prompt}, real"}, {"name": "oil"}]'
    )
    return style_files([tmp_path])


def test_styles_join_as_in_automatic1111(files: tuple[Path, ...]) -> None:
    chosen = choose_styles(["oil", "Oil", "水墨", "SAI-anime"], files)
    assert [style.name for style in chosen] == ["oil", "Oil", "水墨", "sai-anime"]
    assert apply("a cat", "blur", chosen[1:]) == ("anime oil painting of a cat, thick, 水墨画", "blur, photo, real")
    assert apply("", "", chosen[2:3]) == ("水墨画", "")
    assert [style.name for style in all_styles(files)] == ["Oil", "水墨", "sai-anime", "oil"]


def test_a_style_by_its_file(files: tuple[Path, ...]) -> None:
    assert choose_styles([f"{files[0]}:oil"], [])[0].negative_prompt == "photo"


def test_an_unknown_style_is_one_line_with_the_nearest(files: tuple[Path, ...]) -> None:
    with pytest.raises(DanqingError, match="style 'oill' is unknown; did you mean"):
        choose_styles(["oill"], files)
    with pytest.raises(DanqingError, match="no file of styles is there"):
        choose_styles(["x"], [])


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "[1, 2]", "{", '[{"name": 3}]'])
def test_what_is_no_file_of_styles(text: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.csv" if text.startswith("a") else "x.json")
    path.write_text(text)
    with pytest.raises(DanqingError, match=r"x\.(csv|json)"):
        read_styles(path)


def test_lines_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text('a cat -- sitting\n\n--prompt a "big dog" --steps 3 --tiling true --styles "a, b"\n', "utf-8")
    rows, notes = read_lines(path, {"prompt", "steps", "tiling", "styles"})
    assert rows == [
        {"prompt": "a cat -- sitting"},
        {"prompt": "a big dog", "steps": "3", "tiling": "both", "styles": ("a", "b")},
    ]
    assert notes == []
    path.write_text("--prompt x\n--stps 3\n")
    with pytest.raises(DanqingError, match="line 2: '--stps' is no option; did you mean --steps"):
        read_lines(path, {"prompt", "steps"})
