"""Danqing's own API over a studio whose painter is a fake."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from starlette.testclient import TestClient

from danqing.serve.accept import Rules
from danqing.serve.app import create_app
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings
from danqing.serve.store import Query
from danqing.serve.tables import phrases, spaced
from studio import STEPS, fake_studio

BASE = "http://127.0.0.1:7860"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine, _ = fake_studio(tmp_path / "data", rules=Rules(waiting=20))
    yield engine
    engine.close()


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> TestClient:
    settings = ServeSettings(api=False, page=False, folders=(tmp_path / "pictures",))
    return TestClient(create_app(engine, settings), base_url=BASE, client=("127.0.0.1", 50000))


def painted(client: TestClient, **request: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the job, its pictures) of a request that is waited for."""
    answer = client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {"seed": 1, **request}})
    assert answer.status_code == 201, answer.text
    job = client.get(f"/api/v1/jobs/{answer.json()['id']}", params={"wait": 10}).json()
    assert job["state"] == "done", job["error"]
    return job, client.get(f"/api/v1/jobs/{job['id']}/pictures").json()


def test_pictures_may_be_waited_for(client: TestClient, engine: Engine) -> None:
    job = client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {"seed": 1, "batch_size": 3}}).json()["id"]
    assert len(client.get(f"/api/v1/jobs/{job}/pictures", params={"wait": 10}).json()) == 3
    engine.pause()
    job = client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {"seed": 1}}).json()["id"]
    assert client.get(f"/api/v1/jobs/{job}/pictures", params={"wait": 0.05}).json() == []
    assert client.get(f"/api/v1/jobs/{'0' * 32}/pictures", params={"wait": 10}).status_code == 404


def test_a_job_from_request_to_file(client: TestClient) -> None:
    job, (first, second) = painted(client, prompt="a red apple", batch_size=2)
    assert job["request"]["prompt"] == "a red apple"
    assert (first["seed"], second["seed"]) == (1, 2)
    answer = client.get(second["url"])
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).getpixel((0, 0)) == (2, 0, 1)
    small = Image.open(io.BytesIO(client.get(first["thumbnail"], params={"side": 16}).content))
    assert (small.format, small.size) == ("WEBP", (16, 16))
    told = client.get(f"/api/v1/pictures/{first['id']}/request").json()
    assert told["request"]["prompt"] == "a red apple"
    assert client.get(f"/api/v1/jobs/{job['id']}/progress").json()["share"] == 1
    assert client.get(f"/api/v1/jobs/{job['id']}/preview").status_code == 204
    assert client.get("/api/v1/jobs", params={"state": "done"}).json()[0]["id"] == job["id"]


def test_what_is_wrong_is_told_in_one_line(client: TestClient) -> None:
    for body, status, words in (
        ({"kind": "txt2img", "request": {"sampler_name": "Eulr"}}, 400, "did you mean"),
        ({"kind": "txt2img", "request": {"stesp": 4}}, 422, "stesp"),
        ({"kind": "txt2img", "request": {"steps": 0}}, 422, "steps"),
        ({"kind": "txt2image", "request": {}}, 422, "kind"),
        ({"kind": "img2img", "request": {"image": "data:image/png;base64,AAAA"}}, 400, "no picture"),
        ({"kind": "txt2img", "request": {"batch_size": 64, "n_iter": 1000}}, 400, "at most 1000"),
    ):
        answer = client.post("/api/v1/jobs", json=body)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]
    missing = client.get(f"/api/v1/jobs/{'0' * 32}")
    assert (missing.status_code, "none with the id" in missing.json()["error"]) == (404, True)
    assert client.get("/api/v1/jobs/nothing").status_code == 422
    assert client.get(f"/api/v1/pictures/{'0' * 32}/file").status_code == 404
    assert client.get("/api/v1/nothing").status_code == 404


def test_the_queue_can_be_paused_moved_and_cancelled(client: TestClient) -> None:
    assert client.post("/api/v1/queue/pause").json()["paused"] is True
    body = {"kind": "txt2img", "request": {"prompt": "a"}}
    ids = [client.post("/api/v1/jobs", json=body).json()["id"] for _ in range(3)]
    assert client.post(f"/api/v1/jobs/{ids[2]}/move", json={"before": ids[0]}).status_code == 200
    assert client.patch(f"/api/v1/jobs/{ids[1]}", json={"priority": 3}).json()["priority"] == 3
    waiting = client.get("/api/v1/jobs", params={"state": ["queued", "running"]}).json()
    assert {job["id"] for job in waiting} == set(ids)
    assert client.delete(f"/api/v1/jobs/{ids[0]}").json()["state"] in ("cancelled", "running")
    assert client.post("/api/v1/queue/resume").json()["paused"] is False
    for job in ids[1:]:
        assert client.get(f"/api/v1/jobs/{job}", params={"wait": 10}).json()["state"] == "done"


def test_a_full_queue_says_to_come_again(client: TestClient) -> None:
    client.post("/api/v1/queue/pause")
    body = {"kind": "txt2img", "request": {"prompt": "a"}}
    answers = [client.post("/api/v1/jobs", json=body) for _ in range(22)]
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"] == "10"
    client.post("/api/v1/queue/resume")


def _events(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_events_of_a_job_end_with_it(client: TestClient) -> None:
    client.post("/api/v1/queue/pause")
    body = {"kind": "txt2img", "request": {"prompt": "a", "n_iter": 2}}
    job = client.post("/api/v1/jobs", json=body).json()["id"]
    import threading

    threading.Timer(0.2, lambda: client.post("/api/v1/queue/resume")).start()
    events = _events(client.get(f"/api/v1/jobs/{job}/events", params={"previews": True}).text)
    names = [name for name, _ in events]
    assert names[0] == "job"
    assert events[-1] == ("ended", {"job": job, "state": "done", "error": None})
    assert names.count("picture") == 2
    assert 2 <= names.count("progress") <= 2 * STEPS
    later = _events(client.get(f"/api/v1/jobs/{job}/events").text)
    assert [(name, data["state"]) for name, data in later] == [("job", "done")]


def test_the_gallery_is_searched_by_words_model_seed_date_rating_and_tag(client: TestClient, engine: Engine) -> None:
    _, (apple,) = painted(client, prompt="a red apple, on_a table", seed=11)
    _, (castle,) = painted(client, prompt="a castle in the snow, 一只红色的苹果", seed=2**64 - 1, model="Castles v2")
    _, (other,) = painted(client, prompt="an applet of snowdrops", seed=13)

    def found(**query: Any) -> set[str]:
        answer = client.get("/api/v1/pictures", params=query)
        assert answer.status_code == 200, answer.text
        assert answer.json()["total"] == len(answer.json()["pictures"])
        return {picture["id"] for picture in answer.json()["pictures"]}

    a, c, o = apple["id"], castle["id"], other["id"]
    assert found() == {a, c, o}
    assert found(words="apple") == {a, o}  # the last word may be a beginning
    assert found(words="apple red") == {a}
    assert found(words='"apple red"') == set()
    assert found(words='"red apple"') == {a}
    assert found(words="SNOW castle") == {c}
    assert found(words="苹果") == {c}
    assert found(words="果苹") == set()
    assert found(words="castles v2") == {c}
    for odd in ('"', "a\"b'", "NEAR(", "^*:-()", "_", "AND OR NOT", "\u0000", "<script>", "²", "ａ"):
        found(words=odd)
    assert found(model="castles") == {c}
    assert found(model="%") == set()
    assert found(seed=2**64 - 1) == {c}
    assert found(seed=11) == {a}
    assert found(since=time.time() + 60) == set()
    assert found(until=time.time() + 60, since=1) == {a, c, o}
    assert client.patch(
        f"/api/v1/pictures/{a}", json={"rating": 4, "favourite": True, "tags": ["水果", "Best"]}
    ).json()["tags"] == ["Best", "水果"]
    assert found(rating=4) == {a}
    assert found(rating=5) == set()
    assert found(favourite=True) == {a}
    assert found(tag="水果") == {a}
    assert found(words="best") == {a}
    assert client.get("/api/v1/tags").json() == {"Best": 1, "水果": 1}
    assert client.patch(f"/api/v1/pictures/{a}", json={"tags": []}).json()["tags"] == []
    assert found(words="best") == set()
    assert client.patch(f"/api/v1/pictures/{a}", json={"rating": 6}).status_code == 422
    differ = client.get(f"/api/v1/pictures/{a}/differences/{o}").json()
    assert differ["seed"] == [11, 13]
    assert "steps" not in differ


def test_delete_and_restore(client: TestClient) -> None:
    _, (picture,) = painted(client, prompt="a cat")
    place = f"/api/v1/pictures/{picture['id']}"
    assert client.delete(place).json()["deleted"] is not None
    assert client.get("/api/v1/pictures").json()["total"] == 0
    assert client.get("/api/v1/pictures", params={"deleted": True}).json()["total"] == 1
    assert client.post(f"{place}/restore").json()["deleted"] is None
    assert client.get("/api/v1/pictures").json()["total"] == 1


def test_a_folder_of_another_tools_pictures_is_imported_once(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Model: dogs")
    Image.new("RGB", (64, 64), "red").save(folder / "below" / "a.png", pnginfo=info)
    Image.new("RGB", (32, 16)).save(folder / "plain.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    (folder / "notes.txt").write_text("no picture")
    answer = client.post("/api/v1/pictures/import", json={"folder": str(folder)}).json()
    assert (answer["added"], answer["known"], len(answer["failed"])) == (2, 0, 1)
    (dog,) = client.get("/api/v1/pictures", params={"words": "dog", "seed": 5, "model": "dogs"}).json()["pictures"]
    assert dog["infotext"].startswith("a dog")
    assert client.get(dog["url"]).status_code == 200
    again = client.post("/api/v1/pictures/import", json={"folder": str(folder)}).json()
    assert (again["added"], again["known"]) == (0, 2)
    stranger = client.post("/api/v1/pictures/import", json={"folder": "~nobody-is-called-that"})
    assert stranger.status_code == 400, "a home that is not there is a folder that may not be imported"


def test_pictures_come_as_data_urls_and_from_the_gallery(client: TestClient) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    answer = client.post("/api/v1/jobs", json={"kind": "upscale", "request": {"images": [url], "scale": 2}})
    assert answer.status_code == 201, answer.text
    assert "base64" not in answer.text
    job = client.get(f"/api/v1/jobs/{answer.json()['id']}", params={"wait": 10}).json()
    assert job["state"] == "done"
    (picture,) = client.get(f"/api/v1/jobs/{job['id']}/pictures").json()
    body = {"kind": "img2img", "request": {"image": f"picture:{picture['id']}", "prompt": "a"}}
    assert client.post("/api/v1/jobs", json=body).status_code == 201


def test_health_metrics_and_lists(client: TestClient, engine: Engine) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    painted(client, prompt="a")
    text = client.get("/metrics").text
    assert 'danqing_jobs{state="done"} 1.0' in text
    assert "danqing_pictures_total 1.0" in text
    assert f"danqing_steps_total {float(STEPS)}" in text
    assert "Euler a" in client.get("/api/v1/samplers").json()["samplers"]
    assert any(row["name"] == "danqing" for row in client.get("/api/v1/models").json())
    assert client.get("/api/v1/models/loaded").json()["models"] == []
    assert "version" in client.get("/api/v1/version").json()
    engine.close()
    assert client.get("/healthz").status_code == 503


def test_the_openapi_document_has_all_routes_with_examples(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "Danqing"
    job = document["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert "a picture" in job["examples"]
    assert all("summary" in route for path in document["paths"].values() for route in path.values())


def test_words_are_split_for_the_index() -> None:
    assert spaced("A red-Apple, (snow:1.2) 红苹果 x_y") == "a red apple snow 1 2 红 苹 果 x y"
    assert phrases('red "big apple" 苹果') == ["red", "big apple", "苹 果"]


def test_many_pictures_are_paged(client: TestClient, engine: Engine) -> None:
    painted(client, prompt="a", n_iter=5)
    first = client.get("/api/v1/pictures", params={"limit": 2}).json()
    last = client.get("/api/v1/pictures", params={"limit": 2, "offset": 4}).json()
    assert (first["total"], len(first["pictures"]), len(last["pictures"])) == (5, 2, 1)
    assert engine.store.count(Query()) == 5


def test_a_picture_whose_file_was_taken_away_is_not_found(client: TestClient, engine: Engine) -> None:
    _, (picture,) = painted(client, prompt="a")
    engine.path(engine.store.picture(picture["id"])).unlink()
    for url in (picture["url"], picture["thumbnail"]):
        answer = client.get(url)
        assert answer.status_code == 404
        assert "not there any more" in answer.json()["error"]


def test_a_file_that_is_no_picture_any_more_is_a_mistake_and_no_fault(client: TestClient, engine: Engine) -> None:
    _, (picture,) = painted(client, prompt="a")
    engine.path(engine.store.picture(picture["id"])).write_bytes(b"no picture")
    assert client.get(picture["thumbnail"]).status_code == 400
    assert client.get(f"/api/v1/pictures/{picture['id']}/request").status_code == 400


def test_a_plot_by_http(client: TestClient) -> None:
    base = {"prompt": "an apple", "width": 64, "height": 64}
    body: dict[str, Any] = {"kind": "plot", "request": {"request": base, "x": "Steps=3,4"}}
    job = client.post("/api/v1/jobs", json=body).json()
    assert job["total"] == 3
    job = client.get(f"/api/v1/jobs/{job['id']}", params={"wait": 10}).json()
    assert (job["state"], job["request"]["kind"]) == ("done", "txt2img")
    kinds = [picture["kind"] for picture in client.get(f"/api/v1/jobs/{job['id']}/pictures").json()]
    assert kinds == ["txt2img", "txt2img", "plot"]
    assert client.get("/api/v1/pictures", params={"kind": "plot", "words": "apple"}).json()["total"] == 1
    wrongs: tuple[dict[str, Any], ...] = (
        *({}, {"x": "Stops=3"}, {"kind": "img2img"}, {"kind": []}),
        {"x": "Steps=1", "matrix": "prompt"},
    )
    for wrong in wrongs:
        answer = client.post("/api/v1/jobs", json={"kind": "plot", "request": {"request": base, **wrong}})
        assert 400 <= answer.status_code < 500, answer.text


def test_adapters_with_what_their_files_say(client: TestClient, engine: Engine) -> None:
    folder = engine.models.settings.models_dir / "loras"
    folder.mkdir(parents=True)
    down, up = torch.zeros(4, 320), torch.zeros(320, 4)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    metadata = {"ss_tag_frequency": json.dumps({"1_x": {"heron": 3}})}
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, folder / "bird.safetensors", metadata)
    (folder / "torn.safetensors").write_bytes(b"torn")
    good, torn = client.get("/api/v1/adapters").json()
    assert (good["name"], good["kind"], good["ranks"], good["words"]) == ("bird.safetensors", "lora", [4], ["heron"])
    assert good["problem"] == ""
    assert torn["problem"]
    assert client.get("/api/v1/adapters", params={"kind": "embedding"}).json() == []


def test_text_that_databases_do_not_hold(client: TestClient) -> None:
    job, (picture,) = painted(client, prompt="a\0b")
    assert job["request"]["prompt"] == "a\0b"
    assert picture["prompt"] == "a\ufffdb"
    for field in ("words", "model", "tag", "kind"):
        assert client.get("/api/v1/pictures", params={field: "\0"}).status_code == 200
    assert client.patch(f"/api/v1/pictures/{picture['id']}", json={"tags": ["\0"]}).json()["tags"] == ["\ufffd"]
