"""Tokens into chunks, by each tool's rule."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.prompts.chunks import LENGTH, Chunk, Layout, Run, chunks, wrap_by_comma, wrap_by_group
from danqing.prompts.tokenizer import clip

CASES = json.loads((Path(__file__).parent / "cases.json").read_text("utf-8"))
COMMA = 267
LAYOUT = Layout(start=1, end=2, pad=0, comma=COMMA)
RUNS = st.lists(
    st.builds(
        Run,
        ids=st.lists(st.sampled_from([COMMA, 7, 8, 9]), max_size=90).map(tuple),
        weight=st.sampled_from([1.0, 1.1, -1.0]),
        whole=st.booleans(),
    ),
    max_size=8,
)


def runs_of(case: dict) -> list[Run]:
    return [
        Run((), breaks=True)
        if run == "BREAK"
        else Run(tuple(COMMA if index in run[1] else 1000 + index for index in range(run[0])), run[2])
        for run in case["runs"]
    ]


@pytest.mark.parametrize("case", CASES["wrap_a1111"], ids=lambda case: str(case["runs"])[:60])
def test_wrap_by_comma(case: dict) -> None:
    assert [chunk.used for chunk in wrap_by_comma(runs_of(case), LAYOUT)] == case["used"]


@pytest.mark.parametrize("case", CASES["wrap_comfyui"], ids=lambda case: str(case["runs"])[:60])
def test_wrap_by_group(case: dict) -> None:
    assert [chunk.used for chunk in wrap_by_group(runs_of(case), LAYOUT)] == case["used"]


@pytest.mark.parametrize("wrap", [wrap_by_comma, wrap_by_group])
@given(RUNS)
def test_tokens_add_up(wrap: object, runs: list[Run]) -> None:
    made = wrap(runs, LAYOUT)  # type: ignore[operator]
    assert made
    tokens: list[tuple[int, float]] = []
    for chunk in made:
        assert len(chunk.ids) == len(chunk.weights) == LENGTH + 2
        assert 0 <= chunk.used <= LENGTH
        assert chunk.ids[0] == 1
        assert chunk.ids[chunk.used + 1] == 2
        assert set(chunk.ids[chunk.used + 2 :]) <= {0}
        outside = (chunk.weights[0], *chunk.weights[chunk.used + 1 :])
        assert set(outside) == {1.0}
        tokens += zip(chunk.ids[1 : chunk.used + 1], chunk.weights[1 : chunk.used + 1])
    assert tokens == [(token, run.weight) for run in runs for token in run.ids]


@given(RUNS)
def test_an_embedding_stays_whole(runs: list[Run]) -> None:
    marked = [
        Run(tuple(range(100 * n, 100 * n + len(run.ids))), run.weight, run.whole) for n, run in enumerate(runs, 3)
    ]
    made = wrap_by_comma(marked, Layout(1, 2, 0))
    for run in marked:
        if run.whole and 0 < len(run.ids) <= LENGTH:
            assert sum(run.ids[0] in chunk.ids and run.ids[-1] in chunk.ids for chunk in made) == 1


def test_a_short_text() -> None:
    made, cut = chunks("a (cat:1.3)", clip(), pad=0)
    assert cut == ()
    assert made == (Chunk((49406, 320, 2368, 49407, *(0,) * 73), (1.0, 1.0, 1.3, *(1.0,) * 74), 2),)
    (padded,) = chunks("", clip(), pad=49407)[0]
    assert padded == Chunk((49406, *(49407,) * 76), (1.0,) * 77, 0)


@pytest.mark.parametrize("text", ["a BREAK b", "a (x BREAK y:1.2)"])
def test_break(text: str) -> None:
    inside = "(" in text
    word = clip().encode("break")
    for dialect in ("danqing", "a1111"):
        made, _ = chunks(text, clip(), 0, dialect)
        assert len(made) == (1 if inside else 2)
    for dialect in ("comfyui", "diffusers"):
        made, _ = chunks(text, clip(), 0, dialect)
        assert len(made) == 1
        assert word[0] in made[0].ids
    assert len(chunks(text, clip(), 0, emphasis="none")[0]) == 1
    (made,) = chunks("(BREAK:-1)", clip(), 0, "comfyui")[0]
    assert made.ids[1 : made.used + 1] == tuple(word)


def test_no_emphasis_leaves_brackets() -> None:
    made, _ = chunks("(cat:1.3)", clip(), 0, emphasis="none")
    assert list(made[0].ids[1 : made[0].used + 1]) == clip().encode("(cat:1.3)")
    assert set(made[0].weights) == {1.0}


@given(st.integers(0, 200))
def test_diffusers_cuts(count: int) -> None:
    made, cut = chunks("cat " * count, clip(), 49407, "diffusers")
    assert len(made) == 1
    assert made[0].used == min(count, 75)
    assert len(cut) == max(count - 75, 0)
