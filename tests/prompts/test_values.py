"""AUTOMATIC1111's notation of values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.prompts.values import join_csv, split_csv, spread

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85")).map(str.strip)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_csv_comes_back(values: list[str]) -> None:
    if values != [""]:
        assert split_csv(join_csv(values)) == values


@given(st.integers(-500, 500), st.integers(0, 300), st.integers(1, 50), st.booleans())
def test_ranges_are_pythons(first: int, length: int, step: int, down: bool) -> None:
    last = first - length if down else first + length
    sign = "-" if down else "+"
    end = last - 1 if down else last + 1
    assert spread(f"{first}-{last} ({sign}{step})", True) == list(range(first, end, -step if down else step))


@given(st.floats(-100, 100).map(lambda x: round(x, 3)), st.integers(1, 40), st.integers(2, 40))
def test_float_ranges_meet_their_ends(first: float, tenths: int, count: int) -> None:
    last = round(first + tenths / 10, 3)
    steps = spread(f"{first:.3f}-{last:.3f} (+0.1)", False)
    assert steps is not None
    assert len(steps) == tenths + 1
    assert (steps[0], steps[-1]) == (first, last)
    counted = spread(f"{first:.3f}-{last:.3f} [{count}]", False)
    assert counted is not None
    assert len(counted) == count
    assert (counted[0], counted[-1]) == (first, last)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("1-5 (+2)", [1, 3, 5]),
        ("10-5 (-3)", [10, 7]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),  # AUTOMATIC1111 cuts 3.25, 5.5, 7.75
        ("-3--1", [-3, -2, -1]),
        (" 2 - 3 ", [2, 3]),
    ],
)
def test_as_the_wiki_has_them(text: str, numbers: list[int]) -> None:
    assert spread(text, True) == numbers


@pytest.mark.parametrize("text", ["7", "-1", "1e-3", "a-b", "1-2-3", ""])
def test_what_is_no_range(text: str) -> None:
    assert spread(text, True) is None


@pytest.mark.parametrize("text", ["5-1", "1-5 (+0)", "1-5 [0]", "1-5 (-1)", "1-99999999", "1-2 (+0.5)"])
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(DanqingError, match="range"):
        spread(text, True)
