"""Names and aliases: each means one thing, in any case, and a misspelt one is answered with the nearest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.sampling.samplers import SAMPLER_FUNCTIONS
from danqing.vocabulary import (
    DIALECT_EMPHASIS,
    DIALECT_NOISE,
    DIALECT_SCHEDULER,
    DIALECTS,
    SAMPLERS,
    SCHEDULERS,
    choose,
    find_sampler,
    find_scheduler,
    nearest,
    quoted,
    split_combined,
)


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_every_sampler_is_found_by_all_its_names(row: object) -> None:
    for label in (row.name, *row.aliases):  # type: ignore[attr-defined]
        for spelled in (label, label.upper(), f" {label.lower()} "):
            assert find_sampler(spelled) is row


@pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: row.name)
def test_every_scheduler_is_found_by_all_its_names(row: object) -> None:
    for label in (row.name, *row.aliases):  # type: ignore[attr-defined]
        assert find_scheduler(label.upper()) is row


def test_no_name_means_two_things() -> None:
    for rows in (SAMPLERS, SCHEDULERS):
        labels = [{label.casefold() for label in (row.name, *row.aliases)} for row in rows]
        assert sum(map(len, labels)) == len(set().union(*labels))


def test_the_tables_agree() -> None:
    assert {row.name for row in SAMPLERS} == set(SAMPLER_FUNCTIONS)
    for row in SAMPLERS:
        find_scheduler(row.scheduler)
    for table in (DIALECT_EMPHASIS, DIALECT_NOISE, DIALECT_SCHEDULER):
        assert set(table) == set(DIALECTS)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("dpm++ 2m sde exponential", ("dpm++ 2m sde", "Exponential")),
        ("Euler a", ("Euler a", None)),
        ("k_dpmpp_2m sgm_uniform", ("k_dpmpp_2m", "SGM Uniform")),
        ("DDIM", ("DDIM", None)),
        ("Karras", ("Karras", None)),
    ],
)
def test_combined_names(name: str, split: tuple[str, str | None]) -> None:
    assert split_combined(name) == split


@pytest.mark.parametrize(
    ("name", "word"),
    [("Eulr", "Euler"), ("dpmpp2m", "DPM++ 2M"), ("DPM++2M Karas", "DPM++ 2M"), ("qq", "choose one of: DPM++ 2M, ")],
)
def test_the_nearest_samplers(name: str, word: str) -> None:
    with pytest.raises(DanqingError, match="sampler") as caught:
        find_sampler(name)
    assert word in str(caught.value)
    assert repr(name) in str(caught.value)


def test_choose() -> None:
    assert choose("layout", " LDM", ["ldm", "diffusers"]) == "ldm"
    with pytest.raises(DanqingError, match="layout 'x' is unknown; choose one of: ldm, diffusers"):
        choose("layout", "x", ["ldm", "diffusers"])


def test_nearest_is_best_first_and_none_where_nothing_is_like_it() -> None:
    assert nearest("stepz", ["seed", "steps", "size"])[0] == "steps"
    assert nearest("zzzz", ["seed", "steps"]) == []


@given(st.text() | st.integers() | st.lists(st.text()))
def test_quoted_values_are_short_and_on_one_line(value: object) -> None:
    assert len(quoted(value)) <= 600
    assert len(quoted(value).splitlines()) == 1


@given(st.text())
def test_any_name_is_found_or_one_line(name: str) -> None:
    for find in (find_sampler, find_scheduler):
        message = "found"
        try:
            find(name)
        except DanqingError as error:
            message = str(error)
        assert len(message.splitlines()) == 1
    head, scheduler = split_combined(name)
    assert scheduler is None or name.strip().startswith(head)
