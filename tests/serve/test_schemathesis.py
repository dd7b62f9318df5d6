"""schemathesis at every route of both APIs, by their own OpenAPI description: what it makes up is never a 5xx.

With a fake painter, so that all that is asked of here is what comes before and after painting.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode

from danqing.requests import TextToImage
from danqing.serve.a1111_options import OPTIONS
from danqing.serve.a1111_scripts import SCRIPTS
from danqing.serve.accept import PICTURES, Rules
from danqing.serve.app import create_app
from danqing.serve.settings import ServeSettings
from served import served
from studio import fake_studio

ENDLESS = {"/api/v1/events"}
"""Streams that end with the studio alone."""


def words(identity: str) -> dict[str, list[Any]]:
    """What fields may be told besides what is made up, so that more is asked of the server than to refuse it."""
    plain = base64.b64encode(png(16)).decode()
    pictures = [plain, f"data:image/png;base64,{plain}", f"picture:{identity}", "", base64.b64encode(b"a").decode()]
    return {
        **dict.fromkeys((*PICTURES, *OTHER_PICTURES), pictures),
        "sampler_name": ["Euler a", "DPM++ 2M Karras", "", "none such"],
        "scheduler": ["Karras", "automatic", "", "none such"],
        "script_name": [*(script.title for script in SCRIPTS), "", "none such"],
        "controlnet_module": ["none", "canny", "tile_resample", "depth", "none such"],
        "upscaler_1": ["None", "Lanczos", "none such"],
        "upscaler": ["Lanczos", "Nearest", "none such"],
        "inpainting_fill": [0, 1, 2, 3, 4, "fill"],
        "resize_mode": [0, 1, 2, 3, 4, "just resize"],
        "size": ["64x64", "auto", "1x1", "x"],
        "prompt": ["a", "a | b", "[a:b:3] AND c", "<lora:x:1>", "{a|b}", "__x__", "(((", ""],
        "x": ["Steps=3,4", "Seed=1-9", "Prompt S/R=a,b", "", "=", "none such=1"],
    }


OTHER_PICTURES = ("init_images", "controlnet_input_images", "controlnet_images", "latent_mask", "data")
NEEDED = ("init_images", "image", "controlnet_input_images")
KEYS = {"override_settings": OPTIONS, "alwayson_scripts": [script.title for script in SCRIPTS if script.alwayson]}
"""Fields that are tables, and the names in these."""


def png(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "PNG")
    return data.getvalue()


def told(schema: Any, words: Mapping[str, list[Any]]) -> Any:
    """The description, with words for the fields that have some."""
    if isinstance(schema, list):
        return [told(each, words) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: told(each, words) for name, each in schema.items()}
    for name, field in (found.get("properties") or {}).items():
        if name in words:
            many = {"type": "array", "items": {"enum": words[name]}, "minItems": 1, "maxItems": 3}
            found["properties"][name] = many if "array" in json.dumps(field) else {"enum": words[name]}
            if name in NEEDED:
                found["required"] = sorted({*found.get("required", ()), name})
        elif name in KEYS:
            found["properties"][name] = {**field, "propertyNames": {"enum": [*KEYS[name], "none such"]}}
    return found


@dataclass(frozen=True)
class Site:
    base: str
    operations: tuple[Any, ...]
    known: dict[str, str]
    """Ids that are there, by the names of the parameters for them."""
    session: requests.Session


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    rules = Rules(paints=3, painted=1 << 20, enlarged=1 << 20, picture_pixels=1 << 16, waiting=10_000)
    engine, _ = fake_studio(tmp_path_factory.mktemp("schemathesis") / "data", rules=rules)
    patches = pytest.MonkeyPatch()
    patches.setattr(engine.models, "get", lambda *_: None)  # the fake loads no model
    patches.setattr(engine, "pause", lambda: None)  # all that waits for pictures would wait for ever
    job = engine.wait(engine.submit(TextToImage(prompt="a", seed=1, n_iter=2)).id, 10)
    one, other = engine.pictures(job.id)
    app = create_app(engine, ServeSettings(page=False))
    schema = schemathesis.openapi.from_dict(told(app.openapi(), words(one.id)))
    operations = tuple(result.ok() for result in schema.get_all_operations())
    known = {"job": job.id, "picture": one.id, "other": other.id}
    with served(app=app) as port, requests.Session() as session:
        yield Site(f"http://127.0.0.1:{port}", operations, known, session)
    patches.undo()
    engine.close()


def ask(site: Site, operation: Any, mode: GenerationMode, examples: int, *, random: bool) -> None:
    """Raises AssertionError at the first 5xx."""
    parameters = {name: value for name, value in site.known.items() if f"{{{name}}}" in operation.path}
    fixed = parameters if mode is GenerationMode.POSITIVE and parameters else None

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not random,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=fixed))
    def asked(case: Any) -> None:
        answer = case.call(base_url=site.base, session=site.session, timeout=30)
        assert answer.status_code < 500, (operation.label, case.as_curl_command(), answer.text)

    try:
        asked()
    except Unsatisfiable:  # a route that takes nothing can be told nothing wrong
        assert mode is GenerationMode.NEGATIVE


def run(site: Site, examples: int, *, random: bool) -> None:
    asked = [operation for operation in site.operations if operation.path not in ENDLESS]
    assert len(asked) > 70
    for operation in asked:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            ask(site, operation, mode, examples, random=random)
    assert site.session.get(f"{site.base}/healthz", timeout=10).status_code == 200


def test_a_few_of_everything(site: Site) -> None:
    run(site, 3, random=False)


@pytest.mark.long
def test_much_of_everything(site: Site) -> None:
    run(site, int(os.environ.get("DANQING_EXAMPLES", "100")), random=True)
