"""AUTOMATIC1111's infotext, held to its parser's rules (a key, a colon, a value that ends at a comma or is JSON)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.metadata.infotext import infotext, quote
from danqing.requests import Reference, ResolvedRequest, TextToImage

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The shape of a pair as INTEROP describes the tool's reader: a JSON string, or all up to the next comma."""
FILLED: dict[str, Any] = {
    "width": 512, "height": 768, "steps": 20, "cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
    "seed": 5, "noise_source": "cpu", "emphasis": "original", "clip_skip": 1,
}  # fmt: skip


def resolved(name: str = "anything-v3", sha256: str | None = None, **fields: Any) -> ResolvedRequest:
    request = TextToImage(**{**FILLED, "prompt": "a castle", **fields})
    return ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name=name, sha256=sha256))


def pairs(text: str) -> dict[str, str]:
    return {key: unquote(value) for key, value in _PAIR.findall(text.rpartition("\n")[2])}


def unquote(text: str) -> str:
    """A JSON string is what it spells; anything else is itself."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            pass
    return text


def test_the_three_parts() -> None:
    text = infotext(resolved(sha256="0123456789abcdef" * 4, negative_prompt="rain"))
    prompt, negative, line = text.split("\n")
    assert (prompt, negative) == ("a castle", "Negative prompt: rain")
    start = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, "
    assert line.startswith(start + "Model hash: 0123456789, Model: anything-v3, RNG: CPU, Version: danqing ")


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert len(infotext(resolved()).split("\n")) == 2


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"clip_skip": 2}, "Clip skip", "2"),
        ({"clip_skip": 1}, "Clip skip", None),
        ({"noise_source": "gpu"}, "RNG", None),
        ({"noise_source": "philox"}, "RNG", "NV"),
        ({"subseed": 9}, "Variation seed", None),
        ({"subseed": 9, "subseed_strength": 0.25}, "Variation seed", "9"),
        ({"subseed": 9, "subseed_strength": 0.25}, "Variation seed strength", "0.25"),
        ({"seed_resize_from_w": 64}, "Seed resize from", None),
        ({"seed_resize_from_w": 64, "seed_resize_from_h": 128}, "Seed resize from", "64x128"),
        ({"eta_noise_seed_delta": 31337}, "ENSD", "31337"),
        ({"tiling": "both"}, "Tiling", "True"),
        ({"tiling": "none"}, "Tiling", None),
        ({"emphasis": "no norm", "prompt": "(a:2)"}, "Emphasis", "No norm"),
        ({"emphasis": "no norm", "prompt": "a"}, "Emphasis", None),
        ({"emphasis": "original", "prompt": "(a:2)"}, "Emphasis", None),
        ({"s_min_uncond": 1.5}, "NGMS", "1.5"),
        ({"guidance_start": 0.1}, "Skip Early CFG", "0.1"),
        ({"sigma_max": 14.614643}, "Schedule max sigma", "14.614643"),
        ({"cfg_scale": 7.1234567}, "CFG scale", "7.1234567"),
    ],
)
def test_what_is_written_of_a_field(fields: dict[str, Any], key: str, value: str | None) -> None:
    assert pairs(infotext(resolved(**fields))).get(key) == value


def test_as_sd_parsers_reads_it() -> None:
    """It splits the last line at ", " and ": " and wants three of these keys, the sampler among them."""
    line = infotext(resolved(name="a, b: c", prompt="x, y: (z:1.2)\nw")).splitlines()[-1]
    plain = dict(part.split(": ", 1) for part in line.split(", ") if ": " in part)
    assert {key: plain[key] for key in ("Steps", "Sampler", "CFG scale", "Seed", "Size")} == {
        "Steps": "20", "Sampler": "DPM++ 2M", "CFG scale": "7", "Seed": "5", "Size": "512x768",
    }  # fmt: skip
    assert pairs(line)["Model"] == "a, b: c"


@given(st.text())
def test_quoting_is_undone_by_json(text: str) -> None:
    written = quote(text)
    if any(character in text for character in ",:\n"):
        assert json.loads(written) == text
        assert "\n" not in written
    else:
        assert written == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_lose_nothing(value: float) -> None:
    assert float(quote(value)) == value


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_model_of_any_name_leaves_the_other_pairs_readable(name: str) -> None:
    text = infotext(resolved(name=name))
    assert text.count("\n") == 1
    read = pairs(text)
    assert read["Seed"] == "5"
    assert read["Version"].startswith("danqing ")
    if any(character in name for character in ",:\n"):
        assert read["Model"] == name
