"""The bundled vocabulary, and a checkpoint's own."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.prompts.tokenizer import END, START, clip, from_folder


def small_folder(folder: Path, words: list[str] | None = None) -> Path:
    """A folder with a vocabulary of its own: a, b, ab, and the words given."""
    words = words or ["a", "b", "a</w>", "b</w>", "ab</w>", ",</w>", START, END]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return folder


def test_the_bundled_vocabulary() -> None:
    tokenizer = clip()
    assert (tokenizer.start, tokenizer.end, tokenizer.comma) == (49406, 49407, 267)
    # OpenAI CLIP's own ids for its model card's sentence
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert clip() is tokenizer
    assert tokenizer.encode("") == tokenizer.encode(" \n\t") == []


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Lu", "Lt", "Cn", "Cc", "Cf", "Mn"))))
def test_text_comes_back(text: str) -> None:
    """Byte-level: nothing is unknown. What is lost is case, blanks and composition."""
    tokenizer = clip()
    ids = tokenizer.encode(text)
    assert all(0 <= token <= tokenizer.end for token in ids)
    expected = unicodedata.normalize("NFC", text).lower()
    assert "".join(tokenizer.text(ids).split()) == "".join(expected.split())


def test_words_are_readable() -> None:
    tokenizer = clip()
    ids = tokenizer.encode("Cats, 红!")
    assert [tokenizer.text([token]) for token in ids[:2]] == ["cats", ","]
    assert tokenizer.text(ids) == "cats , 红 !"
    assert tokenizer.text([tokenizer.start, 320]) == f"{START} a"
    assert tokenizer.text([60000]) == "<60000>"


def test_half_a_character_is_replaced() -> None:
    assert clip().encode("a \udce4") == clip().encode("a ?")


def test_a_folder_of_vocabulary_and_merges(tmp_path: Path) -> None:
    tokenizer = from_folder(small_folder(tmp_path / "tokenizer"))
    assert tokenizer.encode("ab A, b") == [4, 2, 5, 3]
    assert (tokenizer.start, tokenizer.end, tokenizer.comma) == (6, 7, 5)


def test_a_folder_of_tokenizer_json(tmp_path: Path) -> None:
    source = from_folder(small_folder(tmp_path / "one"))
    backend = source._backend
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    (tmp_path / "two").mkdir()
    backend.save(str(tmp_path / "two" / "tokenizer.json"))
    tokenizer = from_folder(tmp_path / "two")
    assert tokenizer.encode("ab a b a b") == [4, 2, 3, 2, 3]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"no vocab\.json and merges\.txt"):
        from_folder(tmp_path)
    folder = small_folder(tmp_path / "tokenizer")
    (folder / "merges.txt").unlink()
    with pytest.raises(DanqingError, match=r"no merges\.txt"):
        from_folder(folder)


@pytest.mark.parametrize(("name", "content"), [("vocab.json", "{"), ("merges.txt", "a\n"), ("tokenizer.json", "[]")])
def test_a_damaged_folder(tmp_path: Path, name: str, content: str) -> None:
    folder = small_folder(tmp_path / "tokenizer")
    (folder / name).write_text(content)
    with pytest.raises(DanqingError, match="cannot be read") as caught:
        from_folder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="not a CLIP tokenizer"):
        from_folder(small_folder(tmp_path / "tokenizer", ["a", "b", "a</w>", "b</w>", "ab</w>"]))
