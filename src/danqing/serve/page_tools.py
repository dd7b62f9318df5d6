"""The tabs of models and adapters, PNG info and the glossary."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.listing import Row, list_models
from danqing.metadata.files import read_picture
from danqing.metadata.read import as_infotext, tell
from danqing.serve.page_gallery import request_fields, send, table_of
from danqing.serve.page_jobs import message
from danqing.serve.page_studio import Studio, Tab, handed, on
from danqing.serve.page_texts import glossary

_ADAPTERS = ("lora", "embedding", "hypernetwork")
_PREVIEWS = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")
"""Endings of the pictures that tools keep beside a model."""
_CARD = 160
_CARDS = 300
"""More are found by their names."""


def models(studio: Studio, painting: Tab, choose: Any) -> Callable[..., Any]:
    """Cards of all models; one that is chosen goes to `painting`, whose tab is opened.

    Returns what binds the list to the tab's opening.
    """
    say, library = studio.say, studio.engine.models.settings
    prompt, model = painting.named("prompt"), painting.named("model")
    with gr.Row(elem_classes="dq-search"):
        name = gr.Textbox(
            label=say("filter"), placeholder=say("filter"), show_label=False, container=False, scale=5,
            elem_id="models-name",
        )  # fmt: skip
        kind = gr.Dropdown(
            [(say("all"), "")], value="", label=say("kind"), show_label=False, container=False, min_width=120,
            allow_custom_value=True, elem_id="models-kind",
        )  # fmt: skip
    cards = gr.HTML("", elem_id="models-cards")
    taken = gr.Textbox(label="", elem_id="models-taken", elem_classes="dq-hidden")  # filled by `page.js`

    def find(part: str, of: str) -> tuple[Any, ...]:
        rows = list_models(library)
        kinds = sorted({row.kind for row in rows})
        found = [row for row in rows if (part or "").casefold() in row.name.casefold() and of in (None, "", row.kind)]
        shown = gr.update(choices=[(say("all"), ""), *((each, each) for each in kinds)])
        return cards_of(found, studio), shown

    def take(press: str, text: str) -> tuple[Any, ...]:
        """`checkpoint:NAME` is painted with, any other text is added to the prompt."""
        what = handed(press)
        kind, _, chosen = what.partition(":")
        if kind == "checkpoint":
            return gr.skip(), chosen, gr.Tabs(selected="txt2img")
        return f"{text} {what}".strip(), gr.skip(), gr.Tabs(selected="txt2img")

    on(name.change, find, [name, kind], [cards, kind], trigger_mode="always_last")
    on(kind.input, find, [name, kind], [cards, kind])
    on(taken.change, take, [taken, prompt], [prompt, model, choose], trigger_mode="multiple")
    return lambda event: on(event, find, [name, kind], [cards, kind])


def tag(name: str, kind: str) -> str:
    """How a prompt calls an adapter; an embedding is called by its name."""
    return name if kind == "embedding" else f"<{'hypernet' if kind == 'hypernetwork' else 'lora'}:{name}:1>"


def cards_of(rows: list[Row], studio: Studio) -> str:
    """The models' cards as HTML."""
    if not rows:
        return message(studio.say("no_models"))
    return f'<div class="dq-cards">{"".join(_card(row, studio) for row in rows[:_CARDS])}</div>'


def _card(row: Row, studio: Studio) -> str:
    say = studio.say
    facts = {say("family"): row.family, say("size"): f"{row.size / 1e6:,.0f} MB", say("source"): row.source}
    words = _trigger_words(row)
    if words:
        facts[say("trigger")] = ", ".join(words)
    if row.problem:
        facts[say("problem")] = row.problem
    picture = _beside(row.path)
    image = f'<img alt="" loading="lazy" src="{picture}">' if picture else '<div class="dq-blank">丹青</div>'
    lines = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
        if value
    )
    name = Path(row.name).stem if row.path.is_file() else row.name
    called = f"checkpoint:{name}" if row.kind == "checkpoint" else tag(name, row.kind) if row.kind in _ADAPTERS else ""
    said = say("paint_with" if row.kind == "checkpoint" else "add")
    take = f'<button type="button" class="dq-chip" data-dq-take="{html.escape(called, quote=True)}">{said}</button>'
    return (
        f'<div class="dq-card">{image}<h4>{html.escape(row.name)}</h4><span class="dq-kind">{html.escape(row.kind)}'
        f"</span><dl>{lines}</dl>{take if called and not row.problem else ''}</div>"
    )


def _trigger_words(row: Row) -> tuple[str, ...]:
    if row.kind not in _ADAPTERS or not row.path.exists():
        return ()
    return _words_of(row.path, row.path.stat().st_mtime_ns)


@lru_cache(maxsize=4 * _CARDS)
def _words_of(path: Path, stamp: int) -> tuple[str, ...]:
    """An adapter's trigger words; read once, while it is written at `stamp`."""
    from danqing.adapters.inspect import inspect_adapter

    try:
        return inspect_adapter(path).words
    except DanqingError:
        return ()


def _beside(path: Path) -> str:
    """The picture that lies beside a model, small, as a data URL."""
    files = (path.with_name(path.stem + ending) for ending in _PREVIEWS)
    found = next((file for file in files if file.is_file()), None)
    return "" if found is None else _small(found, found.stat().st_mtime_ns)


@lru_cache(maxsize=4 * _CARDS)
def _small(file: Path, stamp: int) -> str:
    """A picture on a card, as a data URL; made once, for all cards are drawn at every letter of a search."""
    try:
        image = read_picture(file).image.convert("RGB")
    except DanqingError:
        return ""
    image.thumbnail((_CARD, _CARD), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def pnginfo(studio: Studio, tabs: Mapping[str, Tab], choose: Any, picture: Any) -> None:
    """What a picture says of how it was made, and its way into the other tabs. `picture` is rendered here."""
    say = studio.say
    with gr.Row(elem_classes="dq-halves"):
        with gr.Column():
            picture.render()
        with gr.Column():
            status = gr.HTML(f'<p class="dq-hint">{html.escape(say("pnginfo_hint"))}</p>')
            info = gr.Textbox(
                label=say("result_info"), lines=8, max_lines=24, interactive=False, buttons=["copy"],
                elem_id="pnginfo-info",
            )  # fmt: skip
            with gr.Row(elem_classes="dq-sends"):
                for name, tab in tabs.items():
                    button = gr.Button(
                        f"→ {say(name)}", size="sm", min_width=60, elem_id=f"pnginfo-to-{name}", elem_classes="dq-quiet"
                    )
                    send(
                        studio, button.click, tab, [picture], lambda path: (path, request_fields(path)), choose, status
                    )
    on(picture.change, lambda path: told(studio, path), [picture], [info, status])


def told(studio: Studio, path: str | None) -> tuple[str, str]:
    """(infotext, status) of a picture's file."""
    if not path:
        return "", ""
    try:
        file = read_picture(Path(path))
        found = tell(file)
    except DanqingError as error:
        return "", studio.problem(DanqingError(str(error).replace(str(path), Path(path).name)))
    text = file.texts.get("parameters") or as_infotext(found)
    return "\n\n".join([text, *found.notes]), message(f"{studio.say('made_with')} {found.tool}")


def told_picture(studio: Studio) -> Any:
    """PNG info's picture, to be drawn later: other tabs send pictures to it."""
    return gr.Image(
        type="filepath", image_mode=None, label=studio.say("a_picture"), sources=["upload", "clipboard"],
        format="png", render=False, elem_id="pnginfo-picture",
    )  # fmt: skip


def words(studio: Studio) -> None:
    """The glossary, with a search."""
    say = studio.say
    with gr.Row(elem_classes="dq-search"):
        part = gr.Textbox(
            label=say("search"), placeholder=say("search"), show_label=False, container=False, elem_id="glossary-words"
        )
    table = gr.HTML(glossary_table("", studio))
    on(part.change, lambda text: glossary_table(text, studio), [part], [table], trigger_mode="always_last")


def glossary_table(part: str, studio: Studio) -> str:
    """The rows of the glossary that hold `part`, as HTML."""
    wanted = (part or "").casefold()
    rows = "".join(
        f"<tr><th>{html.escape(word)}</th><th>{html.escape(hanzi)}</th>"
        f"<td>{html.escape(said if studio.language == 'zh' else meaning)}</td></tr>"
        for word, hanzi, meaning, said in glossary()
        if wanted in f"{word} {hanzi} {meaning} {said}".casefold()
    )
    return table_of(("word", "中文", "说明" if studio.language == "zh" else "meaning"), rows)
