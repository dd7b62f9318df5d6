"""The settings' tab: language and theme, what the page fills in, copies of pictures, the queue and the memory."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from danqing.errors import DanqingError
from danqing.library.settings import Settings, set_value, show
from danqing.requests import TextToImage, read
from danqing.serve.a1111_library import entries, stem
from danqing.serve.page_controls import controls_of, fields_of, shown
from danqing.serve.page_gallery import table_of
from danqing.serve.page_jobs import message
from danqing.serve.page_queue import jobs_table, ordered
from danqing.serve.page_studio import Studio, Tab, handed, on
from danqing.serve.page_texts import COOKIE

FILLED = ("width", "height", "steps", "cfg_scale", "sampler_name", "scheduler", "batch_size", "negative_prompt")
"""What may stand in text to picture when the page is opened."""
KEPT = ("default_model", "output_pattern", "output_format", "picture_quality", "picture_lossless", "write_metadata")
"""Of the settings' file: those that a running studio takes, and that name no folder."""


def fill_defaults(studio: Studio, load: Callable[..., Any], tab: Tab) -> None:
    """When the page is opened, what was set for it stands in the tab."""
    controls = [control for control in tab.controls if control.path[0] in FILLED and len(control.path) == 1]

    def fill() -> list[Any]:
        fields = studio.options().get("fields", {})
        values = shown(controls, fields)
        return [value if control.path[0] in fields else gr.skip() for control, value in zip(controls, values)]

    on(load, fill, None, [control.component for control in controls])


def settings(studio: Studio) -> Callable[..., Any]:
    """Draw the tab. Returns what binds its state to the tab's opening."""
    say, engine = studio.say, studio.engine
    with gr.Row(elem_classes="dq-halves"):
        with gr.Column(elem_classes="dq-panel"):
            gr.HTML(f"<h3>{say('appearance')}</h3>")
            language = gr.Radio(
                [("English", "en"), ("中文", "zh")], value=studio.language, label=say("language"), elem_id="dq-language", elem_classes="dq-segments",
            )  # fmt: skip
            theme = gr.Radio(
                [(say("system"), "system"), (say("light"), "light"), (say("dark"), "dark")], label=say("theme"),
                elem_id="dq-theme", elem_classes="dq-segments",
            )  # fmt: skip
            previews = gr.Checkbox(label=say("previews"), container=False, elem_id="settings-previews")
        with gr.Column(elem_classes="dq-panel"):
            gr.HTML(f"<h3>{say('studio')}</h3>")
            line = gr.HTML("", elem_id="settings-state")
            with gr.Row(elem_classes="dq-sends"):
                pressed = {
                    name: gr.Button(
                        say(name), size="sm", min_width=60, elem_id=f"settings-{name}", elem_classes="dq-quiet"
                    )
                    for name in ("pause", "resume", "clear", "unload", "refresh")
                }
    with gr.Row(elem_classes="dq-halves"):
        with gr.Column(elem_classes="dq-panel"):
            gr.HTML(f'<h3>{say("defaults")}</h3><p class="dq-hint">{html.escape(say("defaults_hint"))}</p>')
            filled = _filled(studio)
        with gr.Column(elem_classes="dq-panel"):
            gr.HTML(f'<h3>{say("copies")}</h3><p class="dq-hint">{html.escape(say("copies_hint"))}</p>')
            kept = _kept(studio)
    with gr.Row(elem_classes="dq-savebar"):
        save = gr.Button(say("save"), variant="primary", elem_id="settings-save", min_width=120)
        status = gr.HTML("", elem_id="settings-status")
    with gr.Accordion(say("jobs"), open=True, elem_classes="dq-group"):
        jobs = gr.HTML("", elem_id="settings-jobs")
        order = gr.Textbox(label="", elem_id="settings-order", elem_classes="dq-hidden")  # filled by `page.js`
    with gr.Accordion(say("every_setting"), open=False, elem_classes="dq-group"):
        every = gr.HTML("")

    on(language.input, None, [language], None, js=f"name => window.danqing.language('{COOKIE}', name)")
    on(theme.input, None, [theme], None, js="name => window.danqing.theme(name)")

    boxes = [control.component for control in filled]

    def summary() -> str:
        loaded = ", ".join(engine.models.loaded()) or "–"
        queue = say("paused") if engine.paused else f"{engine.store.waiting()} {say('waiting')}"
        return message(f"{say('queue')}: {queue} · {say('loaded')}: {loaded} ({engine.models.size / 1e6:,.0f} MB)")

    def state() -> tuple[Any, ...]:
        options, current = studio.options(), engine.models.settings
        values: list[Any] = [_shown(current, name) for name in KEPT]
        values[0] = gr.update(value=values[0], choices=_models(studio))
        fields = shown(filled, options.get("fields", {}))
        return summary(), jobs_table(studio), _every(studio), options.get("previews", True), *fields, *values

    outputs = [line, jobs, every, previews, *boxes, *kept]

    def act(what: Callable[[], None]) -> Callable[[], tuple[Any, ...]]:
        def acted() -> tuple[Any, ...]:
            what()
            return state()

        return acted

    def clear() -> None:
        for job in engine.jobs(("queued",), limit=100_000):
            engine.cancel(job.id)

    acts = {"pause": engine.pause, "resume": engine.resume, "clear": clear, "unload": engine.models.unload}
    for name, what in acts.items():
        on(pressed[name].click, act(what), None, outputs)
    on(pressed["refresh"].click, state, None, outputs)

    def obey(what: str) -> tuple[str, str]:
        """The queue alone: what was typed on this tab stays."""
        problem = ordered(studio, handed(what))
        return summary(), problem + jobs_table(studio)

    on(order.change, obey, [order], [line, jobs], trigger_mode="multiple")

    def keep(seen: bool, *values: Any) -> str:
        fields = {
            control.path[0]: value
            for control, value in zip(filled, values)
            if value not in (None, "") and value != control.default
        }
        try:
            made = read(TextToImage, fields)
            for name, value in zip(KEPT, values[len(filled) :]):
                _set(studio, name, value)
        except DanqingError as error:
            return studio.problem(error)
        studio.set_options({"previews": bool(seen), "fields": made.model_dump(mode="json", exclude_unset=True)})
        return message(say("kept"))

    on(save.click, keep, [previews, *boxes, *kept], [status])

    def bind(event: Callable[..., Any]) -> None:
        on(event, state, None, outputs)
        on(event, None, None, [theme], js="() => window.danqing.chosen()")

    return bind


def _filled(studio: Studio) -> list[Any]:
    fields = {each.name: each for each in fields_of(TextToImage)}
    made = []
    with gr.Row(elem_classes="dq-controls"):
        for name in FILLED:
            control = controls_of(fields[name], studio.language, studio.engine.models.settings)[0]
            control.component.elem_id = f"settings-{name}"
            made.append(control)
    return made


def _kept(studio: Studio) -> list[Any]:
    """The controls of `KEPT`, in its order."""
    say = studio.say
    formats = ["png", "jpg", "webp", "avif", "jxl"]
    with gr.Row(elem_classes="dq-controls"):
        return [
            gr.Dropdown(_models(studio), label=say("default_model"), value="", allow_custom_value=True,
                        elem_id="settings-default_model"),
            gr.Textbox(label=say("output_pattern"), max_lines=1, info=say("pattern_hint"),
                       elem_id="settings-output_pattern"),
            gr.Dropdown(formats, label=say("output_format"), value="png", elem_id="settings-output_format"),
            gr.Slider(1, 100, step=1, label=say("picture_quality"), info=say("quality_hint"), elem_id="settings-picture_quality"),
            gr.Checkbox(label=say("picture_lossless"), elem_id="settings-picture_lossless"),
            gr.Checkbox(label=say("write_metadata"), elem_id="settings-write_metadata"),
        ]  # fmt: skip


def _models(studio: Studio) -> list[tuple[str, str]]:
    """The checkpoints that there are, and none, as choices."""
    names = [stem(each) for each in entries(studio.engine.models.settings, "checkpoint")]
    return [(studio.say("auto"), ""), *((name, name) for name in names)]


def _shown(current: Settings, name: str) -> Any:
    value = getattr(current, name)
    return "" if value is None else value


def _set(studio: Studio, name: str, value: Any) -> None:
    """Keep one of `KEPT` in the settings' file and in the running studio. Raises DanqingError for a wrong value."""
    models = studio.engine.models
    if value in (None, "") and name != "default_model":
        value = Settings.model_fields[name].default
    if value == _shown(models.settings, name):
        return
    if name == "default_model":
        models.check(value or None)
    if name == "output_pattern":
        from danqing.pipeline.naming import check_pattern

        check_pattern(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    changed = set_value(models.settings.path, name, text)
    models.settings = models.settings.model_copy(update={name: getattr(changed, name)})


def _every(studio: Studio) -> str:
    say = studio.say
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td><td>{html.escape(what)}</td></tr>"
        for name, value, what in show(studio.engine.models.settings)
    )
    return table_of((say("setting"), say("value"), ""), rows)
