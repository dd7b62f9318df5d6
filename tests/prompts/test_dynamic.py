"""Wildcards and choices act; all else of a prompt comes back as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.prompts.dynamic import acts, expand_all, expand_random, shield, unshield

INERT = st.text(st.characters(exclude_categories=("Cs", "Co"), exclude_characters="{}\\_"), max_size=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    (tmp_path / "colour.txt").write_text("red\n# a comment\n\n9::blue 50% #1\n", "utf-8")
    (tmp_path / "c" / "animal.txt").write_text("cat\n__colour__ {big|small} dog\n", "utf-8")
    (tmp_path / "loop.txt").write_text("__loop__\n", "utf-8")
    (tmp_path / "sky.json").write_text('{"sky": ["day", "night"]}', "utf-8")
    return tmp_path


@given(INERT)
@example("a [b|c] (d:1.2), [x:y:0.5] <lora:z:1> # $5 100% // /* */ \t $$ AND")
def test_a_prompt_without_marks_is_untouched(text: str) -> None:
    assert not acts(text)
    assert expand_random(text, "1", []) == text
    assert expand_all(text, []) == (text,)


@settings(deadline=None, max_examples=60)
@given(INERT)
@example("a [b|c] (d:1.2) <lora:my__file__x:1> # $5 100% // /* */ \t $$")
def test_beside_a_choice_all_else_is_untouched(text: str) -> None:
    text = text.replace("\r", " ").strip() + "."
    assert expand_all(f"{{x|y}} {text}", []) == (f"x {text}", f"y {text}")


def test_alternation_lives_within_choices() -> None:
    assert expand_all("{[a|b]|c} [{d|e}|f] snake__case", []) == tuple(
        f"{first} [{second}|f] snake__case" for first in ("[a|b]", "c") for second in ("d", "e")
    )
    assert expand_all("<lora:my__file__x:{0.5|1}>", []) == ("<lora:my__file__x:0.5>", "<lora:my__file__x:1>")
    assert expand_random(r"\{x\} \(y\)", "1", []) == r"{x} \(y\)"


def test_shielding_is_undone() -> None:
    text = "a # b // c [d|e] 5% $3 \t __"
    assert shield(text) != text
    assert unshield(shield(text)) == text


def test_wildcards(folder: Path) -> None:
    assert expand_all("__colour__", [folder]) == ("red", "blue 50% #1")
    assert expand_all("__c/animal__", [folder]) == expand_all("__animal__", [folder])
    assert len(expand_all("__animal__", [folder])) == 5
    assert expand_all("__sky__", [folder]) == ("day", "night")
    drawn = [expand_random("__colour__", str(seed), [folder]) for seed in range(100)]
    assert 75 <= drawn.count("blue 50% #1") <= 99
    assert drawn == [expand_random("__colour__", str(seed), [folder]) for seed in range(100)]


def test_several_of_a_choice() -> None:
    assert expand_all("{2$$ and $$a|b}", []) == ("a and b", "b and a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__colou__", "wildcard 'colou' is unknown; did you mean colour"),
        ("{a", "the braces are not understood"),
        ("__loop__", "calls itself without end"),
        ("{1|2|3|4|5|6|7|8|9|0}" * 5, "more than 10000 combinations"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, message: str, folder: Path) -> None:
    with pytest.raises(DanqingError, match=message):
        expand_all(text, [folder])


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyparsing", None)
    with pytest.raises(DanqingError, match=r"pip install 'danqing\[dynamic\]'"):
        expand_random("{a|b}", "1", [])
