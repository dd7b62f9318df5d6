"""The gallery's tab: search, favourites, delete with undo, send to any tab, compare two pictures."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from danqing.errors import DanqingError
from danqing.metadata.files import read_picture
from danqing.metadata.read import as_dict, tell
from danqing.serve.gallery import copied, differences, import_folder
from danqing.serve.page_controls import shown
from danqing.serve.page_errors import explained
from danqing.serve.page_jobs import message, shown_small
from danqing.serve.page_studio import Studio, Tab, base_url, on
from danqing.serve.store import Query, Stored
from danqing.serve.work import KINDS

PAGE = 48
"""Pictures at once."""
STARS = [("–", 0), *(("★" * each, each) for each in range(1, 6))]
_PICTURES = ("image", "inpaint", "sketch", "images")
"""Names of the components that take a picture that is sent."""
_LONGEST = 400
"""Characters of a value in the table of differences."""


def gallery(studio: Studio, tabs: Mapping[str, Tab], choose: Any, told: Any) -> Callable[..., Any]:
    """Draw the tab. `choose` are the page's tabs, `told` the picture of PNG info.

    Returns what binds its search to an event, for when the tab is opened.
    """
    say = studio.say
    with gr.Row(elem_classes="dq-search"):
        words = gr.Textbox(
            label=say("words"), placeholder=say("words"), show_label=False, container=False, elem_id="gallery-words",
            scale=5,
        )  # fmt: skip
        search = gr.Button(say("search"), variant="primary", elem_id="gallery-search", min_width=90)
    with (
        gr.Accordion(say("filters"), open=False, elem_classes="dq-group", elem_id="gallery-filters"),
        gr.Row(elem_classes="dq-controls"),
    ):
        kinds = [(say("all"), ""), *((say(f"kind_{each}"), each) for each in KINDS)]
        kind = gr.Dropdown(kinds, value="", label=say("kind"), elem_id="gallery-kind")
        rating = gr.Dropdown([(say("all"), 0), *STARS[1:]], value=0, label=say("rating"), elem_id="gallery-least")
        model = gr.Textbox(label=say("of_model"), max_lines=1, elem_id="gallery-model")
        tag = gr.Textbox(label=say("tag"), max_lines=1, elem_id="gallery-tag")
        seed = gr.Textbox(label=say("seed"), max_lines=1, elem_classes="dq-number", elem_id="gallery-seed")
        since, until = (
            gr.Textbox(label=say(each), placeholder=say("day"), max_lines=1, elem_id=f"gallery-{each}")
            for each in ("since", "until")
        )
        favourite = gr.Checkbox(label=say("favourites"), elem_id="gallery-favourites")
        deleted = gr.Checkbox(label=say("bin"), elem_id="gallery-bin")
    with gr.Row(elem_classes="dq-gallery"):
        with gr.Column(elem_classes="dq-wall"):
            wall = gr.Gallery(
                columns=4, object_fit="cover", height="auto", allow_preview=False, interactive=False,
                show_label=False, elem_id="gallery-wall", buttons=[],
            )  # fmt: skip
            with gr.Row(elem_classes="dq-pager"):
                earlier = gr.Button(say("newer"), size="sm", min_width=40, elem_id="gallery-earlier")
                status = gr.HTML("", elem_id="gallery-found")
                later = gr.Button(say("older"), size="sm", min_width=40, elem_id="gallery-later")
        with gr.Column(elem_classes="dq-details dq-panel", visible=False, elem_id="gallery-details") as panel:
            chosen = _details(studio, tabs, choose, told, panel)
    _compare(studio, chosen.identity)
    with gr.Row(elem_classes="dq-sends"):
        brought = gr.Button(say("import"), size="sm", elem_classes="dq-quiet", elem_id="gallery-import")
        told_of = gr.HTML("", elem_id="gallery-imported")
    ids, offset = gr.State(()), gr.State(0)
    asked = [offset, words, model, tag, kind, rating, favourite, deleted, seed, since, until]
    outputs = [wall, ids, offset, status]

    def turned(step: int | None) -> Callable[..., tuple[Any, ...]]:
        """What searches: from the first picture on, where `step` is None, else so many pages on."""

        def find(at: int, text: str, name: str, label: str, of: str, stars: int, liked: bool, gone: bool, number: str,
                 first: str, last: str, request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
            try:
                query = Query(
                    words=text or "", model=name or None, tag=label or None, kind=of or None, rating=int(stars) or None,
                    favourite=True if liked else None, deleted=bool(gone), seed=_seed(number), since=_day(first),
                    until=_day(last, 1),
                )  # fmt: skip
            except ValueError:
                return gr.skip(), gr.skip(), gr.skip(), message(say("wrong_filter"), problem=True)
            store = studio.engine.store
            total = store.count(query)
            at = max(0, min(0 if step is None else at + step * PAGE, (total - 1) // PAGE * PAGE))
            found = store.search(query, PAGE, at)
            line = f"{at + 1}–{at + len(found)} / {total}" if found else say("none_found")
            shown = shown_small(found, base_url(request, studio.settings))
            return shown, tuple(each.id for each in found), at, f'<span class="dq-count">{html.escape(line)}</span>'

        return find

    typed = (each.submit for each in (words, model, tag, seed, since, until))
    for event in (*typed, search.click, kind.input, rating.input, favourite.input,
                  deleted.input):  # fmt: skip
        on(event, turned(None), asked, outputs)
    on(earlier.click, turned(-1), asked, outputs)
    on(later.click, turned(1), asked, outputs)
    for done in chosen.changed:
        done.then(turned(0), asked, outputs, queue=False, show_progress="hidden", api_visibility="private")
    on(wall.select, chosen.pick, [ids], chosen.outputs)

    def bring() -> str:
        own = studio.engine.folder / "import"
        own.mkdir(exist_ok=True)
        lines: list[str] = []
        failed: list[str] = []
        for folder in (own, *studio.settings.folders):
            try:
                done = import_folder(studio.engine, folder, (folder,))
            except DanqingError as error:
                failed.append(explained(str(error), studio.language))
                continue
            lines.append(f"{say('imported')} {folder}: {done.added}")
            failed += done.failed[:3]
        return message("; ".join([*lines, *failed]), problem=bool(failed))

    imported = on(brought.click, bring, None, [told_of])
    imported.then(turned(None), asked, outputs, queue=False, show_progress="hidden", api_visibility="private")
    return lambda event: on(event, turned(0), asked, outputs)


def _seed(text: str) -> int | None:
    """Raises ValueError."""
    return int(text) if (text or "").strip() else None


def _day(text: str, later: int = 0) -> float | None:
    """When a day begins here, such as 2026-11-21, or one `later`. Raises ValueError."""
    if not (text or "").strip():
        return None
    return (datetime.strptime(text.strip(), "%Y-%m-%d") + timedelta(days=later)).timestamp()


class Details:
    """The chosen picture: its components, and what they show of it."""

    def __init__(self, studio: Studio, identity: Any, outputs: Sequence[Any], changed: Sequence[Any]) -> None:
        self.studio, self.identity, self.outputs, self.changed = studio, identity, list(outputs), changed

    def pick(self, known: Sequence[str], event: gr.SelectData) -> tuple[Any, ...]:
        """What is shown of the picture that was clicked on, of those in `known`."""
        index = event.index if isinstance(event.index, int) else 0
        return self.show(known[index] if index < len(known) else "")

    def show(self, identity: str) -> tuple[Any, ...]:
        """Values of `outputs` for a picture of the gallery."""
        try:
            picture = self.studio.engine.store.picture(identity)
        except DanqingError as error:
            return (gr.skip(),) * 6 + (self.studio.problem(error),) + (gr.skip(),) * 3
        gone = picture.deleted is not None
        return (
            picture.id, _view(picture, self.studio), picture.infotext, picture.favourite, picture.rating,
            ", ".join(picture.tags), message(self.studio.say("deleted")) if gone else "",
            gr.update(visible=True), gr.update(visible=not gone), gr.update(visible=gone),
        )  # fmt: skip


def _view(picture: Stored, studio: Studio) -> str:
    place = f"/api/v1/pictures/{picture.id}/file"
    said = html.escape(picture.prompt[:200], quote=True)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(picture.created))
    return (
        f'<figure class="dq-view"><a href="{place}" target="_blank" rel="noopener"><img src="{place}" alt="{said}"></a>'
        f'<figcaption><p class="dq-said">{said}</p>{picture.width}×{picture.height} · {html.escape(picture.model)} · {day}'
        "</figcaption></figure>"
    )


def _details(studio: Studio, tabs: Mapping[str, Tab], choose: Any, told: Any, panel: Any) -> Details:
    say = studio.say
    identity = gr.State("")
    view = gr.HTML("")
    with gr.Row(elem_classes="dq-marks"):
        favourite = gr.Checkbox(label=f"♥ {say('favourite')}", container=False, elem_id="gallery-favourite")
        rating = gr.Radio(
            STARS, value=0, label=say("rate"), show_label=False, container=False, elem_id="gallery-rating",
            elem_classes="dq-segments",
        )  # fmt: skip
    tags = gr.Textbox(
        label=say("tags"),
        placeholder=say("tags"),
        show_label=False,
        container=False,
        max_lines=1,
        elem_id="gallery-tags",
    )
    note = gr.HTML("", elem_id="gallery-note")
    with gr.Row(elem_classes="dq-sends"):
        sends = {
            name: gr.Button(f"→ {say(name)}", size="sm", min_width=60, elem_id=f"gallery-to-{name}",
                            elem_classes="dq-quiet")
            for name in (*tabs, "pnginfo")
        }  # fmt: skip
        copy = gr.Button(say("copy"), size="sm", min_width=60, elem_id="gallery-copy", elem_classes="dq-quiet")
        delete = gr.Button(
            say("delete"), size="sm", min_width=60, elem_id="gallery-delete", elem_classes="dq-quiet dq-delete"
        )
        undo = gr.Button(
            say("undo"), size="sm", min_width=60, visible=False, elem_id="gallery-undo", elem_classes="dq-quiet"
        )
    with gr.Accordion(say("result_info"), open=False, elem_classes="dq-group dq-info"):
        info = gr.Textbox(
            label=say("result_info"), show_label=False, lines=3, max_lines=12, interactive=False, container=False,
            buttons=["copy"], elem_id="gallery-info",
        )  # fmt: skip

    def keep(chosen: str, liked: bool, stars: int, labels: str) -> str:
        names = [each.strip()[:200] for each in (labels or "").replace("，", ",").split(",") if each.strip()]
        return _changed(studio, chosen, rating=int(stars or 0), favourite=bool(liked), tags=names[:100])

    def bin(chosen: str, gone: bool) -> tuple[Any, ...]:
        line = _changed(studio, chosen, deleted=gone)
        return line, gr.update(visible=not gone), gr.update(visible=gone)

    marks, switches = [identity, favourite, rating, tags], [note, delete, undo]
    changed = [on(event, keep, marks, [note]) for event in (favourite.input, rating.input, tags.submit, tags.blur)]
    changed.append(on(delete.click, lambda chosen: bin(chosen, True), [identity], switches))
    changed.append(on(undo.click, lambda chosen: bin(chosen, False), [identity], switches))
    on(copy.click, partial(keep_copy, studio), [identity], [note])
    for name, tab in tabs.items():
        send(studio, sends[name].click, tab, [identity], partial(picture_of, studio), choose, note)

    def tell_of(chosen: str) -> tuple[Any, ...]:
        return (picture_of(studio, chosen)[0], gr.Tabs(selected="pnginfo")) if chosen else (gr.skip(), gr.skip())

    on(sends["pnginfo"].click, tell_of, [identity], [told, choose])
    return Details(
        studio, identity, [identity, view, info, favourite, rating, tags, note, panel, delete, undo], changed
    )


def _changed(studio: Studio, identity: str, **changes: Any) -> str:
    if not identity:
        return message(studio.say("choose"), problem=True)
    try:
        studio.engine.store.set_picture(identity, **changes)
    except DanqingError as error:
        return studio.problem(error)
    return message(studio.say("deleted" if changes.get("deleted") else "kept"))


def keep_copy(studio: Studio, identity: str) -> str:
    """Write a copy of a picture to the settings' folder of pictures, under their name and in their format."""
    if not identity:
        return message(studio.say("choose"), problem=True)
    try:
        path = copied(studio.engine, studio.engine.store.picture(identity))
    except DanqingError as error:
        return studio.problem(error)
    return message(f"{studio.say('copied')} {path}")


def picture_of(studio: Studio, identity: str) -> tuple[str, dict[str, Any]]:
    """(file, request's fields) of a picture of the gallery; no fields where it does not say how it was made."""
    path = studio.engine.path(studio.engine.store.picture(identity))
    return str(path), request_fields(str(path))


def request_fields(path: str) -> dict[str, Any]:
    """How a picture's file was made, as fields of a request; none where it does not say."""
    try:
        return dict(as_dict(tell(read_picture(Path(path))))["request"])
    except DanqingError:
        return {}


def send(
    studio: Studio,
    event: Callable[..., Any],
    tab: Tab,
    inputs: Sequence[Any],
    source: Callable[[str], tuple[str, dict[str, Any]]],
    choose: Any,
    note: Any,
) -> None:
    """Bind: what `source` tells of a picture goes into the tab's controls, the picture itself where it takes one."""
    pictures = {name: tab.extra[name] for name in _PICTURES if name in tab.extra}
    held = {component._id for component in pictures.values()}
    plotted = [tab.extra["source"]] if "source" in tab.extra else []  # a plot is then of what is filled in
    # a picture's control is filled with the picture alone; what enlarges has no settings of a painting
    controls = [control for control in tab.controls if control.component._id not in held and tab.name != "upscale"]

    def go(chosen: str) -> list[Any]:
        empty: list[Any] = [gr.skip()] * (len(controls) + len(pictures) + len(plotted))
        if not chosen:
            return [*empty, gr.skip(), message(studio.say("choose"), problem=True)]
        try:
            path, fields = source(chosen)
        except DanqingError as error:
            return [*empty, gr.skip(), studio.problem(error)]
        values = shown(controls, _fitting(tab, fields)) if fields else empty[: len(controls)]
        files = [[path] if name == "images" else path for name in pictures]
        return [*values, *files, *["txt2img"] * len(plotted), gr.Tabs(selected=tab.name), message(studio.say("sent"))]

    boxes = [control.component for control in controls]
    on(event, go, list(inputs), [*boxes, *pictures.values(), *plotted, choose, note])


def _fitting(tab: Tab, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What makes sense on another tab: a picture that is painted over has its own size, and each kind its own strength."""
    apart: set[str] = set()
    if tab.name == "img2img" and "image" not in fields:
        apart = {"width", "height", "denoising_strength"}
    elif tab.name in ("txt2img", "plot") and not fields.get("enable_hr"):
        apart = {"denoising_strength"}
    return {name: value for name, value in fields.items() if name not in apart}


def _compare(studio: Studio, identity: Any) -> None:
    say = studio.say
    with gr.Accordion(say("compare"), open=False, elem_id="gallery-compare", elem_classes="dq-group"):
        gr.HTML(f'<p class="dq-hint">{html.escape(say("compare_hint"))}</p>')
        with gr.Row(elem_classes="dq-sends"):
            left = gr.Button(say("as_left"), size="sm", elem_id="compare-left", elem_classes="dq-quiet")
            right = gr.Button(say("as_right"), size="sm", elem_id="compare-right", elem_classes="dq-quiet")
        sides = gr.State(("", ""))
        slider = gr.ImageSlider(
            type="pil", format="png", interactive=False, show_label=False, elem_id="compare-slider", buttons=[]
        )
        table = gr.HTML("", elem_id="compare-table")

    def put(chosen: str, both: tuple[str, str], side: int) -> tuple[Any, ...]:
        names = (chosen, both[1]) if side == 0 else (both[0], chosen)
        if not all(names):
            return names, gr.skip(), message(studio.say("choose"))
        try:
            one, other = (studio.engine.store.picture(name) for name in names)
        except DanqingError as error:
            return ("", ""), gr.skip(), studio.problem(error)
        files = (str(studio.engine.path(one)), str(studio.engine.path(other)))
        return names, files, compared(studio, one, other)

    on(left.click, lambda chosen, both: put(chosen, both, 0), [identity, sides], [sides, slider, table])
    on(right.click, lambda chosen, both: put(chosen, both, 1), [identity, sides], [sides, slider, table])


def compared(studio: Studio, one: Stored, other: Stored) -> str:
    """A table of the fields that differ, as HTML."""
    say = studio.say
    try:
        found = differences(studio.engine, one, other)
    except DanqingError as error:
        return studio.problem(error)
    if not found:
        return message(say("same"))
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(a)[:_LONGEST])}</td>"
        f"<td>{html.escape(str(b)[:_LONGEST])}</td></tr>"
        for name, (a, b) in found.items()
    )
    return table_of((say("differs"), say("left"), say("right")), rows)


def table_of(heads: Sequence[str], rows: str) -> str:
    """A table whose rows are HTML already."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    return f'<table class="dq-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
