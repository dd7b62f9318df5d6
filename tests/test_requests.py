"""Requests: what is valid, in words, and that nothing else ever comes out of reading one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.request_parts import Reference
from danqing.requests import MAX_SEED, Outpaint, ResolvedRequest, TextToImage, read

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SPELLED = st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "64", "Euler", "dpmpp_2m karras", " Karras", "7,0.9", "cpu", "yes", "\0", "\udcff"]
)


@given(st.dictionaries(st.sampled_from(sorted(TextToImage.model_fields)) | st.text(), JUNK | SPELLED, max_size=6))
@example({"steps": 10**5000})
@example({"steps": "9" * 5000})
@example({"prompt": "\ud800"})
@example({"cfg_scale": float("nan")})
@example({"sampler_name": " " * 10_000})
def test_junk_is_a_valid_request_or_one_line(fields: dict[str, Any]) -> None:
    message = None
    try:
        request = read(TextToImage, fields)
    except DanqingError as error:
        message = str(error)
    if message is not None:
        assert len(message.splitlines()) == 1
        return
    assert read(TextToImage, request.model_dump()) == request
    assert TextToImage.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize("fields", [None, [], 5, "steps", {5: 6}])
def test_what_is_no_mapping_of_names(fields: Any) -> None:
    with pytest.raises(DanqingError):
        read(TextToImage, fields)


def test_text_is_taken_as_what_it_spells() -> None:
    request = read(
        TextToImage,
        {"steps": "20", "cfg_scale": "7.5", "discard_penultimate": "yes", "dynamic_thresholding": "6,0.98",
         "emphasis": "No norm", "noise_source": "GPU", "scheduler": "sgm_uniform", "sampler_name": "k_euler_a"},
    )  # fmt: skip
    assert (request.steps, request.cfg_scale, request.discard_penultimate) == (20, 7.5, True)
    assert request.dynamic_thresholding is not None
    assert request.dynamic_thresholding.percentile == 0.98
    assert (request.emphasis, request.noise_source, request.scheduler) == ("no norm", "gpu", "SGM Uniform")
    assert read(TextToImage, {"dynamic_thresholding": "6"}).dynamic_thresholding.percentile == 0.999  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"steps": 0}, "steps: should be greater than or equal to 1, but it is 0"),
        ({"widht": 64}, "widht: no such field; did you mean width"),
        ({"seed": MAX_SEED, "batch_size": 2}, "seed: the last of 2 pictures"),
        ({"subseed": MAX_SEED, "n_iter": 3}, "subseed: the last of 3 pictures"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "guidance_start: should not be above guidance_end, 0.5"),
        ({"s_tmin": 3, "s_tmax": 2}, "s_tmin: should not be above s_tmax, 2"),
        ({"sigma_min": 3, "sigma_max": 2}, "sigma_min: should not be above sigma_max, 2"),
        ({"steps": "x" * 10_000}, "steps: should be a valid integer"),
    ],
)
def test_messages(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(DanqingError) as caught:
        read(TextToImage, fields)
    assert str(caught.value).startswith(line)
    assert len(str(caught.value)) < 200


def test_the_largest_seed_paints_one_picture() -> None:
    assert read(TextToImage, {"seed": MAX_SEED}).seed == MAX_SEED


def test_requests_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TextToImage().steps = 3  # type: ignore[misc]


def resolved(**fields: Any) -> ResolvedRequest:
    return ResolvedRequest(request=TextToImage(**fields), family="sd1", checkpoint=Reference(name="m"))


def test_a_picture_of_a_batch_alone() -> None:
    alone = resolved(seed=5, batch_size=4, n_iter=2).picture(6).request
    assert (alone.seed, alone.batch_size, alone.n_iter) == (11, 1, 1)
    varied = resolved(seed=5, subseed=9, subseed_strength=0.5, batch_size=4).picture(3).request
    assert (varied.seed, varied.subseed) == (5, 12)


def test_a_record_reads_back() -> None:
    record = resolved(seed=5, prompt="猫", dynamic_thresholding={"mimic_scale": 3})
    text = record.model_dump_json(exclude_none=True)
    assert ResolvedRequest.model_validate_json(text) == record
    assert '"numerics"' in text  # a later version's default may be another


def test_an_outpaintings_record_has_its_size_and_is_read_again() -> None:
    asked = Outpaint(image="x.png", left=64, seed=1).model_copy(update={"width": 192, "height": 128})
    record = ResolvedRequest(request=asked, family="sd1", checkpoint=Reference(name="x"))
    again = ResolvedRequest.model_validate_json(record.model_dump_json(exclude_none=True))
    assert (again.kind, again.request.width, again.request.height) == ("outpaint", 192, 128)
    assert again.request == asked
