"""`report.html`: what a stage's run looks like, as one file that any browser shows: curves, sheets, settings, warnings."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

Row = Mapping[str, float]
HELD_OUT = "held_out/"
SHEETS = 4
"""The last sample sheets that are shown, besides the first."""
POINTS = 240
"""Points of a curve: more would only make the file larger."""
_OWN_PLACE = ("step", "loss", "learning_rate", "pictures_per_second")
"""Columns that have their own place in the report."""

_STYLE = """
:root { --page: #fbfaf7; --card: #ffffff; --ink: #23262b; --soft: #6d7278; --line: #e4e1da; --red: #b8402a;
  --blue: #1f6f8b; --warn: #fdf1e3; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1f2226; --ink: #e6e4df; --soft: #9aa0a6;
  --line: #34383d; --red: #ee7d63; --blue: #62b6d0; --warn: #3a2c1c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 20px 64px; max-width: 1000px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 17px; margin: 36px 0 12px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.bar { height: 6px; border-radius: 3px; background: var(--line); margin: 14px 0 20px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); }
.warning { background: var(--warn); border-left: 4px solid var(--red); border-radius: 6px; padding: 10px 14px;
  margin: 10px 0; }
.cells { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.cells b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.card svg { display: block; width: 100%; height: auto; }
.sheets { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; display: block; }
figcaption { color: var(--soft); font-size: 13px; padding-top: 6px; }
.settings { columns: 280px; column-gap: 36px; font-size: 13px; }
.settings div { display: flex; justify-content: space-between; gap: 16px; break-inside: avoid; }
.settings span + span { text-align: right; overflow-wrap: anywhere; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .red { stroke: var(--red); } svg .blue { stroke: var(--blue); } svg .faint { opacity: 0.35; stroke-width: 1; }
svg circle.red { fill: var(--red); } svg circle.blue { fill: var(--blue); }
""".strip()


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    label: str
    colour: str
    """`red` or `blue`; with `faint` it does not set the chart's range."""
    points: Sequence[tuple[float, float]]
    dots: bool = False


def report(
    stage: str,
    recipe: str,
    rows: Sequence[Row],
    warnings: Sequence[tuple[int, str]],
    sheets: Sequence[Path],
    settings: Mapping[str, Any],
    steps: int,
    seconds: float,
) -> str:
    """The page. rows: the history's. warnings: (update, text). sheets: sample pictures, the oldest first, named by
    their updates. settings: nested; shown as a list. steps: updates in all. seconds: spent on the stage so far."""
    done = int(rows[-1]["step"]) if rows else 0
    share = 100 * done / steps
    body = [
        f"<h1>{escape(stage)}</h1>",
        f'<p class="soft">{escape(recipe)} · update {done:,} of {steps:,} · {_hours(seconds)} spent'
        f" · written {datetime.now():%Y-%m-%d %H:%M}</p>",
        f'<div class="bar"><i style="width: {share:.1f}%"></i></div>',
        *(f'<div class="warning"><b>Update {step:,}:</b> {escape(text)}</div>' for step, text in warnings),
        '<div class="cells">',
        *(f'<div class="card"><span class="soft">{escape(k)}</span><b>{escape(v)}</b></div>' for k, v in _cells(rows)),
        "</div>",
        "<h2>Curves</h2>",
        f'<div class="card">{chart("loss", _losses(rows), 940, 320, log=True)}</div>',
        '<div class="charts" style="margin-top: 12px">',
        *(f'<div class="card">{chart(title, curves, 300, 170)}</div>' for title, curves in _others(rows)),
        "</div>",
    ]
    shown = [*sheets[:1], *sheets[1:][-SHEETS:]]
    if shown:
        body += ["<h2>Samples</h2>", '<div class="sheets">', *(_figure(path) for path in shown), "</div>"]
    body += ["<h2>Settings</h2>", '<div class="card settings">']
    body += [f'<div><span class="soft">{escape(k)}</span><span>{escape(v)}</span></div>' for k, v in _flat(settings)]
    body += ["</div>"]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(stage)} · {escape(recipe)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def column(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(update, value) of the rows that have it."""
    return [(row["step"], row[name]) for row in rows if name in row]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 240 points, each the mean of those around it: a fortieth of all."""
    if len(points) < 8:
        return list(points)
    reach = len(points) // 80 + 1
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found = []
    for place in _spread(len(points)):
        low, high = max(0, place - reach), min(len(points), place + reach + 1)
        found.append((points[place][0], (sums[high] - sums[low]) / (high - low)))
    return found


def _spread(count: int) -> list[int]:
    """At most 240 places of so many, the first and the last among them."""
    if count <= POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)]


def _losses(rows: Sequence[Row]) -> list[Curve]:
    training = column(rows, "loss")
    return [
        Curve("", "blue faint", [training[place] for place in _spread(len(training))]),
        Curve("training, smoothed", "blue", smoothed(training)),
        Curve("held out", "red", column(rows, f"{HELD_OUT}loss"), dots=True),
    ]


def _others(rows: Sequence[Row]) -> Iterator[tuple[str, list[Curve]]]:
    """Charts of all other columns: held-out scores, parts of the loss, learning rate, speed."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        if name.startswith(HELD_OUT) and name != f"{HELD_OUT}loss":
            yield f"held out: {_words(name.removeprefix(HELD_OUT))}", [Curve("", "red", column(rows, name), dots=True)]
    for name in names:
        if not name.startswith(HELD_OUT) and name not in _OWN_PLACE:
            points = column(rows, name)
            raw = [points[place] for place in _spread(len(points))]
            yield _words(name), [Curve("", "blue faint", raw), Curve("", "blue", smoothed(points))]
    for name, title in (("learning_rate", "learning rate, of its highest"), ("pictures_per_second", "pictures/s")):
        yield title, [Curve("", "blue", smoothed(column(rows, name)))]


def _cells(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The figures that are asked for first."""
    training = smoothed(column(rows, "loss"))
    if training:
        yield "training loss", f"{training[-1][1]:.4g}"
    held_out = column(rows, f"{HELD_OUT}loss")
    if held_out:
        best = min(held_out, key=lambda point: point[1])
        yield "held-out loss", f"{held_out[-1][1]:.4g}"
        yield f"best, update {best[0]:,.0f}", f"{best[1]:.4g}"
    last: dict[str, float] = {}
    for row in rows:
        last |= {name: row[name] for name in row if name.startswith(HELD_OUT) and name != f"{HELD_OUT}loss"}
    yield from ((f"held out: {_words(name.removeprefix(HELD_OUT))}", f"{value:.4g}") for name, value in last.items())
    speeds = sorted(value for _, value in column(rows, "pictures_per_second"))
    if speeds:
        yield "pictures/s, median", f"{speeds[len(speeds) // 2]:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _figure(path: Path) -> str:
    """The sheet inside the page, as a JPEG."""
    packed = io.BytesIO()
    with Image.open(path) as sheet:
        sheet.convert("RGB").save(packed, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(packed.getvalue()).decode()
    update = f"{int(path.stem):,}" if path.stem.isdecimal() else path.stem
    return (
        f'<figure class="card"><img alt="samples at update {update}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>update {update}</figcaption></figure>"
    )


def _flat(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", str(value)


def chart(title: str, curves: Sequence[Curve], width: int, height: int, log: bool = False) -> str:
    """An SVG with axes. With `log` the vertical axis is logarithmic where values span more than a factor of five."""
    left, right, top, bottom = 52, 14, 28, 24
    curves = [curve for curve in curves if curve.points]
    values = [y for curve in curves if "faint" not in curve.colour for _, y in curve.points if math.isfinite(y)]
    head = (
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{escape(title)}"><text class="title" x="0" y="14">{escape(title)}</text>'
    )
    if not values:
        return f'{head}<text x="{left}" y="{height // 2}">nothing yet</text></svg>'
    low, high = min(values), max(values)
    log = log and low > 1e-100 and high < 1e100 and high / low > 5  # beyond, room for the edges overflows
    pad = 0.06 * (math.log(high / low) if log else (high - low)) or abs(high) * 0.05 or 1.0
    low, high = (low * math.exp(-pad), high * math.exp(pad)) if log else (low - pad, high + pad)
    end = max(x for curve in curves for x, _ in curve.points) or 1.0
    inner_width, inner_height = width - left - right, height - top - bottom

    def across(x: float) -> float:
        return x / end * inner_width

    def down(y: float) -> float:
        share = math.log(max(y, low * 1e-3) / low) / math.log(high / low) if log else (y - low) / (high - low)
        return max(-1e4, min(1e4, (1 - share) * inner_height))

    parts = [head, *_legend(curves, width)]
    for tick in _log_ticks(low, high) if log else _ticks(low, high, 5 if height > 200 else 4):
        y = top + down(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(0, end, 8 if width > 500 else 3):
        x = left + across(tick)
        anchor = "middle" if x < width - 30 else "end"
        parts.append(f'<text x="{min(x, width - 2):.1f}" y="{height - 6}" text-anchor="{anchor}">{tick:,.0f}</text>')
    # an inner svg cuts off what is outside the axes, but not half of the last dot
    parts.append(f'<svg x="{left}" y="{top}" width="{inner_width + 4}" height="{inner_height}">')
    for curve in curves:
        places = [(across(x), down(y)) for x, y in curve.points if math.isfinite(y)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{curve.colour}" points="{line}"/>')
        if curve.dots and len(places) <= 80:
            parts += [
                f'<circle class="{curve.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
                f"<title>update {step:,.0f}: {value:.4g}</title></circle>"
                for (x, y), (step, value) in zip(places, [p for p in curve.points if math.isfinite(p[1])])
            ]
    return "".join(parts) + "</svg></svg>"


def _legend(curves: Sequence[Curve], width: int) -> Iterator[str]:
    named = [curve for curve in curves if curve.label]
    at = width - sum(_legend_width(curve) for curve in named)
    for curve in named:
        yield f'<polyline class="{curve.colour}" points="{at},10 {at + 16},10"/>'
        yield f'<text x="{at + 21}" y="14">{escape(curve.label)}</text>'
        at += _legend_width(curve)


def _legend_width(curve: Curve) -> int:
    return 40 + 6 * len(curve.label)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers in the range, about so many."""
    rough = (high - low) / count
    size: float = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    wide = high / low > 200
    factors = (1,) if wide else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for decade in decades for factor in factors if low <= (tick := factor * 10.0**decade) <= high]
