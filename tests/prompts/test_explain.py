"""`danqing prompt "..."`: what is told is what happens."""

import pytest

from danqing.errors import DanqingError
from danqing.families import SD1
from danqing.prompts.explain import explain, render


def test_tokens_weights_and_changes() -> None:
    told = explain("a (cat:1.3) on a [red:blue:0.5] mat <lora:x:0.8:te=1> AND dog :0.7", SD1, 8)
    first, second = told.parts
    assert (first.weight, second.weight, second.segments[0].tokens) == (1.0, 0.7, 1)
    before, after = first.segments
    assert (before.start, before.until, after.start, after.until) == (0, 5, 5, 8)
    assert (after.gone, after.new) == (("red",), ("blue",))
    cat = before.chunks[0][1]
    assert (cat.position, cat.id, cat.word, cat.weight) == (2, 2368, "cat", 1.3)
    page = render(told)
    for line in (
        "Stable Diffusion 1.x, danqing dialect, 8 steps",
        "network: lora x 0.8 te=1",
        "part 2 of 2, weight 0.7",
        "steps 1 to 5: a (cat:1.3) on a red mat",
        "steps 6 to 8: a (cat:1.3) on a blue mat",
        "  changes: -[red] +[blue]",
        "  chunk 1 of 1: 6 of 75 tokens",
    ):
        assert line in page.splitlines()


@pytest.mark.parametrize(
    ("sampler", "spans"),
    [
        ("Euler", ["steps 1 to 4: a", "step 5: b"]),
        ("Heun", ["steps 1 to 3 (first half): a", "steps 3 (second half) to 5: b"]),
    ],
)
def test_second_order_samplers_switch_within_a_step(sampler: str, spans: list[str]) -> None:
    n = {"Euler": 3, "Heun": 4}[sampler]
    page = render(explain(f"[a:b:{n}]", SD1, 5, sampler=sampler)).splitlines()
    assert [line for line in page if line.startswith("step")] == spans


def test_dialects_differ() -> None:
    text = "((cat:1.3)) [dog]"
    weights = {}
    for dialect in ("danqing", "comfyui", "diffusers"):
        (segment,) = explain(text, SD1, 10, dialect).parts[0].segments
        weights[dialect] = {token.word: token.weight for token in segment.chunks[0]}
    assert weights["danqing"]["cat"] == pytest.approx(1.43)
    assert weights["comfyui"]["cat"] == 1.3
    assert weights["diffusers"]["cat"] == 1.0
    assert weights["danqing"]["dog"] == pytest.approx(1 / 1.1)
    assert weights["comfyui"]["dog"] == 1.0
    ignored = explain(text, SD1, 10, emphasis="ignore").parts[0].segments[0]
    assert {token.weight for token in ignored.chunks[0]} == {1.0}


def test_what_is_cut_and_what_is_literal_is_said() -> None:
    page = render(explain("cat " * 75 + "red bird", SD1, 10, "diffusers"))
    assert page.endswith("  cut: red bird")
    assert "no schedule" in render(explain("[a:b:3] c|d", SD1, 10))
    assert "(nothing)" in render(explain("[a:3]", SD1, 10))


def test_an_unknown_sampler() -> None:
    with pytest.raises(DanqingError, match="sampler"):
        explain("a", SD1, 10, sampler="Oiler")
