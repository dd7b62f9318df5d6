"""Junk by HTTP at every route of AUTOMATIC1111's and OpenAI's APIs, as their OpenAPI description lists them: never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danqing.serve.accept import Rules
from danqing.serve.app import create_app
from danqing.serve.settings import ServeSettings
from served import served
from studio import fake_studio

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["aGk=", "a", "\ud800", 1, 64]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("\ud800"), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    rules = Rules(paints=3, painted=1 << 18, enlarged=1 << 18, picture_pixels=1 << 18)
    engine, _ = fake_studio(tmp_path_factory.mktemp("fuzz") / "data", rules=rules)
    patches = pytest.MonkeyPatch()
    patches.setattr(engine.models, "get", lambda name: None)  # the fake loads no model
    app = create_app(engine, ServeSettings(page=False))
    paths = {path: row for path, row in app.openapi()["paths"].items() if not path.startswith(("/api/", "/metrics"))}
    with served(app=app) as port:
        yield f"http://127.0.0.1:{port}", {"paths": paths, "schemas": app.openapi()["components"]["schemas"]}
    patches.undo()
    engine.close()


def posts(described: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(path, names of its body's fields) of the POST routes."""
    found = []
    for path, row in described["paths"].items():
        if "post" in row:
            schema = row["post"].get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = schema.get("$ref", "").rpartition("/")[2]
            found.append((path, sorted(described["schemas"].get(name, {}).get("properties", {}))))
    return found


def test_every_list_answers(site: tuple[str, dict[str, Any]]) -> None:
    base, described = site
    for path, row in described["paths"].items():
        if "get" in row:
            assert requests.get(base + path, timeout=20).status_code == 200, path


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_junk_is_the_callers_fault(site: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    base, described = site
    path, names = data.draw(st.sampled_from(posts(described)))
    fields = st.dictionaries(st.sampled_from(names), JUNK, max_size=4) if names else JUNK
    raw = json.dumps(data.draw(fields | JUNK))
    answer = requests.post(base + path, data=raw, headers={"Content-Type": "application/json"}, timeout=20)
    assert answer.status_code < 500, (path, raw, answer.text)
