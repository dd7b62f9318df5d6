"""A vocabulary of one's own: any text goes there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.prompts.tokenizer import Tokenizer, from_folder
from danqing.train.vocabulary import train_vocabulary

CAPTIONS = ["a red apple, 3d style", "红苹果，扁平风格", "apple tree", "red house 😀", "风格红苹果"] * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    train_vocabulary(CAPTIONS, 560, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return from_folder(folder)


TEXT = st.one_of(
    st.text(),
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)),
    st.text(st.sampled_from("😀👩\u200d🎨🏳️\u200d🌈🇨🇳 ,.ßǅİ½\t\n\x00")),
)


@given(text=TEXT)
def test_any_text_goes_there_and_back(tokenizer: Tokenizer, text: str) -> None:
    """But for case, composition and blanks, which CLIP's tokenizer does not keep."""
    ids = tokenizer.encode(text)
    normal = tokenizer._backend.normalizer.normalize_str(text)
    assert "".join(tokenizer.text(ids).split()) == "".join(normal.split())
    assert tokenizer.start not in ids
    assert tokenizer.end not in ids, "the unknown token"


def test_words_are_learned(tokenizer: Tokenizer, folder: Path) -> None:
    assert len(tokenizer.encode("apple")) == 1
    assert len(tokenizer.encode("红苹果")) == 1
    assert len(tokenizer.encode("zebra")) == 5
    words = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert sorted(words.values()) == list(range(len(words)))
    assert (words["<|startoftext|>"], words["<|endoftext|>"]) == (len(words) - 2, len(words) - 1)
    assert tokenizer.end == len(words) - 1
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    assert len(words) <= 560
    assert len(merges) - 1 >= len(words) - 2 - 512, "every word beyond the bytes comes from a merge"


def test_no_larger_than_asked(tmp_path: Path) -> None:
    train_vocabulary(CAPTIONS, 530, tmp_path / "small")
    assert len(json.loads((tmp_path / "small" / "vocab.json").read_text("utf-8"))) == 530


def test_the_same_captions_make_the_same_words(folder: Path, tmp_path: Path) -> None:
    train_vocabulary(iter(CAPTIONS), 560, tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("danqing.train.vocabulary.write_json", full)
    with pytest.raises(DanqingError, match=r"tokenizer: could not be written: the disk is full"):
        train_vocabulary(CAPTIONS, 560, tmp_path / "tokenizer")
    assert not list(tmp_path.iterdir())
