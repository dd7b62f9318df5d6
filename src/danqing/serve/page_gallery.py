"""The gallery's tab: search, favourites, delete with undo, send to any tab, compare two pictures."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from danqing.errors import DanqingError
from danqing.metadata.files import read_picture
from danqing.metadata.read import as_dict, tell
from danqing.serve.gallery import differences, import_folder
from danqing.serve.page_controls import shown
from danqing.serve.page_jobs import message, shown_small
from danqing.serve.page_paint import Studio, Tab, base_url, on
from danqing.serve.store import Query, Stored
from danqing.serve.work import KINDS

PAGE = 48
"""Pictures at once."""
_PICTURES = ("image", "inpaint", "sketch", "images")
"""Names of the components that take a picture that is sent."""
_LONGEST = 400
"""Characters of a value in the table of differences."""


def gallery(studio: Studio, tabs: Mapping[str, Tab], choose: Any, told: Any) -> Callable[..., Any]:
    """Draw the tab. `choose` are the page's tabs, `told` the picture of PNG info.

    Returns the function that searches, and the components that it takes and fills, for when the page is opened.
    """
    say = studio.say
    with gr.Row(elem_classes="dq-controls"):
        words = gr.Textbox(label=say("words"), elem_id="gallery-words", scale=3)
        model = gr.Textbox(label="model" if studio.language == "en" else "模型")
        tag = gr.Textbox(label=say("tag"))
        kind = gr.Dropdown([(say("newest"), ""), *((each, each) for each in KINDS)], value="", label=say("kind"))
        rating = gr.Slider(0, 5, value=0, step=1, label=say("rating"))
        favourite = gr.Checkbox(label=say("favourites"))
        deleted = gr.Checkbox(label=say("bin"))
        number = gr.Number(value=1, minimum=1, precision=0, label=say("page"))
        search = gr.Button(say("search"), variant="primary", elem_id="gallery-search")
    status = gr.HTML("")
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column(scale=5, min_width=320):
            wall = gr.Gallery(
                columns=4, object_fit="cover", height="auto", allow_preview=False, interactive=False,
                show_label=False, elem_id="gallery-wall", buttons=[],
            )  # fmt: skip
        with gr.Column(scale=4, min_width=320):
            chosen = _details(studio, tabs, choose, told)
    ids = gr.State(())
    asked = [words, model, tag, kind, rating, favourite, deleted, number]

    def find(text: str, name: str, label: str, of: str, stars: float, liked: bool, gone: bool, at: float,
             request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
        query = Query(
            words=text or "", model=name or None, tag=label or None, kind=of or None, rating=int(stars) or None,
            favourite=True if liked else None, deleted=bool(gone),
        )  # fmt: skip
        store = studio.engine.store
        found = store.search(query, PAGE, (max(int(at or 1), 1) - 1) * PAGE)
        line = message(f"{store.count(query)} {say('found')}")
        return shown_small(found, base_url(request, studio.settings)), tuple(each.id for each in found), line

    outputs = [wall, ids, status]
    on(search.click, find, asked, outputs)
    on(words.submit, find, asked, outputs)
    for each in (favourite, deleted, kind, number, rating):
        on(each.change, find, asked, outputs)

    def pick(known: Sequence[str], event: gr.SelectData) -> tuple[Any, ...]:
        index = event.index if isinstance(event.index, int) else 0
        return chosen.show(known[index] if index < len(known) else "")

    on(wall.select, pick, [ids], chosen.outputs)
    with gr.Row():
        brought = gr.Button(say("import"), size="sm")

    def bring() -> str:
        own = studio.engine.folder / "import"
        own.mkdir(exist_ok=True)
        try:
            done = import_folder(studio.engine, own, (own, *studio.settings.folders))
        except DanqingError as error:
            return message(str(error), problem=True)
        return message(f"{say('imported')}: {done.added}; {'; '.join(done.failed[:3])}")

    on(brought.click, bring, None, [status])
    return lambda event: on(event, find, asked, outputs)


class Details:
    """The chosen picture's components, and what they show of it."""

    def __init__(self, studio: Studio, outputs: Sequence[Any]) -> None:
        self.studio, self.outputs = studio, list(outputs)

    def show(self, identity: str) -> tuple[Any, ...]:
        """Values of `outputs` for a picture of the gallery."""
        try:
            picture = self.studio.engine.store.picture(identity)
        except DanqingError as error:
            return "", "", gr.skip(), gr.skip(), gr.skip(), gr.skip(), message(str(error), problem=True)
        view = _view(picture, self.studio)
        return picture.id, view, picture.infotext, picture.favourite, picture.rating, ", ".join(picture.tags), ""


def _view(picture: Stored, studio: Studio) -> str:
    place = f"/api/v1/pictures/{picture.id}/file"
    said = html.escape(picture.prompt[:200], quote=True)
    return (
        f'<figure class="dq-view"><img src="{place}" alt="{said}"><figcaption>{picture.width}×{picture.height} · '
        f'<a href="{place}" target="_blank">{studio.say("full")}</a></figcaption></figure>'
    )


def _details(studio: Studio, tabs: Mapping[str, Tab], choose: Any, told: Any) -> Details:
    say, store = studio.say, studio.engine.store
    identity = gr.State("")
    view = gr.HTML("")
    with gr.Row():
        favourite = gr.Checkbox(label=say("favourite"))
        rating = gr.Slider(0, 5, value=0, step=1, label=say("rate"))
    tags = gr.Textbox(label=say("tags"))
    with gr.Row():
        save = gr.Button(say("save"), size="sm", min_width=60)
        delete = gr.Button(say("delete"), size="sm", variant="stop", min_width=60, elem_id="gallery-delete")
        undo = gr.Button(say("undo"), size="sm", min_width=60, elem_id="gallery-undo")
    note = gr.HTML("")
    with gr.Row():
        sends = {
            name: gr.Button(f"{say('send')} {say(name)}", size="sm", min_width=120, elem_id=f"gallery-to-{name}")
            for name in (*tabs, "pnginfo")
        }
    info = gr.Textbox(label=say("result_info"), lines=4, max_lines=12, interactive=False, buttons=["copy"])
    details = Details(studio, [identity, view, info, favourite, rating, tags, note])

    def keep(chosen: str, liked: bool, stars: float, labels: str) -> str:
        names = [each.strip()[:200] for each in (labels or "").replace("，", ",").split(",") if each.strip()]
        return _changed(studio, chosen, rating=int(stars), favourite=bool(liked), tags=names[:100])

    on(save.click, keep, [identity, favourite, rating, tags], [note])
    on(delete.click, lambda chosen: _changed(studio, chosen, deleted=True), [identity], [note])
    on(undo.click, lambda chosen: _changed(studio, chosen, deleted=False), [identity], [note])
    for name, tab in tabs.items():
        send(studio, sends[name].click, tab, [identity], lambda chosen: picture_of(studio, chosen), choose, note)
    on(
        sends["pnginfo"].click,
        lambda chosen: (
            (str(studio.engine.path(store.picture(chosen))), gr.Tabs(selected="pnginfo"))
            if chosen
            else (gr.skip(), gr.skip())
        ),
        [identity],
        [told, choose],
    )
    _compare(studio, identity)
    return details


def _changed(studio: Studio, identity: str, **changes: Any) -> str:
    if not identity:
        return message(studio.say("choose"), problem=True)
    try:
        studio.engine.store.set_picture(identity, **changes)
    except DanqingError as error:
        return message(str(error), problem=True)
    return message(studio.say("deleted" if changes.get("deleted") else "done"))


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
    # a picture's control is filled with the picture alone; what enlarges has no settings of a painting
    controls = [control for control in tab.controls if control.component._id not in held and tab.name != "upscale"]

    def go(chosen: str) -> list[Any]:
        empty: list[Any] = [gr.skip()] * (len(controls) + len(pictures))
        if not chosen:
            return [*empty, gr.skip(), message(studio.say("choose"), problem=True)]
        try:
            path, fields = source(chosen)
        except DanqingError as error:
            return [*empty, gr.skip(), message(str(error), problem=True)]
        values = shown(controls, _fitting(tab, fields)) if fields else empty[: len(controls)]
        files = [[path] if name == "images" else path for name in pictures]
        return [*values, *files, gr.Tabs(selected=tab.name), message(studio.say("sent"))]

    on(event, go, list(inputs), [*(control.component for control in controls), *pictures.values(), choose, note])


def _fitting(tab: Tab, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What makes sense on another tab: a picture that is painted over has its own size, and each kind its own strength."""
    apart: set[str] = set()
    if tab.name == "img2img" and "image" not in fields:
        apart = {"width", "height", "denoising_strength"}
    elif tab.name == "txt2img" and not fields.get("enable_hr"):
        apart = {"denoising_strength"}
    return {name: value for name, value in fields.items() if name not in apart}


def _compare(studio: Studio, identity: Any) -> None:
    say = studio.say
    with gr.Accordion(say("compare"), open=False, elem_id="gallery-compare"):
        with gr.Row():
            left = gr.Button(say("as_left"), size="sm")
            right = gr.Button(say("as_right"), size="sm")
        sides = gr.State(("", ""))
        slider = gr.ImageSlider(type="pil", format="png", interactive=False, show_label=False)
        table = gr.HTML("")

    def put(chosen: str, both: tuple[str, str], side: int) -> tuple[Any, ...]:
        names = (chosen, both[1]) if side == 0 else (both[0], chosen)
        if not all(names):
            return names, gr.skip(), message(studio.say("choose"))
        try:
            one, other = (studio.engine.store.picture(name) for name in names)
        except DanqingError as error:
            return ("", ""), gr.skip(), message(str(error), problem=True)
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
        return message(str(error), problem=True)
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
