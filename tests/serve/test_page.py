"""The web page over a studio whose painter is a fake: what it shows, what it lets through, and what its buttons do."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

pytest.importorskip("gradio")

from danqing.library.listing import Row
from danqing.metadata.files import read_picture
from danqing.requests import REQUESTS, ImageToImage, Inpaint, Outpaint, TextToImage, Upscale
from danqing.serve.app import create_app
from danqing.serve.engine import Engine, QueueFull
from danqing.serve.gallery import copied
from danqing.serve.page import cleaned, served
from danqing.serve.page_controls import Field, fields_of, record_of
from danqing.serve.page_errors import explained
from danqing.serve.page_fields import FIELDS, GLOSSARY
from danqing.serve.page_gallery import compared
from danqing.serve.page_jobs import look
from danqing.serve.page_paint import fitted, stroke
from danqing.serve.page_studio import Studio, tokens
from danqing.serve.page_texts import CHOICES, WORDS, glossary, say_in, term, wanted
from danqing.serve.page_tips import LINED, PAINTED, TIPS, tip
from danqing.serve.page_tools import cards_of, glossary_table, tag
from danqing.serve.page_uploads import SESSIONS
from danqing.serve.settings import ServeSettings
from danqing.serve.store import NotFound
from studio import fake_studio

BASE = "http://127.0.0.1:7860"
OWN = re.compile(r"https?://(?:127\.0\.0\.1:7860|www\.w3\.org)")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine, _ = fake_studio(tmp_path_factory.mktemp("page") / "data")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    app = create_app(engine, ServeSettings(api=False))
    return TestClient(app, base_url=BASE, client=("127.0.0.1", 50000))


class Browser:
    """Does what Gradio's script does: keeps every component's value, and runs the handlers that hang on one."""

    def __init__(self, client: TestClient, language: str = "en") -> None:
        self.client, self.headers = client, {"accept-language": language}
        self.config = client.get("/config", headers=self.headers).json()
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.values = {number: part["props"].get("value") for number, part in self.parts.items()}
        self.props = {number: dict(part["props"]) for number, part in self.parts.items()}

    def find(self, **props: Any) -> int:
        """The first component with these properties."""
        return next(n for n, part in self.parts.items() if all(part["props"].get(k) == v for k, v in props.items()))

    def named(self, label: str, after: int = 0) -> int:
        return next(n for n, part in self.parts.items() if n > after and part["props"].get("label") == label)

    def fire(self, target: int | None, event: str, data: Any = None) -> None:
        """Run the handlers of an event; `load` is the page's own."""
        for dependency in self.config["dependencies"]:
            if [target, event] in [list(each) for each in dependency["targets"]] and dependency["backend_fn"]:
                self.run(dependency, data)

    def run(self, dependency: dict[str, Any], data: Any = None) -> None:
        body = {
            "fn_index": dependency["id"],
            "data": [self.values[each] for each in dependency["inputs"]],
            "event_data": data,
            "session_hash": "test",
            "trigger_id": dependency["targets"][0][0],
        }
        answer = self.client.post("/gradio_api/run/predict", json=body, headers=self.headers)
        assert answer.status_code == 200, answer.text
        for number, value in zip(dependency["outputs"], answer.json()["data"]):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.props[number] |= {k: v for k, v in value.items() if k not in ("__type__", "value")}
                if "value" in value:
                    self.values[number] = value["value"]
            else:
                self.values[number] = value

    def loads(self) -> list[dict[str, Any]]:
        return [each for each in self.config["dependencies"] if each["targets"][0][1] == "load"]

    def memory(self, tab: str) -> int:
        return self.find(storage_key=f"danqing-{tab}")


def painted(engine: Engine, browser: Browser, tab: str) -> Any:
    """Press the tab's button and wait; the job."""
    browser.fire(browser.find(elem_id=f"{tab}-paint"), "click")
    identity = browser.values[browser.memory(tab)]
    assert identity, browser.values[browser.find(elem_id=f"{tab}-status")]
    return engine.wait(identity, 20)


def upload(client: TestClient, image: Image.Image, name: str = "a.png") -> dict[str, Any]:
    data = io.BytesIO()
    image.save(data, "PNG")
    answer = client.post("/gradio_api/upload", files={"files": (name, data.getvalue(), "image/png")})
    assert answer.status_code == 200, answer.text
    return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def test_it_is_in_the_browsers_language_and_asks_no_other_host(client: TestClient) -> None:
    for accept, cookie, language, word in (
        ("en-GB,en;q=0.9", "", "en", "Paint"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "", "zh", "作画"),
        ("zh-CN", "danqing_language=en", "en", "Paint"),
    ):
        page = client.get("/", headers={"accept-language": accept, "cookie": cookie})
        assert page.status_code == 200
        assert f'lang="{language}"' in page.text
        assert json.dumps(word)[1:-1] in page.text or word in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert [each for each in re.findall(r"https?://[\w.:-]*", page.text) if not OWN.match(each)] == []
        assert '"analytics_enabled": false' in page.text or '"analytics_enabled":false' in page.text


def test_which_language_a_browser_wants() -> None:
    assert wanted("", "") == "en"
    assert wanted("", "fr, zh-TW;q=0.8, en;q=0.7") == "zh"
    assert wanted("a=b; danqing_language=zh", "en") == "zh"
    assert wanted("danqing_language=xx", "en;q=x, zh") == "zh"


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=https://example.org/", "/gradio_api/vibe-edit/", "/gradio_api/process_recording", "/login",
     "/gradio_api/file=https://example.org/", "/monitoring", "/gradio_api/openapi.json", "/gradio_api/deep_link",
     "/custom_component/1/client/component/index.js", "/gradio_api/run-history/connect", "/api/v1/nothing"],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_served(client: TestClient, path: str) -> None:
    assert not served(path)
    assert client.get(path).status_code in (404, 405)
    assert client.post(path).status_code in (404, 405)


def test_files_beyond_the_page_are_not_served(client: TestClient, engine: Engine) -> None:
    for path in (engine.folder / "studio.db", Path("/etc/passwd"), engine.folder / "pictures/../studio.db"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_every_field_of_every_request_has_a_control_and_a_chinese_word(client: TestClient) -> None:
    browser = Browser(client)
    labels = [part["props"].get("label") for part in browser.config["components"]]
    for kind in (TextToImage, ImageToImage, Inpaint, Outpaint, Upscale):
        for field in fields_of(kind):
            record = record_of(field)
            assert field.name in FIELDS, field.name
            if record is None:
                assert FIELDS[field.name][0] in labels, field.name
                continue
            for each in fields_of(record, field.name):
                row = FIELDS.get(each.key) or FIELDS.get(each.name)
                assert row is not None, each.key
                assert row[0] in labels, each.key


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_control_is_explained(client: TestClient, language: str) -> None:
    parts = Browser(client, language).config["components"]
    html = next(part["props"]["value"] for part in parts if "data-dq-tips" in str(part["props"].get("value")))
    tips = json.loads(unescape(html.partition('data-dq-tips="')[2].partition('"')[0]))
    said = {selector.partition(" ")[0]: line for selector, line in tips.items()}
    silent = []
    for part in parts:
        props = part["props"]
        classes = props.get("elem_classes") or []
        shown = part["type"] == "textbox" and props.get("interactive") is False
        if part["type"] not in LINED | PAINTED | {"button"} or shown or "dq-hidden" in classes:
            continue
        places = [f"#{props.get('elem_id')}", *(f".{each}" for each in classes)]
        lined = part["type"] in LINED and props.get("show_label") is not False
        line = (props.get("info") if lined else "") or next((said[each] for each in places if each in said), "")
        if not line or (language == "zh" and not re.search("[\u4e00-\u9fff]", line)):
            silent.append((part["type"], props.get("elem_id"), props.get("label") or props.get("value"), line))
    assert silent == []


def test_no_tip_is_of_nothing(client: TestClient) -> None:
    there = [part["props"].get("elem_id") or "" for part in Browser(client).config["components"]]
    told = {tip(identity, "en") for identity in there}
    assert [key for key, (line, _) in TIPS.items() if line not in told] == []


def test_texts_are_whole() -> None:
    assert all(en and zh for en, zh in WORDS.values())
    assert all(all(row) for row in FIELDS.values())
    assert all(term(word) for word in GLOSSARY.values()), [w for w in GLOSSARY.values() if not term(w)]
    assert len(glossary()) > 100
    assert all(CHOICES.values())
    assert say_in("zh")("paint") == "作画"


def test_one_click_paints(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    job = painted(engine, browser, "txt2img")
    assert (job.state, job.origin, job.kind) == ("done", "page", "txt2img")
    assert job.request["prompt"] == "a red apple, 3d style"
    assert set(job.request) <= {"prompt", "seed"}
    timer = next(n for n, part in browser.parts.items() if part["type"] == "timer" and n > browser.memory("txt2img"))
    browser.fire(timer, "tick")
    results = browser.values[browser.find(elem_id="txt2img-results")]
    (picture,) = engine.pictures(job.id)
    assert results[0]["image"]["url"] == f"{BASE}/api/v1/pictures/{picture.id}/file"
    assert browser.props[timer]["active"] is False
    assert client.get(results[0]["image"]["url"]).headers["content-type"] == "image/png"


def test_a_result_goes_to_another_tab(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    prompt = browser.find(elem_id="txt2img-prompt")
    browser.values[prompt] = "two swans"
    browser.values[browser.named("Batch size", prompt)] = 2
    job = painted(engine, browser, "txt2img")
    for each in browser.loads():
        browser.run(each)
    results = browser.find(elem_id="txt2img-results")
    assert len(browser.values[results]) == 2
    browser.fire(results, "select", {"index": 1, "value": None})
    browser.fire(browser.find(elem_id="txt2img-to-img2img"), "click")
    assert browser.values[browser.find(elem_id="img2img-prompt")] == "two swans"
    sent = browser.values[browser.named("Picture", browser.find(elem_id="img2img-mode"))]
    assert f"{job.id}-0001" in sent["path"]
    assert painted(engine, browser, "img2img").request["seed"] == job.request["seed"] + 1
    browser.fire(browser.find(elem_id="txt2img-to-upscale"), "click")
    assert painted(engine, browser, "upscale").state == "done"


def test_a_job_that_waits_is_cancelled(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    engine.pause()
    try:
        browser.fire(browser.find(elem_id="txt2img-paint"), "click")
        cancel = next(n for n, part in browser.parts.items() if part["props"].get("value") == "Cancel")
        browser.fire(cancel, "click")
        assert engine.job(browser.values[browser.memory("txt2img")]).state == "cancelled"
    finally:
        engine.resume()


def test_a_job_is_found_again_after_a_reload(client: TestClient, engine: Engine) -> None:
    before = Browser(client)
    job = painted(engine, before, "txt2img")
    after = Browser(client)
    after.values[after.memory("txt2img")] = job.id  # the browser's own memory
    for each in after.loads():
        after.run(each)
    assert len(after.values[after.find(elem_id="txt2img-results")]) == 1
    assert "done" in after.values[after.find(elem_id="txt2img-status")]


def test_a_job_that_is_not_there_any_more_is_not_spoken_of(client: TestClient) -> None:
    browser = Browser(client)
    browser.values[browser.memory("txt2img")] = "0" * 32  # of another data folder
    for each in browser.loads():
        browser.run(each)
    assert "dq-chip" in browser.values[browser.find(elem_id="txt2img-status")]


def test_what_waits_says_how_many_are_before_it(engine: Engine) -> None:
    engine.pause()
    try:
        jobs = [engine.submit(TextToImage(prompt="a queue")) for _ in range(2)]
        assert "1 before it" in look(engine, jobs[1].id, "en").status
        assert "1 个任务在前" in look(engine, jobs[1].id, "zh").status
    finally:
        engine.resume()
    for job in jobs:
        engine.wait(job.id, 20)


def test_settings_reach_the_request_and_mistakes_are_told(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    prompt = browser.find(elem_id="txt2img-prompt")
    browser.values[prompt] = "a castle"
    for label, value in (("Steps", 7), ("Seed", "18446744073709551614"), ("Width", 128), ("Sampler", "Euler a")):
        browser.values[browser.named(label, prompt)] = value
    switch = next(n for n, part in browser.parts.items() if n > prompt and part["props"].get("label") == "b1")
    browser.values[switch] = 1.5
    on = max(n for n, part in browser.parts.items() if n < switch and part["props"].get("label") == "on")
    browser.values[on] = True
    job = painted(engine, browser, "txt2img")
    asked = {name: job.request[name] for name in ("prompt", "steps", "seed", "width", "sampler_name", "freeu")}
    assert asked == {
        "prompt": "a castle", "steps": 7, "seed": 2**64 - 2, "width": 128, "sampler_name": "Euler a",
        "freeu": {"b1": 1.5},
    }  # fmt: skip
    browser.values[browser.named("Sampler", prompt)] = "Eulr"
    browser.fire(browser.find(elem_id="txt2img-paint"), "click")
    assert "did you mean" in browser.values[browser.find(elem_id="txt2img-status")]


def test_mistakes_are_told_in_chinese(client: TestClient, engine: Engine) -> None:
    browser = Browser(client, "zh")
    prompt, status = browser.find(elem_id="txt2img-prompt"), browser.find(elem_id="txt2img-status")
    browser.values[prompt] = "山"
    for label, wrong, said in (
        ("步数", "0", "步数：不能小于 1，但给的是"),
        ("种子", "xx", "种子：应为整数"),
        ("采样器", "Eulr", "找不到采样器 &#x27;Eulr&#x27;；是不是 Euler、Euler a？"),
        ("模型", "/etc/passwd", "不在模型文件夹里"),
        ("宽度", "60000", "宽度：不能大于"),
    ):
        box = browser.named(label, prompt)
        before, browser.values[box] = browser.values[box], wrong
        browser.fire(browser.find(elem_id="txt2img-paint"), "click")
        assert said in browser.values[status]
        browser.values[box] = before
    browser.fire(browser.find(elem_id="upscale-paint"), "click")
    assert "请先选一张图片" in browser.values[browser.find(elem_id="upscale-status")]
    assert "没有这个任务" in explained(str(NotFound("job: there is none with the id 'x'")), "zh")
    full = QueueFull("queue: 1000 jobs wait already; try again when some are done")
    assert explained(str(full), "zh") == "队列里已有 1000 个任务；请等一些完成后再试"
    assert explained("lora 'ink' is unknown; did you mean ink2?", "zh") == "找不到LoRA 'ink'；是不是 ink2？"
    assert explained("anything else: is said as it is", "zh") == "anything else: is said as it is"
    assert explained("steps: should be a valid integer", "en") == "steps: should be a valid integer"


def test_a_brush_stroke_is_a_mask(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    mode = browser.find(elem_id="img2img-mode")
    browser.values[mode] = "inpaint"
    browser.fire(mode, "change")
    canvas = next(n for n, part in browser.parts.items() if part["type"] == "imageeditor")
    assert browser.props[canvas]["visible"] is True
    browser.fire(browser.find(elem_id="img2img-paint"), "click")
    assert "picture first" in browser.values[browser.find(elem_id="img2img-status")]
    layer = Image.new("RGBA", (64, 64))
    layer.paste((255, 255, 255, 255), (8, 8, 24, 24))
    picture = Image.new("RGB", (64, 64), (9, 9, 9))
    browser.values[canvas] = {
        "background": upload(client, picture),
        "layers": [upload(client, layer)],
        "composite": upload(client, picture),
    }
    job = painted(engine, browser, "img2img")
    assert (job.kind, job.state) == ("inpaint", "done")
    mask = Image.open(engine.folder / job.request["mask"])
    assert (mask.getpixel((10, 10)), mask.getpixel((40, 40))) == (255, 0)


def test_a_picture_is_painted_over_and_on_and_enlarged(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    mode, file = browser.find(elem_id="img2img-mode"), upload(client, Image.new("RGB", (64, 64), (1, 2, 3)))
    browser.values[browser.named("Picture", mode)] = file
    assert painted(engine, browser, "img2img").kind == "img2img"
    browser.values[mode] = "outpaint"
    browser.fire(mode, "change")
    browser.values[browser.named("Left", mode)] = 64
    job = painted(engine, browser, "img2img")
    assert (job.kind, job.request["left"]) == ("outpaint", 64)
    assert "denoising_strength" not in job.request
    pictures = browser.find(elem_id="upscale-images")
    browser.values[pictures] = [file]
    job = painted(engine, browser, "upscale")
    assert (job.kind, job.state, job.total) == ("upscale", "done", 1)


def test_a_photograph_is_painted_at_the_models_own_area(client: TestClient) -> None:
    assert fitted((4000, 3000), (512, 512)) == (592, 440)
    assert fitted((500, 500), (512, 512)) == (None, None)
    assert fitted((10_000, 10), (128, 128))[1] == 64
    browser = Browser(client)
    mode = browser.find(elem_id="img2img-mode")
    picture, width = browser.named("Picture", mode), browser.named("Width", mode)
    browser.values[picture] = upload(client, Image.new("RGB", (400, 200)))
    browser.fire(picture, "upload")
    height = browser.values[browser.named("Height", mode)]
    assert int(browser.values[width]) == 2 * int(height) + 8


def test_a_sketch_is_painted_over(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    mode = browser.find(elem_id="img2img-mode")
    browser.values[mode] = "sketch"
    browser.fire(mode, "change")
    sheet = [n for n, part in browser.parts.items() if part["type"] == "imageeditor"][1]
    drawn = upload(client, Image.new("RGB", (800, 800), (200, 10, 10)))
    browser.values[browser.named("Picture", mode)] = drawn  # it is of another way, and out of sight
    browser.fire(browser.find(elem_id="img2img-paint"), "click")
    assert "picture first" in browser.values[browser.find(elem_id="img2img-status")]
    browser.values[sheet] = {"background": None, "layers": [drawn], "composite": drawn}
    job = painted(engine, browser, "img2img")
    assert (job.kind, job.state, job.request["width"]) == ("img2img", "done", job.request["height"])
    assert job.request["width"] < 800


def test_a_file_that_is_no_picture_is_refused(client: TestClient) -> None:
    answer = client.post("/gradio_api/upload", files={"files": ("a.png", b"<svg onload=alert(1)>", "image/png")})
    browser = Browser(client)
    picture = browser.find(elem_id="pnginfo-picture")
    browser.values[picture] = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
    body = next(each for each in browser.config["dependencies"] if [picture, "change"] in map(list, each["targets"]))
    sent = {"fn_index": body["id"], "data": [browser.values[picture]], "session_hash": "x"}
    answer = client.post("/gradio_api/run/predict", json=sent)
    assert answer.status_code == 500
    assert "no picture" in answer.text


def test_no_picture_is_fetched_or_opened_that_was_not_looked_at(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a session has changed a component, which Gradio makes anew then."""
    fetched: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        fetched.append(url)
        return upload(client, Image.new("RGB", (8, 8)))["path"]

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    browser = Browser(client)
    mode = browser.find(elem_id="img2img-mode")
    for name in ("inpaint", "img2img"):
        browser.values[mode] = name
        browser.fire(mode, "change")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    large = client.post("/gradio_api/upload", files={"files": ("b.png", bomb.getvalue(), "image/png")}).json()[0]
    button = browser.find(elem_id="img2img-paint")
    paint = next(each for each in browser.config["dependencies"] if [button, "click"] in map(list, each["targets"]))
    picture, before = browser.named("Picture", mode), len(engine.jobs())
    for path, words in (
        ("https://example.org/a.png", "not uploaded"),
        (str(engine.folder / "studio.db"), "not uploaded"),
        (f"{engine.folder}/page/../studio.db", "not uploaded"),
        (large, "million pixels"),
    ):
        browser.values[picture] = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [browser.values[each] for each in paint["inputs"]]
        sent = {"fn_index": paint["id"], "data": data, "session_hash": "test"}
        answer = client.post("/gradio_api/run/predict", json=sent)
        assert answer.status_code == 500
        assert words in answer.text
    assert fetched == []
    assert len(engine.jobs()) == before


def test_an_editors_pictures_are_looked_at(client: TestClient) -> None:
    browser = Browser(client)
    canvas = next(n for n, part in browser.parts.items() if part["type"] == "imageeditor")
    form = {
        "type": "background", "index": "null", "id": "one", "component_id": canvas, "session_hash": "test",
        "fn_name": "accept_blobs",
    }  # fmt: skip
    sent = client.post("/gradio_api/component_server", data=form, files={"file": ("a.png", b"no picture", "image/png")})
    assert sent.status_code == 200
    button = browser.find(elem_id="img2img-paint")
    paint = next(each for each in browser.config["dependencies"] if [button, "click"] in map(list, each["targets"]))
    browser.values[canvas] = {"background": None, "layers": [], "composite": None, "id": "one"}
    data = [browser.values[each] for each in paint["inputs"]]
    body = {"fn_index": paint["id"], "data": data, "session_hash": "test"}
    answer = client.post("/gradio_api/run/predict", json=body)
    assert answer.status_code == 500
    assert "no picture" in answer.text


def test_only_the_pages_own_scripts_run(client: TestClient) -> None:
    seen = set()
    for _ in range(2):
        page = client.get("/")
        policy = page.headers["content-security-policy"]
        scripts = next(each for each in policy.split("; ") if each.startswith("script-src"))
        nonce = scripts.partition("'nonce-")[2].partition("'")[0]
        assert "unsafe-inline" not in scripts
        assert len(nonce) == 32
        begun = re.findall(r"<script(?=[\s>])[^>]*", page.text)
        assert len(begun) > 2
        assert all(f" nonce={nonce}" in each for each in begun)
        seen.add(nonce)
    assert len(seen) == 2


def test_pages_that_were_left_are_forgotten(client: TestClient) -> None:
    page = client.app.state.page.build("en")  # type: ignore[attr-defined]
    holder = next(
        route.app.state_holder for route in page.routes if hasattr(getattr(route, "app", None), "state_holder")
    )
    assert holder.capacity == SESSIONS
    browser = Browser(client)
    words = browser.find(elem_id="glossary-words")
    find = next(each for each in browser.config["dependencies"] if [words, "change"] in map(list, each["targets"]))
    holder.capacity = 2
    try:
        for number in range(4):
            sent = {"fn_index": find["id"], "data": ["seed"], "session_hash": f"left {number}"}
            assert client.post("/gradio_api/run/predict", json=sent).status_code == 200
        assert len(holder.session_data) <= 3
    finally:
        holder.capacity = SESSIONS


def test_pictures_are_imported(client: TestClient, engine: Engine) -> None:
    folder = engine.folder / "import"
    folder.mkdir(exist_ok=True)
    text = PngInfo()
    text.add_text("parameters", "a stone bridge\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 4, Size: 64x64")
    Image.new("RGB", (64, 64)).save(folder / "old.png", pnginfo=text)
    browser = Browser(client)
    browser.values[browser.find(elem_id="gallery-words")] = "stone bridge"
    brought = browser.find(elem_id="gallery-import")
    browser.fire(brought, "click")
    assert f"{folder}: 1" in browser.values[browser.find(elem_id="gallery-imported")]
    browser.fire(browser.find(elem_id="gallery-search"), "click")
    assert len(browser.values[browser.find(elem_id="gallery-wall")]) == 1


def test_the_gallery_finds_keeps_deletes_and_sends(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    browser.values[browser.find(elem_id="txt2img-prompt")] = "a heron in the reeds"
    browser.values[browser.named("Steps", browser.find(elem_id="txt2img-prompt"))] = 9
    job = painted(engine, browser, "txt2img")
    (picture,) = engine.pictures(job.id)
    browser.values[browser.find(elem_id="gallery-words")] = "heron reeds"
    browser.fire(browser.find(elem_id="gallery-search"), "click")
    wall = browser.find(elem_id="gallery-wall")
    assert [each["image"]["url"].split("/")[-2] for each in browser.values[wall]] == [picture.id]
    browser.fire(wall, "select", {"index": 0, "value": None})
    browser.fire(browser.find(elem_id="gallery-delete"), "click")
    assert engine.store.picture(picture.id).deleted is not None
    browser.fire(browser.find(elem_id="gallery-undo"), "click")
    assert engine.store.picture(picture.id).deleted is None
    fresh = Browser(client)
    fresh.values[fresh.find(elem_id="gallery-words")] = "heron"
    fresh.fire(fresh.find(elem_id="gallery-search"), "click")
    fresh.fire(fresh.find(elem_id="gallery-wall"), "select", {"index": 0, "value": None})
    fresh.fire(fresh.find(elem_id="gallery-to-txt2img"), "click")
    assert fresh.values[fresh.find(elem_id="txt2img-prompt")] == "a heron in the reeds"
    assert fresh.values[fresh.named("Steps", fresh.find(elem_id="txt2img-prompt"))] == "9"
    assert fresh.props[fresh.find(elem_id="dq-tabs")]["selected"] == "txt2img"
    fresh.fire(fresh.find(elem_id="gallery-to-img2img"), "click")
    assert fresh.values[fresh.named("Picture", fresh.find(elem_id="img2img-mode"))]["path"].endswith(".png")


def test_the_gallery_is_searched_by_seed_and_day(client: TestClient, engine: Engine) -> None:
    engine.wait(engine.submit(TextToImage(prompt="a lighthouse", seed=987654)).id, 20)
    browser = Browser(client)
    wall, today = browser.find(elem_id="gallery-wall"), time.strftime("%Y-%m-%d")
    for seed, since, until, count in (
        ("987654", today, today, 1),
        ("987653", "", "", 0),
        ("987654", "", "2020-01-01", 0),
    ):
        for name, value in (("seed", seed), ("since", since), ("until", until)):
            browser.values[browser.find(elem_id=f"gallery-{name}")] = value
        browser.fire(browser.find(elem_id="gallery-search"), "click")
        assert len(browser.values[wall] or ()) == count
    browser.values[browser.find(elem_id="gallery-since")] = "yesterday"
    browser.fire(browser.find(elem_id="gallery-search"), "click")
    assert "2026-11-21" in browser.values[browser.find(elem_id="gallery-found")]


def test_settings_are_kept_and_copies_are_made_by_them(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    browser.fire(browser.find(elem_id="tab-settings"), "select", {"index": 0, "value": "settings"})
    pattern, save = browser.find(elem_id="settings-output_pattern"), browser.find(elem_id="settings-save")
    for wrong in ("[nonsense]", "../../[seed]"):
        browser.values[pattern] = wrong
        browser.fire(save, "click")
        assert "dq-problem" in browser.values[browser.find(elem_id="settings-status")]
    browser.values[pattern] = "[date]/[seed]-[prompt_words]"
    browser.values[browser.find(elem_id="settings-output_format")] = "webp"
    browser.values[browser.find(elem_id="settings-steps")] = "11"
    browser.values[browser.find(elem_id="settings-previews")] = False
    browser.fire(save, "click")
    assert "saved" in browser.values[browser.find(elem_id="settings-status")]
    assert "webp" in engine.models.settings.path.read_text()
    fresh = Browser(client)
    for each in fresh.loads():
        fresh.run(each)
    assert fresh.values[fresh.named("Steps", fresh.find(elem_id="txt2img-prompt"))] == "11"
    job = painted(engine, fresh, "txt2img")
    assert job.request["steps"] == 11
    path = copied(engine, engine.pictures(job.id)[0])
    assert path.suffix == ".webp"
    assert (engine.models.settings.data_dir / "outputs").resolve() in path.resolve().parents
    assert "Steps: 11" in read_picture(path).texts["parameters"]
    Studio(engine, ServeSettings(), "en").set_options({})


def test_two_pictures_and_the_fields_that_differ(client: TestClient, engine: Engine) -> None:
    stored = []
    for seed in (1, 2):
        job = engine.wait(engine.submit(TextToImage(prompt="<b>fog</b>", seed=seed, steps=seed)).id, 20)
        stored += engine.pictures(job.id)
    table = compared(Studio(engine, ServeSettings(), "en"), *stored)
    assert "<th>seed</th><td>1</td><td>2</td>" in table
    assert "<th>prompt</th>" not in table


def test_a_plot_is_painted_cell_by_cell(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    browser.values[browser.named("Axis X")] = "Steps"
    browser.values[browser.find(elem_id="plot-values-x")] = "4, 5, 6"
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    job = engine.wait(browser.values[browser.memory("plot")], 20)
    assert (job.kind, job.state, job.origin) == ("plot", "done", "page")
    assert [each["steps"] for each in job.parts[:3]] == [4, 5, 6]
    for each in browser.loads():
        browser.run(each)
    (sheet,) = browser.values[browser.find(elem_id="plot-results")]
    answer = client.get(sheet["image"]["url"])
    assert Image.open(io.BytesIO(answer.content)).size > (3 * 64 - 1, 64)
    browser.values[browser.find(elem_id="plot-values-x")] = "4, many"
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    assert "many" in browser.values[browser.find(elem_id="plot-status")]
    browser.values[browser.named("Axis X")] = "Checkpoint name"
    browser.values[browser.find(elem_id="plot-values-x")] = "/etc/passwd"
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    assert "outside the model folders" in browser.values[browser.find(elem_id="plot-status")]


def test_picture_to_picture_is_plotted(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    source = browser.find(elem_id="plot-source")
    browser.values[source] = "img2img"
    browser.fire(source, "change")
    axis = browser.named("Axis X")
    titles = [value for _, value in browser.props[axis]["choices"]]
    assert "Extra noise" in titles
    assert "Hires steps" not in titles
    browser.values[axis] = "Denoising"
    browser.values[browser.find(elem_id="plot-values-x")] = "0.3, 0.6"
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    assert "picture first" in browser.values[browser.find(elem_id="plot-status")]
    mode = browser.find(elem_id="img2img-mode")
    browser.values[browser.named("Picture", mode)] = upload(client, Image.new("RGB", (64, 64), (1, 2, 3)))
    job = painted(engine, browser, "plot")
    assert (job.kind, job.state, job.request["kind"]) == ("plot", "done", "img2img")
    assert [each["denoising_strength"] for each in job.parts[:2]] == [0.3, 0.6]
    browser.values[mode] = "outpaint"
    browser.values[browser.named("Left", mode)] = 64
    job = painted(engine, browser, "plot")
    assert (job.request["kind"], job.parts[0]["left"], job.state) == ("outpaint", 64, "done")


def test_a_picture_is_sent_to_the_plots(client: TestClient, engine: Engine) -> None:
    job = engine.wait(engine.submit(TextToImage(prompt="a red kite", seed=3, steps=8)).id, 20)
    browser = Browser(client)
    browser.values[browser.find(elem_id="plot-source")] = "img2img"
    browser.values[browser.find(elem_id="gallery-words")] = "red kite"
    browser.fire(browser.find(elem_id="gallery-search"), "click")
    browser.fire(browser.find(elem_id="gallery-wall"), "select", {"index": 0, "value": None})
    browser.fire(browser.find(elem_id="gallery-to-plot"), "click")
    assert browser.props[browser.find(elem_id="dq-tabs")]["selected"] == "plot"
    browser.values[browser.named("Axis X")] = "Steps"
    browser.values[browser.find(elem_id="plot-values-x")] = "2, 3"
    plotted = painted(engine, browser, "plot")
    assert [(each["prompt"], each["seed"], each["steps"]) for each in plotted.parts[:2]] == [
        ("a red kite", job.request["seed"], 2), ("a red kite", job.request["seed"], 3)
    ]  # fmt: skip


def test_a_prompts_parts_and_lines_of_prompts_are_plotted(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    way = browser.find(elem_id="plot-way")
    browser.values[browser.find(elem_id="txt2img-prompt")] = "a castle | night | snow"
    browser.values[way] = "matrix"
    browser.fire(way, "change")
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    job = engine.wait(browser.values[browser.memory("plot")], 20)
    assert {each["prompt"] for each in job.parts[:4]} == {
        "a castle", "a castle, night", "a castle, snow", "a castle, night, snow"
    }  # fmt: skip
    browser.values[way] = "prompts"
    browser.values[browser.find(elem_id="plot-prompts")] = 'a hill\n--prompt "a lake" --steps 9\n'
    browser.fire(browser.find(elem_id="plot-paint"), "click")
    job = engine.wait(browser.values[browser.memory("plot")], 20)
    assert [(each["prompt"], each.get("steps")) for each in job.parts[:2]] == [("a hill", None), ("a lake", 9)]


def test_png_info_reads_a_picture_and_sends_it(client: TestClient, engine: Engine) -> None:
    job = engine.wait(engine.submit(TextToImage(prompt="a jade bowl", seed=5, steps=11)).id, 20)
    (picture,) = engine.pictures(job.id)
    data = engine.path(picture).read_bytes()
    answer = client.post("/gradio_api/upload", files={"files": ("b.png", data, "image/png")})
    browser = Browser(client, "zh")
    image = browser.find(elem_id="pnginfo-picture")
    browser.values[image] = {"path": answer.json()[0], "orig_name": "b.png", "meta": {"_type": "gradio.FileData"}}
    browser.fire(image, "change")
    assert any(
        isinstance(value, str) and "a jade bowl" in value and "Steps: 11" in value for value in browser.values.values()
    )
    browser.fire(browser.find(elem_id="pnginfo-to-txt2img"), "click")
    assert browser.values[browser.find(elem_id="txt2img-prompt")] == "a jade bowl"


def test_settings_models_and_glossary_show_what_there_is(client: TestClient, engine: Engine) -> None:
    browser = Browser(client, "zh")
    for tab in ("models", "settings"):
        browser.fire(browser.find(elem_id=f"tab-{tab}"), "select", {"index": 0, "value": tab})
    shown = [value for value in browser.values.values() if isinstance(value, str)]
    assert any("dq-card" in value and "checkpoint" in value for value in shown)
    assert any("default_model" in value for value in shown)
    table = glossary_table("lora", Studio(engine, ServeSettings(), "zh"))
    assert "改变模型的小文件" in table
    assert "采样器" not in table


def test_what_came_since_the_start_can_be_chosen(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    styles = browser.named("Styles", browser.find(elem_id="txt2img-prompt"))
    file = engine.models.settings.data_dir / "styles.csv"
    file.write_text("name,prompt,negative_prompt\nLate ink,ink,\n")
    try:
        for each in browser.loads():
            browser.run(each)
    finally:
        file.unlink()
    assert "Late ink" in [value for _, value in browser.props[styles]["choices"]]


def test_all_that_wait_are_cancelled_by_a_button(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    engine.pause()
    try:
        jobs = [engine.submit(TextToImage(prompt="a queue")) for _ in range(3)]
        browser.fire(browser.find(elem_id="settings-clear"), "click")
        assert {engine.job(job.id).state for job in jobs} == {"cancelled"}
    finally:
        engine.resume()


def test_one_job_that_waits_is_moved_and_cancelled(client: TestClient, engine: Engine) -> None:
    browser = Browser(client)
    order, table = browser.find(elem_id="settings-order"), browser.find(elem_id="settings-jobs")

    def press(act: str, job: str) -> list[str]:
        """The order of painting, by the first letters of prompts, once the button is pressed."""
        browser.values[order] = f"{act}:{job}#1"
        browser.fire(order, "change")
        return [each.request["prompt"] for each in engine.jobs(("queued",))]

    engine.pause()
    try:
        high = engine.submit(TextToImage(prompt="a"), priority=5)
        jobs = {name: engine.submit(TextToImage(prompt=name)) for name in ("b", "c", "<d>")}
        assert press("first", jobs["<d>"].id) == ["<d>", "a", "b", "c"]
        assert press("earlier", jobs["c"].id) == ["<d>", "a", "c", "b"]
        assert press("earlier", jobs["<d>"].id) == ["<d>", "a", "c", "b"]
        assert press("later", high.id) == ["<d>", "c", "a", "b"]  # past one of a lower priority
        assert press("later", jobs["b"].id) == ["<d>", "c", "a", "b"]
        assert press("cancel", jobs["c"].id) == ["<d>", "a", "b"]
        assert engine.job(jobs["c"].id).state == "cancelled"
        shown = browser.values[table]
        assert shown.index("&lt;d&gt;") < shown.index(f"first:{high.id}")
        assert f"first:{jobs['c'].id}" not in shown
        press("first", jobs["c"].id)
        assert "only what waits" in browser.values[table]
    finally:
        browser.fire(browser.find(elem_id="settings-clear"), "click")
        engine.resume()


def test_prompts_to_try_are_chinese_where_the_model_reads_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = Studio(engine, ServeSettings(), "zh")
    assert studio.examples[0] == "红苹果，立体风格"
    others = engine.models.settings.model_copy(update={"default_model": "sdxl"})
    monkeypatch.setattr(engine.models, "settings", others)
    assert studio.examples[0] == "a red apple, 3d style"


def test_an_adapters_tag_and_trigger_words(tmp_path: Path, engine: Engine) -> None:
    assert (tag("ink", "lora"), tag("dots", "hypernetwork")) == ("<lora:ink:1>", "<hypernet:dots:1>")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "<ink>.preview.png")
    row = Row("<ink>.safetensors", "lora", "SD 1.x", 2_000_000, "Danqing", tmp_path / "<ink>.safetensors", "")
    card = cards_of([row], Studio(engine, ServeSettings(), "en"))
    assert "data:image/webp" in card
    assert "&lt;ink&gt;" in card
    assert "<ink>" not in card


def test_tokens_and_strokes() -> None:
    assert "3/75" in tokens("a red apple", say_in("en"))
    assert "/150" in tokens("cat " * 80, say_in("zh"))
    assert stroke([Image.new("RGBA", (4, 4))]) is None
    assert stroke([]) is None


def test_gradios_html_is_ours() -> None:
    page = cleaned(
        '<html lang="en"><head><meta property="og:image" content="https://x.org/"/></head></html>', "zh", "1"
    )
    assert page == '<html lang="zh"><head><script>1</script></head></html>'


def test_each_request_has_a_tab() -> None:
    assert set(REQUESTS) == {"txt2img", "img2img", "inpaint", "outpaint"}
    assert isinstance(next(iter(fields_of(TextToImage))), Field)
