"""The prompt language: the recorded table, what differs from it on purpose, and properties of any text."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.prompts.grammar import (
    BREAK,
    MAX_WEIGHT,
    NetworkTag,
    Segment,
    schedule,
    split_and,
    strip_comments,
    take_tags,
    understand,
    weigh,
)

CASES = json.loads((Path(__file__).parent / "cases.json").read_text("utf-8"))
DIALECTS = ("danqing", "a1111", "comfyui", "diffusers")
BITS = st.sampled_from(
    [
        *"()[]:|\\<># \n.,-+",
        "a",
        "b c",
        "0.5",
        "3",
        ":2)",
        ":0.5]",
        "[a:b:3]",
        "[x|y]",
        "BREAK",
        "AND",
        "红",
        "😀",
        "<l:x>",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(BITS, max_size=30).map("".join))


def by_text(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: repr(case["text"]))


def test_the_table_is_large_enough() -> None:
    assert sum(len(CASES[kind]) for kind in CASES if kind != "about") >= 150


@by_text("schedule")
def test_schedule(case: dict) -> None:
    entries = schedule(
        case["text"], case["calls"], old_scheduling=case.get("old", False), first_pass=case.get("first_pass")
    )
    assert [list(entry) for entry in entries] == case["entries"]


@by_text("readings")
def test_an_ambiguous_text_always_has_its_schedule(case: dict) -> None:
    assert [list(entry) for entry in schedule(case["text"], case["calls"])] == case["entries"]


@by_text("weigh")
def test_weigh(case: dict) -> None:
    assert [list(piece) for piece in weigh(case["text"])] == case["pieces"]


@by_text("weigh_comfyui")
def test_weigh_comfyui(case: dict) -> None:
    assert [list(piece) for piece in weigh(case["text"], "comfyui")] == case["pieces"]


@by_text("and")
def test_and(case: dict) -> None:
    assert [list(part) for part in split_and(case["text"])] == case["parts"]


@by_text("tags")
def test_tags(case: dict) -> None:
    rest, tags = take_tags(case["text"])
    assert rest == case["rest"]
    # the reference groups its tags by kind
    recorded = [NetworkTag(kind, tuple(positional), named) for kind, positional, named in case["tags"]]
    assert sorted(tags, key=lambda tag: tag.kind) == sorted(recorded, key=lambda tag: tag.kind)


@by_text("comments")
def test_comments(case: dict) -> None:
    assert strip_comments(case["text"]) == case["rest"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("(a:1.1.1)", [("a:1.1.1", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("a:1.1.1)", [("a:1.1.1)", 1.0)]),
        ("(a:" + "9" * 400 + ")", [("a:" + "9" * 400, 1.1)]),
        ("(a:" + "9" * 300 + ")", [("a", MAX_WEIGHT)]),
    ],
)
def test_what_is_no_number_is_text(text: str, pieces: list) -> None:
    """AUTOMATIC1111 raises on these, or makes an infinite weight."""
    assert list(weigh(text)) == pieces


@pytest.mark.parametrize("weight", ["inf", "nan", "-inf", "1e400"])
def test_comfyui_weights_are_numbers(weight: str) -> None:
    assert list(weigh(f"(a:{weight})", "comfyui")) == [(f"a:{weight}", 1.1)]


def test_numbers_beyond_all_bounds() -> None:
    assert schedule("[a:b:1e999]", 10) == [(10, "a")]
    assert schedule("[a:b:-1.5e999]", 10) == [(10, "b")]
    assert split_and("a:" + "9" * 400) == [("a", MAX_WEIGHT)]


def test_understand_joins_everything() -> None:
    prompt = understand("a <lora:x:0.8:te=1> [cat:dog:0.5] # told later\nAND bird :0.7", 20)
    assert prompt.networks == (NetworkTag("lora", ("x", "0.8"), {"te": "1"}),)
    first, second = prompt.parts
    assert (first.weight, second.weight) == (1.0, 0.7)
    assert first.segments == (Segment(11.0, "a  cat"), Segment(math.inf, "a  dog"))
    assert second.segments == (Segment(math.inf, " bird"),)
    assert not first.literal


def test_second_order_samplers_count_calls() -> None:
    """[a:b:5] of a Heun run holds a for the calls 0 to 5, which are the steps 0, 0.5, ... 2.5."""
    (part,) = understand("[a:b:5]", 20, calls_per_step=2).parts
    assert part.segments == (Segment(3.0, "a"), Segment(math.inf, "b"))
    (part,) = understand("[a:b:0.5]", 5, calls_per_step=2).parts
    assert part.segments[0].until == 3.0
    (part,) = understand("[a:b:0.4]", 5, calls_per_step=2).parts
    assert part.segments[0].until == 2.5


def test_what_is_never_seen_is_no_segment() -> None:
    assert understand("[a:b:19]", 20).parts[0].segments == (Segment(math.inf, "a"),)
    assert understand("[a:b:18]", 20).parts[0].segments == (Segment(19.0, "a"), Segment(math.inf, "b"))
    assert [segment.text for segment in understand("[a|b]", 4).parts[0].segments] == ["a", "b", "a"]


def test_neighbours_that_say_the_same_are_one_segment() -> None:
    assert understand("[a:a:3] [b|b]", 20).parts[0].segments == (Segment(math.inf, "a b"),)


def test_a_second_pass_goes_on() -> None:
    (part,) = understand("[a:b:25]", 10, first_pass_steps=20).parts
    assert part.segments == (Segment(6.0, "a"), Segment(math.inf, "b"))
    (part,) = understand("[a:b:50]", 10, first_pass_steps=20, calls_per_step=2).parts
    assert part.segments == (Segment(5.5, "a"), Segment(math.inf, "b"))


def test_a_negative_prompt_is_one_part() -> None:
    (part,) = understand("a AND b :2", 10, negative=True).parts
    assert (part.weight, part.segments[0].text) == (1.0, "a AND b :2")


def test_literal_parts_are_marked() -> None:
    assert [part.literal for part in understand("a|b AND [a|b] AND (c", 10).parts] == [True, False, False]


@pytest.mark.parametrize("dialect", ["comfyui", "diffusers"])
def test_other_dialects_keep_the_text(dialect: str) -> None:
    text = "[a:b:3] AND c # d\n<lora:x:1> BREAK :2"
    prompt = understand(text, 20, dialect=dialect)
    assert prompt.networks == ()
    assert [part.segments for part in prompt.parts] == [(Segment(math.inf, text),)]
    assert [tuple(piece) for piece in weigh("(a:1.2) [b] BREAK", "diffusers")] == [("(a:1.2) [b] BREAK", 1.0)]


@given(TEXTS, st.integers(1, 12), st.sampled_from(DIALECTS), st.integers(1, 2), st.booleans(), st.booleans())
def test_any_text_is_understood(text: str, steps: int, dialect: str, calls: int, old: bool, negative: bool) -> None:
    prompt = understand(text, steps, dialect=dialect, calls_per_step=calls, old_scheduling=old, negative=negative)
    assert prompt.text == text
    assert prompt.parts
    for part in prompt.parts:
        ends = [segment.until for segment in part.segments]
        assert ends == sorted(set(ends))
        assert ends[-1] == math.inf
        assert all(0 < end <= steps for end in ends[:-1])
        assert all(a.text != b.text for a, b in pairwise(part.segments))
        assert abs(part.weight) <= MAX_WEIGHT


@given(TEXTS, st.sampled_from(DIALECTS))
def test_weights_are_finite_and_words_are_kept(text: str, dialect: str) -> None:
    pieces = weigh(text, dialect)
    assert pieces
    assert all(math.isfinite(weight) and abs(weight) <= MAX_WEIGHT for _, weight in pieces)
    assert all(first.weight != second.weight for first, second in pairwise(pieces)) or dialect == "comfyui"
    kept = "".join(piece.text for piece in pieces)
    letters = [letter for letter in text if letter.isalpha()]
    assert [letter for letter in kept if letter.isalpha()] == letters


@given(st.text(st.characters(exclude_characters="\\()[]:|#<BA")))
def test_plain_text_is_itself_in_every_dialect(text: str) -> None:
    for dialect in DIALECTS:
        (part,) = understand(text, 10, dialect=dialect, negative=True).parts
        assert part.segments == (Segment(math.inf, text),)
        assert [tuple(piece) for piece in weigh(text, dialect)] == [(text, 1.0)]


@settings(max_examples=50)
@given(st.text(), st.floats(-50, 50).map(lambda value: round(value, 3)))
def test_a_written_weight_is_the_weight(text: str, weight: float) -> None:
    escaped = "".join("\\" + letter if letter in "()[]\\" else letter for letter in text.replace("BREAK", ""))
    written = f"({escaped}:{weight:.3f})"
    (piece,) = weigh(written) if escaped else [(text, weight)]
    assert tuple(piece) == (text.replace("BREAK", ""), weight)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        "[" * 20_000 + "a" + "]" * 20_000,
        "(a" * 20_000 + ")" * 20_000,
        "[a:" * 20_000 + "b" + ":3]" * 20_000,
        "[a|" * 5_000 + "b" + "]" * 5_000,
        ")" * 20_000,
        "[:" * 20_000,
        "\\" * 20_001,
        ":" * 20_000,
        " " * 50_000 + "x",
        "BREAK " * 10_000,
        "AND " * 10_000,
        "<a:" * 10_000,
        "<a:b>" * 10_000,
        "#\n" * 10_000,
        "a" * 50_000,
        "(a:" * 10_000 + "1.1)" * 10_000,
    ],
    ids=lambda text: text[:8],
)
def test_any_length_and_nesting_ends(text: str, dialect: str) -> None:
    prompt = understand(text, 8, dialect=dialect)
    for part in prompt.parts[:3]:
        for segment in part.segments:
            assert all(math.isfinite(weight) for _, weight in weigh(segment.text, dialect))


def test_nested_editing_deeper_than_any_stack() -> None:
    text = "[a:" * 5_000 + "b" + ":2]" * 5_000
    assert schedule(text, 4) == [(2, "a"), (4, "b")]
    assert weigh("(" * 300 + "a")[0].weight == 1.0
    assert weigh("(" * 200 + "a")[0].weight == MAX_WEIGHT


def test_break_is_told_from_its_word() -> None:
    assert BREAK in weigh("a BREAK b")
    assert BREAK not in weigh("a (BREAK) b")
