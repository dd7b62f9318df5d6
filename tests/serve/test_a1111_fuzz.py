"""Any JSON at AUTOMATIC1111's routes: pictures, or an error that is the caller's; never one of Danqing's own."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from danqing.errors import DanqingError
from danqing.serve.a1111_alwayson import ALWAYS_ON
from danqing.serve.a1111_bodies import Img2Img, Txt2Img
from danqing.serve.a1111_options import OPTIONS, Options
from danqing.serve.a1111_paint import paint
from danqing.serve.a1111_selectable import SELECTABLE
from danqing.serve.a1111_studio import Studio
from danqing.serve.a1111_tasks import Tasks
from danqing.serve.accept import Rules
from studio import fake_studio


def _png() -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(
        [1, 2, 64, 0.5, -1, "Euler", "karras", "canny", "None", "1,2", "a|b", "/etc/passwd", "x\0", "\ud800", _png()]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
UNIT = st.dictionaries(
    st.sampled_from(["model", "module", "image", "mask", "weight", "processor_res", "threshold_a", "control_mode",
                     "resize_mode", "ad_model", "ad_mask_k_largest", "enabled", "union_control_type"]),
    JUNK,
    max_size=5,
)  # fmt: skip
ALWAYS = st.dictionaries(
    st.sampled_from([script.title for script in ALWAYS_ON]),
    JUNK | st.builds(lambda args: {"args": args}, st.lists(JUNK | UNIT | st.just(True), max_size=12)),
    max_size=2,
)
CHOSEN = st.fixed_dictionaries(
    {
        "script_name": st.sampled_from([script.title for script in SELECTABLE]),
        "script_args": st.lists(JUNK | st.sampled_from(["Steps", "Seed", 4, 8, "Sampler", "1-3"]), max_size=18),
    }
)
OVERRIDES = st.fixed_dictionaries(
    {"override_settings": st.dictionaries(st.sampled_from(sorted(OPTIONS)) | st.text(max_size=5), JUNK, max_size=3)}
)


def bodies(cls: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(st.sampled_from(sorted(cls.model_fields)) | st.text(max_size=5), JUNK, max_size=4)
    always = st.builds(lambda value: {"alwayson_scripts": value}, ALWAYS)
    return st.builds(lambda *parts: {k: v for part in parts for k, v in part.items()}, fields,
                     st.just({}) | always, st.just({}) | CHOSEN, st.just({}) | OVERRIDES)  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder: Path = tmp_path_factory.mktemp("fuzz") / "data"
    engine, _ = fake_studio(folder, rules=Rules(paints=3, painted=1 << 18, enlarged=1 << 18, picture_pixels=1 << 18))

    def never(url: str) -> str:
        raise HTTPException(400, "Requests not allowed")

    yield Studio(engine, Options(engine.store), never, Tasks())
    engine.close()


def tried(studio: Studio, cls: type[Any], fields: dict[str, Any]) -> None:
    try:
        answer = paint(studio, cls.model_validate(fields))
    except (ValidationError, DanqingError):
        return
    except HTTPException as error:
        if error.status_code >= 500:
            raise
        return
    assert answer["parameters"] is not None
    json.dumps(answer, allow_nan=False).encode()
    json.loads(answer["info"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=bodies(Txt2Img))
def test_txt2img(studio: Studio, fields: dict[str, Any]) -> None:
    tried(studio, Txt2Img, fields)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=bodies(Img2Img))
def test_img2img(studio: Studio, fields: dict[str, Any]) -> None:
    tried(studio, Img2Img, {"init_images": [_png()], **fields})
