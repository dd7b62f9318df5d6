"""The report: one file, right figures, and charts that a renderer takes."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from danqing.train.history import REPORT, History
from danqing.train.recipe import Autoencode
from danqing.train.report import Curve, Row, chart, report, smoothed

SVG = "{http://www.w3.org/2000/svg}"


def made(steps: int) -> list[Row]:
    rows: list[Row] = []
    for step in range(20, steps + 1, 20):
        speed = 10.0 + step % 3
        rows.append(
            {"step": step, "loss": 100 / step, "l1": 50 / step, "learning_rate": 1.0, "pictures_per_second": speed}
        )
        if step % 100 == 0:
            rows.append({"step": step, "held_out/loss": 1 + 100 / step, "held_out/psnr": step / 100})
    return rows


def page(rows: list[Row], warnings: list[tuple[int, str]], sheets: list[Path]) -> str:
    settings = {"steps": 2000, "augment": {"flip": 0.5}}
    return report("autoencoder", "tiny <&>", rows, warnings, sheets, settings, 2000, 5400.0)


class Tags(HTMLParser):
    """Checks that elements are closed in order, and keeps where pictures come from."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(tmp_path: Path) -> None:
    sheets = []
    for step in range(100, 1000, 100):
        sheets.append(tmp_path / f"{step:08d}.png")
        Image.new("RGB", (40, 20), (step % 256, 0, 0)).save(sheets[-1])
    html = page(made(1000), [(700, "overfitting (炸炉): <since> 600")], sheets)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", html)
    assert "prefers-color-scheme: dark" in html
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == ["update 100", "update 600", "update 700", "update 800", "update 900"]
    assert "<b>Update 700:</b> overfitting (炸炉): &lt;since&gt; 600" in html
    assert "tiny &lt;&amp;&gt;" in html
    assert "update 1,000 of 2,000 · 1 h 30 min spent" in html
    assert "width: 50.0%" in html
    cells = dict(re.findall(r'<span class="soft">([^<]*)</span><b>([^<]*)</b>', html))
    assert cells["held-out loss"] == cells["best, update 1,000"] == "1.1"
    assert cells["held out: psnr"] == "10"
    assert cells["pictures/s, median"] == "11"
    assert '<span class="soft">augment.flip</span><span>0.5</span>' in html
    titles = re.findall(r'<text class="title"[^>]*>([^<]*)<', html)
    assert titles == ["loss", "held out: psnr", "l1", "learning rate, of its highest", "pictures/s"]


def test_a_page_of_nothing() -> None:
    html = page([], [], [])
    assert "nothing yet" in html
    assert "<h2>Samples</h2>" not in html


def test_a_chart_is_drawn_to_scale() -> None:
    svg = ET.fromstring(
        chart("x", [Curve("line", "red", [(0.0, 0.0), (50.0, 1.0), (100.0, 2.0)], dots=True)], 400, 200)
    )
    ((_, y0), (_, y1), (_, y2)) = places = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter(f"{SVG}circle")
    ]
    assert y0 > y1 > y2
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    inner = next(node for node in svg.iter(f"{SVG}svg") if node is not svg)
    assert places[1][0] == pytest.approx(places[2][0] / 2, abs=0.1)
    assert 0 <= places[2][0] <= float(inner.attrib["width"])
    labels = {node.text: float(node.attrib["y"]) for node in svg.iter(f"{SVG}text") if node.get("text-anchor") == "end"}
    assert labels["1"] - 4 - float(inner.attrib["y"]) == pytest.approx(y1, abs=0.2)


def test_a_logarithmic_chart() -> None:
    points = [(0.0, 10.0), (1.0, 1.0), (2.0, 0.1)]
    svg = ET.fromstring(chart("x", [Curve("", "red", points, dots=True)], 400, 200, log=True))
    y0, y1, y2 = (float(dot.attrib["cy"]) for dot in svg.iter(f"{SVG}circle"))
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert {"10", "5", "2", "1", "0.5", "0.2", "0.1"} <= {node.text for node in svg.iter(f"{SVG}text")}


finite = st.floats(-1e6, 1e6, allow_nan=False)


@example([1.0, 5e-324], True)
@given(st.lists(finite | st.just(math.nan) | st.just(math.inf), max_size=30), st.booleans())
def test_any_values_make_a_chart(values: list[float], log: bool) -> None:
    curve = Curve("a", "blue", [(20.0 * (i + 1), value) for i, value in enumerate(values)], dots=True)
    svg = ET.fromstring(chart("t", [curve], 300, 170, log))
    for line in svg.iter(f"{SVG}polyline"):
        assert "nan" not in line.attrib["points"]
        assert "inf" not in line.attrib["points"]


def test_a_renderer_takes_it() -> None:
    resvg = pytest.importorskip("resvg_py")
    drawn = chart("loss", [Curve("held out", "red", [(0.0, 1.0), (100.0, 2.0)], dots=True)], 400, 200)
    data = resvg.svg_to_bytes(svg_string=drawn, width=400)
    picture = Image.open(io.BytesIO(bytes(data)))
    assert picture.size == (400, 200)
    assert picture.getchannel("A").getextrema() == (0, 255)


def test_smoothing_keeps_ends_and_level() -> None:
    points = [(float(i), 5.0 + (-1) ** i) for i in range(1000)]
    done = smoothed(points)
    assert len(done) <= 240
    assert (done[0][0], done[-1][0]) == (0.0, 999.0)
    assert all(abs(value - 5) < 0.2 for _, value in done)
    assert smoothed(points[:4]) == points[:4]


def test_the_history_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "autoencoder"
    history = History(folder, "autoencoder", Autoencode(steps=100), 0)
    history.add(20, {"loss": 0.5})
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "samples" / "00000020.png")
    history.report(30.0, {"size": 32})
    history.close()
    html = (folder / REPORT).read_text("utf-8")
    assert "<title>autoencoder · tiny</title>" in html
    assert '<span class="soft">data.size</span><span>32</span>' in html
    assert '<span class="soft">discriminator.loss</span><span>hinge</span>' in html
    assert "update 20 of 100" in html
    assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "report.html", "samples", "tensorboard"]
