"""The emoji folder, made of tiny npm archives; a script in npm's place hands them out."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.train.dataset import read_dataset, split
from danqing.train.emoji import (
    CAPTIONS,
    HELD_OUT_SHARE,
    STYLES,
    UNSEEN,
    Concept,
    _draw,
    captions,
    held_out,
    is_held_out,
    make,
    read_concepts,
    svg,
)

pytest.importorskip("resvg_py")

RED = '<path fill="#f00" d="M0 0h32v32H0z"/>'
LEFT_BLUE = '<path fill="#00f" d="M0 0h8v16H0z"/>'
ENGLISH = [
    {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit", "Red Apple", "food", "green"], "group": 4},
    {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["heart"], "group": 0},
    {"hexcode": "23-FE0F-20E3", "label": "keycap: #", "group": 8},
    {"hexcode": "2A-FE0F-20E3", "label": "keycap: *", "tags": [], "group": 8},
    {"hexcode": "1F1EB-1F1F7", "label": "flag: France", "tags": ["FR"], "group": 9},
    {"hexcode": "1F448", "label": "backhand index pointing left", "tags": [], "group": 1},
    {"hexcode": "1F1E6", "label": "regional indicator A"},
]
CHINESE = [{**row, "label": f"中{i}", "tags": [f"签{i}"]} for i, row in enumerate(ENGLISH)]
CHARACTERS = {"1f34e": "red-apple", "2764": "red-heart", "23-20e3": "keycap-hash", "1f448": "pointing-left"}


def archive(folder: Path, package: str, files: dict[str, Any]) -> None:
    """What `npm pack` would leave."""
    folder.mkdir(parents=True, exist_ok=True)
    name, version = package.rsplit("@", 1)
    with tarfile.open(folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz", "w:gz") as tar:
        for path, content in {**files, "index.js": "throw new Error('never run')"}.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def icons(*names: str) -> dict[str, Any]:
    return {"width": 32, "height": 32, "icons": {name: {"body": RED} for name in names}}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Archives of all packages: apples in all styles, the rest in some."""
    folder = tmp_path / "packages"
    archive(folder, CAPTIONS, {"en/data.json": ENGLISH, "zh/data.json": CHINESE})
    for style in (*STYLES, UNSEEN):
        drawn = icons("red-apple", *(["red-heart", "keycap-hash", "pointing-left"] if style.name == "noto" else []))
        files: dict[str, Any] = {"icons.json": drawn}
        if style.alphabet is None:
            files["chars.json"] = CHARACTERS
        archive(folder, style.package, files)
    return folder


def concepts() -> dict[str, Concept]:
    files = {
        f"package/{name}/data.json": json.dumps(rows).encode() for name, rows in (("en", ENGLISH), ("zh", CHINESE))
    }
    return {concept.name: concept for concept in read_concepts(files)}


def test_concepts() -> None:
    found = concepts()
    assert list(found) == [
        "red-apple", "red-heart", "keycap-hash", "keycap-asterisk", "flag-france", "backhand-index-pointing-left"
    ]  # fmt: skip
    apple = found["red-apple"]
    assert (apple.code, apple.label, apple.label_zh) == ("1f34e", "red apple", "中0")
    assert (apple.tags, apple.tags_zh) == (("fruit", "Red Apple", "food", "green"), ("签0",))
    assert found["red-heart"].code == "2764"
    assert found["keycap-hash"].code == "23-20e3"


def test_only_what_a_mirror_keeps_is_mirrored() -> None:
    assert {name for name, concept in concepts().items() if concept.flips} == {"red-apple", "red-heart"}


def test_concepts_of_one_name_have_files_of_their_own() -> None:
    rows = [{**row, "label": "Same!"} for row in ENGLISH[:2]]
    files = {f"package/{name}/data.json": json.dumps(rows).encode() for name in ("en", "zh")}
    assert [concept.name for concept in read_concepts(files)] == ["same", "same-2764-fe0f"]


def test_captions_in_both_languages_with_and_without_style() -> None:
    apple, style = concepts()["red-apple"], STYLES[0]
    made = captions(apple, style)
    assert len(made) == 12
    assert made[:3] == ("red apple, 3d style", "a red apple, 3d style", "3d red apple")
    assert made[5] == "red apple"
    assert made[6:9] == ("中0，立体风格", "一个中0，立体风格", "立体风格的中0")
    assert made[9] == "中0，签0，立体风格"
    assert made[11] == "中0"
    for text in made[3:5]:
        words = text.split(", ")
        assert (words[0], words[-1]) == ("red apple", "3d style")
        assert set(words[1:-1]) <= {"fruit", "food", "green"}  # never the label again
    assert set(made[3].split(", ")) & set(made[4].split(", ")) == {"red apple", "3d style"}
    assert captions(Concept("", "x", "eye", (), "眼", (), True), style)[1] == "an eye, 3d style"
    assert all(len(set(captions(concept, s))) >= 10 for concept in concepts().values() for s in (*STYLES, UNSEEN))


def test_styles_differ_in_words_and_tags() -> None:
    apple = concepts()["red-apple"]
    assert len({captions(apple, style)[0] for style in (*STYLES, UNSEEN)}) == 5
    assert UNSEEN not in STYLES
    assert UNSEEN.name == "openmoji"


def test_held_out_pairs_are_a_twentieth_chosen_by_hash() -> None:
    pairs = [(f"concept-{i}", style.name) for i in range(2000) for style in STYLES]
    out = held_out(pairs)
    assert abs(len(out) / len(pairs) - HELD_OUT_SHARE) < 0.01
    assert out == {pair for pair in pairs if is_held_out(*pair)}  # no concept here lost all its styles
    assert held_out(pairs[::-1]) == out
    assert held_out(pairs[:100]) == out & set(pairs[:100])
    assert is_held_out("gem-stone", "flat") == is_held_out("gem-stone", "flat")


def test_of_each_concept_one_style_remains_in_training() -> None:
    lonely = [(f"concept-{i}", "3d") for i in range(1000)]
    assert sum(is_held_out(*pair) for pair in lonely) > 20
    assert held_out(lonely) == set()
    two = [(name, style) for name, _ in lonely for style in ("3d", "flat", "noto")]
    left = {name for name, style in set(two) - held_out(two)}
    assert len(left) == 1000


def test_the_folder(packages: Path, tmp_path: Path) -> None:
    said: list[str] = []
    counts = make(tmp_path / "emoji", size=24, packages=packages, say=said.append)
    assert counts == {"3d": 1, "flat": 1, "noto": 4, "twemoji": 1}
    items = read_dataset(tmp_path / "emoji")
    assert len(items) == 7
    for item in items:
        with Image.open(item.path) as picture:
            assert (picture.size, picture.mode) == ((24, 24), "RGB")
            assert picture.getpixel((12, 12)) == (255, 0, 0)
        assert len(item.captions) == 12
        assert (
            item.path.relative_to(tmp_path / "emoji").as_posix()
            == f"{item.labels['style']}/{item.labels['concept']}.png"
        )
    _, out = split(items)
    pairs = {(item.labels["concept"], item.labels["style"]) for item in items}
    assert {(item.labels["concept"], item.labels["style"]) for item in out} == held_out(sorted(pairs))
    flips = {item.labels["concept"]: item.flip for item in items}
    assert flips == {"red-apple": True, "red-heart": True, "keycap-hash": False, "backhand-index-pointing-left": False}
    licences = (tmp_path / "emoji" / "LICENCES.txt").read_text("utf-8")
    for word in ("MIT", "Apache-2.0", "CC-BY-4.0", "Microsoft", "Google", "Twitter", "emojibase-data"):
        assert word in licences
    assert "openmoji" not in licences
    assert said == [f"{name}: drawing {count} pictures" for name, count in counts.items()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji", "packages"]


def test_the_unseen_style_only_when_asked(packages: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "emoji", size=16, styles=[UNSEEN], packages=packages) == {"openmoji": 1}
    (item,) = read_dataset(tmp_path / "emoji")
    assert item.labels["style"] == "openmoji"
    assert not item.held_out
    assert "CC-BY-SA" in (tmp_path / "emoji" / "LICENCES.txt").read_text("utf-8")


def test_it_is_the_same_each_time(packages: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, size=16, packages=packages)
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_drawings_that_are_no_squares_aliases_and_mirrors(tmp_path: Path) -> None:
    table = {
        "height": 16,
        "icons": {"half": {"body": LEFT_BLUE, "width": 8}, "left": {"body": LEFT_BLUE}},
        "aliases": {"right": {"parent": "left", "hFlip": True}, "same": {"parent": "left"}},
    }

    def pixel(name: str, x: int) -> tuple[int, ...]:
        drawn = svg(table, name)
        assert drawn is not None
        path = tmp_path / "x.png"
        _draw((str(path), drawn, 16))
        with Image.open(path) as picture:
            value = picture.getpixel((x, 8))
        assert isinstance(value, tuple)
        return value

    blue, white = (0, 0, 255), (255, 255, 255)
    assert [pixel("left", x) for x in (2, 13)] == [blue, white]
    assert [pixel("same", x) for x in (2, 13)] == [blue, white]
    assert [pixel("right", x) for x in (2, 13)] == [white, blue]
    assert [pixel("half", x) for x in (1, 8, 14)] == [white, blue, white]
    assert svg(table, "none") is None


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in npm's place. It sees its arguments in sys.argv."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\nfrom pathlib import Path\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


COPY = """
assert sys.argv[1] == "pack" and "--pack-destination" in sys.argv
target = Path(sys.argv[sys.argv.index("--pack-destination") + 1])
name = sys.argv[2].removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"
with open({log!r}, "a") as log:
    print(sys.argv[2], file=log)
shutil.copy(Path({source!r}) / name, target / name)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
def test_packages_are_fetched_by_npm_once(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    npm(tmp_path / "bin", monkeypatch, COPY.format(log=str(log), source=str(packages)))
    said: list[str] = []
    make(tmp_path / "emoji", size=16, say=said.append)
    wanted = [CAPTIONS, *(style.package for style in STYLES)]
    assert sorted(log.read_text().split()) == sorted(wanted)
    assert all("@" in package[1:] for package in wanted)  # each with its version
    assert {line for line in said if line.startswith("fetching")} == {f"fetching {package}" for package in wanted}
    assert len(list((tmp_path / "emoji-packages").glob("*.tgz"))) == 5
    make(tmp_path / "second", size=16, packages=tmp_path / "emoji-packages")
    assert len(log.read_text().split()) == 5


FAILURES = [
    ("sys.exit('npm ERR! code E404\\nnpm ERR! 404 Not Found')", r"npm pack emojibase-data@17.0.0 failed: npm ERR! 404"),
    ("sys.exit(3)", "npm pack emojibase-data@17.0.0 failed: no reason given"),
    ("pass", r"emojibase-data-17.0.0.tgz: is no npm package .*delete it and try again"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
@pytest.mark.parametrize(("script", "words"), FAILURES)
def test_npm_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(DanqingError, match=words):
        make(tmp_path / "emoji", size=16)
    assert not (tmp_path / "emoji").exists()


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DanqingError, match=r"npm was not found, and emojibase-data@.* install Node\.js first"):
        make(tmp_path / "emoji", size=16)


def test_an_archive_that_is_cut_short(packages: Path, tmp_path: Path) -> None:
    path = next(packages.glob("*noto*"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DanqingError, match=rf"{path.name}: is no npm package"):
        make(tmp_path / "emoji", size=16, packages=packages)
    assert not (tmp_path / "emoji").exists()


def test_what_cannot_be_made(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (15, 2049):
        with pytest.raises(DanqingError, match=f"size {size}: give 16 to 2048"):
            make(tmp_path / "emoji", size=size, packages=packages)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(DanqingError, match="mine: exists and is not empty"):
        make(tmp_path / "mine", size=16, packages=packages)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DanqingError, match=r"needs resvg-py: pip install 'danqing\[train\]'"):
        make(tmp_path / "emoji", size=16, packages=packages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "packages"]
