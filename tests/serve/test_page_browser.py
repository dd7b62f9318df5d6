"""The web page in Debian's Chromium, over a studio whose painter is a fake and one whose model is the bundled one."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import sync_playwright

from danqing.requests import TextToImage
from danqing.serve.app import create_app
from danqing.serve.cache import ModelCache
from danqing.serve.engine import Engine
from danqing.serve.run import open_engine
from danqing.serve.settings import ServeSettings
from studio import fake_studio

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
PATIENCE = 45_000
"""Milliseconds; a busy machine is slow."""


class Gate:
    """Lets the painter go on freely, or step by step."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.steps = threading.Semaphore(0)

    def acquire(self) -> None:
        while not self.free.is_set() and not self.steps.acquire(timeout=0.02):
            pass


class Site:
    """A studio that answers on a port of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        config = uvicorn.Config(
            create_app(engine, ServeSettings(api=False)), port=0, lifespan="off", ws="none", log_level="error"
        )
        socket = config.bind_socket()
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([socket])), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.engine.close()
        self._server.should_exit = True
        self._thread.join(20)

    def job(self, prompt: str) -> Any:
        """The latest job with this prompt, over."""
        found = (job for job in self.engine.jobs(limit=20) if job.request.get("prompt") == prompt)
        return self.engine.wait(next(found).id, 60)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[Site]:
    engine, _ = fake_studio(tmp_path_factory.mktemp("page") / "data", gate=gate)  # type: ignore[arg-type]
    site = Site(engine)
    yield site
    site.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(chromium: Any, gate: Gate) -> Iterator[Open]:
    """Opens the page; in the end it has asked no other host for anything, and no script of it has failed."""
    contexts, hosts, errors = [], set(), []

    def opened(site: Site, **options: Any) -> Any:
        context = chromium.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        page.goto(site.url)
        page.wait_for_selector("#txt2img-paint")
        page.wait_for_timeout(1000)  # what is done when a page is opened is done
        return page

    yield opened
    gate.free.set()
    for context in contexts:
        context.close()
    assert errors == []
    assert {host for host in hosts if host and not host.startswith("127.0.0.1:")} == set()


def paint(page: Any, tab: str = "txt2img") -> None:
    """Press the button and wait for the picture."""
    page.click(f"#{tab}-paint")
    page.wait_for_selector(f"#{tab}-results img")


def wait(what: Callable[[], Any]) -> Any:
    """Until it is so."""
    ends = time.monotonic() + PATIENCE / 1000
    while not (found := what()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


def test_one_click_paints(site: Site, visit: Open) -> None:
    page = visit(site)
    assert page.input_value("#txt2img-prompt textarea") == "a red apple, 3d style"
    assert "7/75" in page.inner_text(".dq-tokens >> nth=0")
    paint(page)
    assert site.job("a red apple, 3d style").state == "done"


@pytest.mark.long
def test_it_paints_in_chinese_and_in_the_dark_and_on_a_phone(site: Site, visit: Open) -> None:
    page = visit(
        site,
        locale="zh-CN",
        color_scheme="dark",
        viewport={"width": 390, "height": 844},
        is_mobile=True,
        has_touch=True,
    )
    assert page.get_attribute("html", "lang").startswith("zh")
    assert "dark" in page.get_attribute("body", "class")
    page.fill("#txt2img-prompt textarea", "荷塘月色")
    assert page.inner_text("#txt2img-paint") == "作画"
    paint(page)
    assert site.job("荷塘月色").state == "done"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("[data-dq-language=en]")
    page.wait_for_selector("html[lang=en]")
    page.tap("[data-dq-theme]")
    page.wait_for_selector("body:not(.dark) #txt2img-paint")


@pytest.mark.long
def test_an_example_is_painted_by_a_click(site: Site, visit: Open) -> None:
    page = visit(site)
    page.click("[data-dq-prompt^='a rainbow']")
    page.wait_for_selector("#txt2img-results img")
    assert site.job("a rainbow, noto style").state == "done"


@pytest.mark.long
def test_a_stroke_of_the_brush_is_painted_over(site: Site, visit: Open, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (512, 512), (40, 90, 160)).save(photo)
    page = visit(site)
    page.click("#tab-img2img-button")
    page.fill("#img2img-prompt textarea", "a paper boat")
    page.click("#img2img-mode label:has-text('Inpaint')")
    canvas = page.wait_for_selector("#img2img-brush canvas", state="attached")
    page.wait_for_timeout(2000)  # Gradio's editor takes no picture before it has begun
    page.set_input_files("#img2img-brush input[type=file]", photo)
    page.wait_for_selector("#img2img-brush >> text=/^[0-9]+%$/")  # the picture is laid out
    page.wait_for_timeout(2000)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 6, steps=8)
    page.mouse.up()
    page.wait_for_timeout(2000)
    paint(page, "img2img")
    job = site.job("a paper boat")
    assert (job.kind, job.state) == ("inpaint", "done")
    with Image.open(site.engine.folder / job.request["mask"]) as mask:
        white = mask.convert("L").histogram()[255]
        assert 0 < white < mask.width * mask.height // 2


@pytest.mark.long
def test_a_job_is_found_again_after_a_reload(site: Site, visit: Open, gate: Gate) -> None:
    page = visit(site)
    gate.free.clear()
    gate.steps.release()
    page.fill("#txt2img-prompt textarea", "a slow snail")
    page.click("#txt2img-paint")
    page.wait_for_selector("#txt2img-status .dq-busy:has-text('1/4')")
    page.reload()
    page.wait_for_selector("#txt2img-status .dq-busy:has-text('1/4')")
    gate.free.set()
    page.wait_for_selector("#txt2img-results img")
    assert len(site.engine.pictures(site.job("a slow snail").id)) == 1


@pytest.mark.long
def test_keys_paint_and_interrupt(site: Site, visit: Open, gate: Gate) -> None:
    page = visit(site)
    gate.free.clear()
    page.fill("#txt2img-prompt textarea", "a long road")
    page.press("#txt2img-prompt textarea", "Control+Enter")
    page.wait_for_selector("#txt2img-interrupt", state="visible")
    wait(lambda: any(job.state == "running" for job in site.engine.jobs(limit=1)))
    with page.expect_response("**/run/predict"):
        page.keyboard.press("Escape")
    gate.free.set()
    assert site.job("a long road").state == "interrupted"
    page.wait_for_selector("#txt2img-interrupt", state="hidden")


@pytest.mark.long
def test_words_are_completed_and_explained(site: Site, visit: Open) -> None:
    (picture,) = site.engine.pictures(site.engine.wait(site.engine.submit(TextToImage(prompt="a bowl")).id, 20).id)
    site.engine.store.set_picture(picture.id, tags=["lacquerware"])
    page = visit(site)
    area = page.locator("#txt2img-prompt textarea")
    area.fill("")
    area.press_sequentially("a box, lacq")
    page.wait_for_selector(".dq-complete li[aria-selected=true]:has-text('lacquerware')")
    area.press("Tab")
    assert area.input_value() == "a box, lacquerware"
    page.wait_for_selector(".dq-tokens >> nth=0 >> text=/[5-9]\\/75/")
    page.hover("#tab-txt2img .has-info:has-text('CFG scale')")
    assert "prompt" in page.inner_text(".dq-bubble")


@pytest.mark.long
def test_the_gallery(site: Site, visit: Open) -> None:
    engine = site.engine
    for seed, prompt in ((1, "a heron at dawn"), (2, "a heron at dusk")):
        engine.wait(engine.submit(TextToImage(prompt=prompt, seed=seed, steps=7)).id, 20)
    page = visit(site)
    page.click("#tab-gallery-button")
    page.fill("#gallery-words :is(input, textarea)", "heron")
    page.press("#gallery-words :is(input, textarea)", "Enter")
    page.wait_for_selector("#gallery-found >> text=/ 2/")
    tiles = page.locator("#gallery-wall .thumbnail-item")
    assert tiles.count() == 2
    tiles.nth(1).click()
    page.wait_for_selector(".dq-said:has-text('a heron at dawn')")
    dawn = engine.store.search(_query("heron dawn"))[0]
    # marked
    page.click("#gallery-favourite input")
    page.click("#gallery-rating label:has-text('★★★★') >> nth=0")
    page.fill("#gallery-tags :is(input, textarea)", "bird, 鹭")
    page.press("#gallery-tags :is(input, textarea)", "Enter")
    wait(lambda: engine.store.picture(dawn.id).tags)
    marked = engine.store.picture(dawn.id)
    assert (marked.favourite, marked.rating, set(marked.tags)) == (True, 4, {"bird", "鹭"})
    # compared
    page.click("#gallery-compare > button")
    page.click("#compare-left")
    tiles.nth(0).click()
    page.wait_for_selector(".dq-said:has-text('a heron at dusk')")
    page.click("#compare-right")
    page.wait_for_selector("#compare-slider img")
    page.wait_for_selector("#compare-table th:has-text('seed')")
    assert "a heron at dawn" in page.inner_text("#compare-table")
    # deleted, and back
    page.click("#gallery-delete")
    page.wait_for_selector("#gallery-found >> text=/ 1$/")
    page.click("#gallery-undo")
    page.wait_for_selector("#gallery-found >> text=/ 2$/")
    # replayed
    page.click("#gallery-to-txt2img")
    page.wait_for_selector("#txt2img-paint", state="visible")
    assert page.input_value("#txt2img-prompt textarea") == "a heron at dusk"
    before = len(engine.jobs(limit=100))
    paint(page)
    wait(lambda: len(engine.jobs(limit=100)) > before)
    job = site.job("a heron at dusk")
    assert (job.request["seed"], job.request["steps"]) == (2, 7)
    (again,) = engine.pictures(job.id)
    first = engine.store.search(_query("heron dusk"))[-1]
    assert Image.open(engine.path(again)).tobytes() == Image.open(engine.path(first)).tobytes()


@pytest.mark.long
def test_settings_are_kept(site: Site, visit: Open) -> None:
    page = visit(site)
    page.click("#tab-settings-button")
    page.fill("#settings-steps input", "9")
    page.fill("#settings-output_pattern input", "[seed]-[prompt_words]")
    page.click("#settings-previews input")
    page.click("#settings-save")
    page.wait_for_selector("#settings-status :text('saved')")
    assert site.engine.models.settings.output_pattern == "[seed]-[prompt_words]"
    page.reload()
    page.wait_for_function("document.querySelector('#txt2img-paint')?.offsetParent")
    page.wait_for_function("[...document.querySelectorAll('.dq-f-steps input')].some((box) => box.value === '9')")
    page.fill("#txt2img-prompt textarea", "nine steps")
    paint(page)
    assert site.job("nine steps").request["steps"] == 9
    page.click("#txt2img-copy")
    page.wait_for_selector("#txt2img-status :text('nine')")
    assert list((site.engine.models.settings.data_dir / "outputs").glob("*-nine*.png"))


@pytest.mark.long
def test_buttons_within_the_page_move_a_job_and_take_a_model(site: Site, visit: Open) -> None:
    site.engine.pause()
    try:
        jobs = [site.engine.submit(TextToImage(prompt=prompt)) for prompt in ("a first fox", "a second fox")]
        page = visit(site)
        page.click("#tab-settings-button")
        first, second = (job.id for job in jobs)

        def press(act: str, job: str) -> None:
            page.click(f"#settings-jobs [data-dq-job='{act}:{job}']")

        def shown(job: str) -> None:
            """The table is new from top to bottom: a button that goes while it is pressed is not pressed."""
            page.wait_for_selector(f"#settings-jobs tbody tr:first-child:has([data-dq-job='cancel:{job}'])")

        shown(first)
        press("first", second)
        shown(second)
        press("first", first)
        shown(first)
        press("first", second)  # the same word again
        shown(second)
        press("cancel", second)
        shown(first)
        press("cancel", first)
        wait(lambda: all(site.engine.job(job).state == "cancelled" for job in (first, second)))
    finally:
        site.engine.resume()
    page.click("#tab-models-button")
    page.click("[data-dq-take='checkpoint:danqing']")
    page.wait_for_selector("#txt2img-paint", state="visible")
    page.wait_for_function("document.querySelector('#tab-txt2img .dq-f-model input').value === 'danqing'")


@pytest.mark.long
def test_what_is_refused_is_told_and_buttons_are_explained(site: Site, visit: Open, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page = visit(site, locale="zh-CN")
    page.hover("#txt2img-paint")
    page.wait_for_selector(".dq-bubble:has-text('Ctrl+Enter')")
    page.click("#tab-pnginfo-button")
    page.set_input_files("#pnginfo-picture input[type=file]", tmp_path / "bad.png")
    page.wait_for_selector(".dq-notice:has-text('不是能读的图片')")
    page.click(".dq-notice")
    page.route("**/run/predict", lambda route: route.fulfill(status=429, body='{"error": "rate: too many requests"}'))
    page.click("#tab-txt2img-button")
    page.click("#txt2img-paint")
    page.wait_for_selector(".dq-notice:has-text('请求太多')")


@pytest.mark.long
def test_the_bundled_model_paints_in_both_languages(visit: Open, tmp_path: Path) -> None:
    site = Site(open_engine(tmp_path / "studio", ModelCache()))
    site.engine.start()
    try:
        for locale, prompt in (("en-GB", "a red apple, 3d style"), ("zh-CN", "红苹果，立体风格")):
            page = visit(site, locale=locale)
            assert page.input_value("#txt2img-prompt textarea") == prompt
            paint(page)
            (picture,) = site.engine.pictures(site.job(prompt).id)
            assert (picture.width, picture.height) == (128, 128)
            page.context.close()
    finally:
        site.close()


def _query(words: str) -> Any:
    from danqing.serve.store import Query

    return Query(words=words)
