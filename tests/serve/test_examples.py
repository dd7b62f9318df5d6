"""The examples of /openapi.json: each route has them, what is to be sent is taken, and what is answered looks like that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from danqing.requests import TextToImage
from danqing.serve import a1111_paint
from danqing.serve.app import create_app
from danqing.serve.engine import Engine
from danqing.serve.examples import EXAMPLES
from danqing.serve.settings import ServeSettings
from studio import fake_studio

BARE = {"POST /sdapi/v1/skip", "POST /sdapi/v1/options", *(route for route in EXAMPLES if "refresh-" in route)}
"""They answer null."""
ABSENT = {"POST /promptgen/generate"}
"""It needs a model that no test has."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine, _ = fake_studio(tmp_path_factory.mktemp("examples") / "data")
    engine.models.get = lambda name=None, vae=None: None  # type: ignore[assignment,method-assign,return-value]
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    app = create_app(engine, ServeSettings(page=False))
    return TestClient(app, base_url="http://127.0.0.1:7860", client=("127.0.0.1", 1), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def routes(client: TestClient) -> dict[str, Any]:
    paths = client.get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}": row for path, rows in paths.items() for method, row in rows.items()}


def test_every_route_has_a_line_and_examples(routes: dict[str, Any], client: TestClient) -> None:
    assert EXAMPLES.keys() <= routes.keys()
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for route, operation in routes.items():
        if "/api/v1" not in route and route not in ("GET /healthz", "GET /metrics"):
            assert EXAMPLES[route].summary, route
        assert any(status[0] in "45" for status in operation["responses"]) or route == "GET /metrics", route
        for content in operation.get("requestBody", {}).get("content", {}).values():
            named = content["schema"].get("$ref", "").rpartition("/")[2]
            assert content.keys() & {"example", "examples"} or schemas[named].get("examples"), route
        for status, answer in operation["responses"].items():
            if status.startswith("2") and "application/json" in answer.get("content", {}) and route not in BARE:
                assert "example" in answer["content"]["application/json"], route


def bodies(operation: Any, schemas: Any) -> list[Any]:
    content = operation["requestBody"]["content"]["application/json"]
    if "examples" in content:
        return [each["value"] for each in content["examples"].values()]
    named = content["schema"].get("$ref", "").rpartition("/")[2]
    return [content["example"]] if "example" in content else schemas[named]["examples"]


def test_what_is_to_be_sent_is_taken_and_answered_as_shown(
    routes: dict[str, Any], client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(a1111_paint, "find_captioner", lambda settings: "folder")
    monkeypatch.setattr(a1111_paint, "load_captioner", lambda folder, **how: lambda picture: "a red square")
    job = engine.wait(engine.submit(TextToImage(prompt="a", seed=1)).id, 10).id
    picture = engine.pictures(job)[0].id
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    tried = 0
    for route, operation in routes.items():
        method, _, path = route.partition(" ")
        if "application/json" not in operation.get("requestBody", {}).get("content", {}) or route in ABSENT:
            continue
        for body in bodies(operation, schemas):
            target = job
            if "{job}" in path:  # one that waits has a place in the queue
                engine.pause()
                target = engine.submit(TextToImage(prompt="b", seed=2)).id
            here = path.replace("{job}", target).replace("{picture}", picture)
            if "0123456789abcdef0123456789abcdef" in str(body):
                body = {**body, "request": {**body["request"], "image": f"picture:{picture}"}}
            answer = client.request(method, here, json=body)
            engine.resume()
            assert answer.status_code in (200, 201), (route, answer.text)
            if route in EXAMPLES and EXAMPLES[route].answer is not None:
                alike(EXAMPLES[route].answer, answer.json(), route)
            tried += 1
    assert tried > 20


def test_what_lists_answer_is_as_shown(routes: dict[str, Any], client: TestClient, engine: Engine) -> None:
    job = engine.wait(engine.submit(TextToImage(prompt="a", seed=1)).id, 10).id
    picture = engine.pictures(job)[0].id
    for route, operation in routes.items():
        if route.startswith("GET") and "application/json" in operation["responses"]["200"].get("content", {}):
            path = route.removeprefix("GET ").replace("{job}", job)
            answer = client.get(path.replace("{picture}", picture).replace("{other}", picture))
            assert answer.status_code == 200
            alike(EXAMPLES[route].answer, answer.json(), route)


def alike(example: Any, answer: Any, route: str) -> None:
    """Whether an example has the types and no other names than the answer, as far as there is something in both."""
    assert isinstance(answer, type(example)) or None in (answer, example), (route, example, answer)
    if isinstance(example, dict) and route not in NAMED:
        assert example.keys() <= answer.keys(), (route, example.keys() - answer.keys())
        for name in example:
            if name not in OPEN:
                alike(example[name], answer[name], route)
    elif isinstance(example, list) and example and answer:
        alike(example[0], answer[0], route)


NAMED = {"GET /api/v1/tags", "GET /api/v1/pictures/{picture}/differences/{other}"}
"""Their names are what people chose."""
OPEN = {"parameters", "request", "loaded", "options", "metadata", "ram", "left"}
