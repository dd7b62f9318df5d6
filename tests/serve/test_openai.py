"""OpenAI's routes for pictures, by bare HTTP as its clients send it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from PIL import Image

from danqing.serve.engine import Engine
from danqing.serve.openai import router
from danqing.serve.settings import ServeSettings
from served import served
from studio import fake_studio


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    engine, _ = fake_studio(tmp_path_factory.mktemp("openai") / "data")
    with served(router(engine, ServeSettings())) as port:
        yield engine, f"http://127.0.0.1:{port}/v1/images/"
    engine.close()


def png(mode: str = "RGB", colour: Any = (200, 0, 0)) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(data, "PNG")
    return data.getvalue()


def opened(row: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(row["b64_json"])))


def last(engine: Engine) -> Any:
    return engine.jobs(("done",), limit=1)[0]


def test_generations(site: tuple[Engine, str]) -> None:
    engine, base = site
    body = {"prompt": "a cat", "model": "dall-e-3", "n": 2, "size": "128x64", "quality": "hd", "seed": 5, "steps": 3}
    answer = requests.post(base + "generations", json=body, timeout=20).json()
    assert isinstance(answer["created"], int)
    assert answer["size"] == "128x64"
    assert [opened(row).size for row in answer["data"]] == [(128, 64)] * 2
    assert answer["data"][0]["revised_prompt"] == "a cat"
    job = last(engine)
    assert job.origin == "openai"
    assert (job.request["n_iter"], job.request["seed"], job.request["steps"]) == (2, 5, 3)
    assert "model" not in job.request
    picture = engine.pictures(job.id)[0]
    assert answer["data"][0]["url"].endswith(f"/api/v1/pictures/{picture.id}/file")


def test_what_is_left_out_is_the_models_own_and_forms_are_as_asked(site: tuple[Engine, str]) -> None:
    engine, base = site
    body = {"prompt": "a", "size": "auto", "response_format": "b64_json", "output_format": "webp"}
    row = requests.post(base + "generations", json=body, timeout=20).json()["data"][0]
    assert "url" not in row
    assert opened(row).format == "WEBP"
    assert "width" not in last(engine).request
    row = requests.post(base + "generations", json={"prompt": "a", "response_format": "url"}, timeout=20).json()[
        "data"
    ][0]
    assert "b64_json" not in row


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "Field required"),
        ({"prompt": "a", "n": 11}, "n", "less than or equal to 10"),
        ({"prompt": "a", "size": "big"}, "size", "is no size"),
        ({"prompt": "a", "stream": True}, None, "stream"),
        ({"prompt": "a", "background": "transparent"}, None, "background"),
        ({"prompt": "a", "model": "/etc/passwd"}, "model", "outside the model folders"),
        ({"prompt": "a", "stepps": 3}, "stepps", "not permitted"),
        ({"prompt": "\ud800"}, "prompt", "valid string"),
    ],
)
def test_errors_have_openais_form(site: tuple[Engine, str], body: Any, param: str | None, words: str) -> None:
    answer = requests.post(site[1] + "generations", json=body, timeout=20)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def test_an_edit_paints_where_the_mask_is_transparent(site: tuple[Engine, str]) -> None:
    engine, base = site
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    data = io.BytesIO()
    mask.save(data, "PNG")
    files = {"image": ("a.png", png()), "mask": ("m.png", data.getvalue())}
    answer = requests.post(base + "edits", data={"prompt": "a hat", "n": "1"}, files=files, timeout=20)
    assert answer.status_code == 200, answer.text
    job = last(engine)
    assert (job.kind, job.request["prompt"], job.request["denoising_strength"]) == ("inpaint", "a hat", 1.0)
    with Image.open(engine.folder / job.request["mask"]) as kept:
        assert (kept.getpixel((0, 0)), kept.getpixel((63, 0))) == (255, 0)


def test_an_edit_without_a_mask(site: tuple[Engine, str]) -> None:
    engine, base = site
    for mode, colour, kind in (("RGB", (9, 9, 9), "img2img"), ("RGBA", (9, 9, 9, 0), "inpaint")):
        files = {"image[]": ("a.png", png(mode, colour))}
        answer = requests.post(base + "edits", data={"prompt": "a"}, files=files, timeout=20)
        assert answer.status_code == 200, answer.text
        assert last(engine).kind == kind


def test_edits_that_make_no_sense(site: tuple[Engine, str]) -> None:
    _, base = site
    for data, files, words in (
        ({"prompt": "a"}, {"file": ("a.png", png())}, "send image and mask"),
        ({"prompt": "a"}, {"mask": ("a.png", png())}, "one picture"),
        ({"prompt": "a"}, {"image": ("a.png", b"<svg/>")}, "no picture"),
        ({}, {"image": ("a.png", png())}, "prompt"),
    ):
        answer = requests.post(base + "edits", data=data, files=files, timeout=20)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    assert requests.post(base + "edits", json={"prompt": "a"}, timeout=20).status_code == 400
