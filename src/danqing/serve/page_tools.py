"""The tabs besides painting and gallery: models and adapters, PNG info, settings, glossary."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.listing import Row, list_models
from danqing.library.settings import show
from danqing.metadata.files import read_picture
from danqing.metadata.read import as_infotext, tell
from danqing.serve.a1111_library import entries, stem
from danqing.serve.page_controls import safe
from danqing.serve.page_gallery import request_fields, send, table_of
from danqing.serve.page_jobs import message
from danqing.serve.page_paint import Studio, Tab, on
from danqing.serve.page_texts import COOKIE, glossary

_ADAPTERS = ("lora", "embedding", "hypernetwork")
_PREVIEWS = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")
"""Endings of the pictures that tools keep beside a model."""
_CARD = 160
_CARDS = 300
"""More are found by their names."""


def models(studio: Studio, prompt: Any) -> Callable[..., Any]:
    """Cards of all models; an adapter is added to `prompt`. Returns what binds the list to the page's opening."""
    say, library = studio.say, studio.engine.models.settings
    with gr.Row():
        name = gr.Textbox(label=say("filter"), scale=3)
        kind = gr.Dropdown([(say("newest"), "")], value="", label=say("kind"), allow_custom_value=True)
        refresh = gr.Button(say("refresh"))
    with gr.Row():
        adapter = gr.Dropdown([], label=say("add_adapter"), allow_custom_value=True, scale=3)
        weight = gr.Slider(-2, 2, value=1, step=0.05, label=say("weight"))
        add = gr.Button(say("add"))
    cards = gr.HTML("")

    def find(part: str, of: str) -> tuple[Any, ...]:
        rows = list_models(library)
        kinds = sorted({row.kind for row in rows})
        tags = [(stem(each), tag(stem(each), each.kind)) for each in entries(library, "lora", "hypernetwork")]
        tags += [(stem(each), stem(each)) for each in entries(library, "embedding")]
        found = [row for row in rows if (part or "").casefold() in row.name.casefold() and of in (None, "", row.kind)]
        shown = gr.update(choices=[(say("newest"), ""), *((each, each) for each in kinds)])
        return cards_of(found, studio), shown, gr.update(choices=tags)

    def added(text: str, chosen: str, strength: float) -> str:
        if not chosen:
            return text
        return f"{text} {chosen.replace(':1>', f':{strength:g}>')}".strip()

    outputs = [cards, kind, adapter]
    on(refresh.click, find, [name, kind], outputs)
    on(name.submit, find, [name, kind], outputs)
    on(kind.input, find, [name, kind], outputs)
    on(add.click, added, [prompt, adapter, weight], [prompt])
    return lambda event: on(event, find, [name, kind], outputs)


def tag(name: str, kind: str) -> str:
    """How a prompt calls an adapter."""
    return f"<{'hypernet' if kind == 'hypernetwork' else 'lora'}:{name}:1>"


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
        f"<div><b>{html.escape(name)}</b> {html.escape(value)}</div>" for name, value in facts.items() if value
    )
    return (
        f'<div class="dq-card">{image}<h4>{html.escape(row.name)}</h4><span class="dq-kind">{html.escape(row.kind)}'
        f"</span>{lines}</div>"
    )


def _trigger_words(row: Row) -> tuple[str, ...]:
    if row.kind not in _ADAPTERS:
        return ()
    from danqing.adapters.inspect import inspect_adapter

    try:
        return inspect_adapter(row.path).words
    except DanqingError:
        return ()


def _beside(path: Path) -> str:
    """The picture that lies beside a model, small, as a data URL."""
    for ending in _PREVIEWS:
        file = path.with_name(path.stem + ending)
        if not file.is_file():
            continue
        try:
            image = read_picture(file).image.convert("RGB")
        except DanqingError:
            return ""
        image.thumbnail((_CARD, _CARD), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "WEBP", quality=75)
        return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return ""


def pnginfo(studio: Studio, tabs: Mapping[str, Tab], choose: Any, picture: Any) -> None:
    """What a picture says of how it was made, and its way into the other tabs. `picture` is rendered here."""
    say = studio.say
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column():
            picture.render()
        with gr.Column():
            status = gr.HTML("")
            info = gr.Textbox(label=say("result_info"), lines=8, max_lines=24, interactive=False, buttons=["copy"])
            with gr.Row():
                for name, tab in tabs.items():
                    button = gr.Button(f"{say('send')} {say(name)}", size="sm", elem_id=f"pnginfo-to-{name}")
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
        return "", message(str(error).replace(str(path), Path(path).name), problem=True)
    text = file.texts.get("parameters") or as_infotext(found)
    return "\n\n".join([text, *found.notes]), message(f"{studio.say('made_with')} {found.tool}")


def told_picture(studio: Studio) -> Any:
    """PNG info's picture, to be drawn later: other tabs send pictures to it."""
    image = gr.Image(
        type="filepath", image_mode=None, label=studio.say("a_picture"), sources=["upload", "clipboard"],
        format="png", render=False, elem_id="pnginfo-picture",
    )  # fmt: skip
    return safe(image, studio.engine.rules)


def settings(studio: Studio) -> Callable[..., Any]:
    """Language, theme, the queue, models in memory, and what Danqing is set to."""
    say, engine = studio.say, studio.engine
    with gr.Row():
        language = gr.Radio(
            [("English", "en"), ("中文", "zh")], value=studio.language, label=say("language"), elem_id="dq-language"
        )
        theme = gr.Radio(
            [(say("system"), "system"), (say("light"), "light"), (say("dark"), "dark")],
            label=say("theme"),
            elem_id="dq-theme",
        )
    on(language.input, None, [language], None, js=f"name => window.danqing.language('{COOKIE}', name)")
    on(theme.input, None, [theme], None, js="name => window.danqing.theme(name)")
    with gr.Row():
        pause = gr.Button(say("pause"))
        resume = gr.Button(say("resume"))
        unload = gr.Button(say("unload"))
        refresh = gr.Button(say("refresh"))
    status = gr.HTML("")
    table = gr.HTML("")

    def state() -> tuple[str, str]:
        loaded = ", ".join(engine.models.loaded()) or "–"
        queue = say("paused") if engine.paused else say("ready")
        line = f"{say('queue')}: {queue} · {say('loaded')}: {loaded} ({engine.models.size / 1e6:,.0f} MB)"
        return message(line), _tables(studio)

    def act(what: Callable[[], None]) -> tuple[str, str]:
        what()
        return state()

    outputs = [status, table]
    on(pause.click, lambda: act(engine.pause), None, outputs)
    on(resume.click, lambda: act(engine.resume), None, outputs)
    on(unload.click, lambda: act(engine.models.unload), None, outputs)
    on(refresh.click, state, None, outputs)
    return lambda event: on(event, state, None, outputs)


def _tables(studio: Studio) -> str:
    say, engine = studio.say, studio.engine
    jobs = "".join(
        f"<tr><td>{job.id[:8]}</td><td>{html.escape(job.kind)}</td><td>{say(job.state)}</td>"
        f"<td>{html.escape(job.origin)}</td><td>{job.total}</td></tr>"
        for job in engine.jobs(limit=20)
    )
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td><td>{html.escape(what)}</td></tr>"
        for name, value, what in show(engine.models.settings)
    )
    heads = (say("jobs"), say("kind"), say("state"), say("origin"), say("pictures"))
    return table_of(heads, jobs) + table_of((say("setting"), say("value"), ""), rows)


def words(studio: Studio) -> None:
    """The glossary, with a search."""
    say = studio.say
    part = gr.Textbox(label=say("search"))
    table = gr.HTML(glossary_table("", studio))
    on(part.input, lambda text: glossary_table(text, studio), [part], [table], trigger_mode="always_last")


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
