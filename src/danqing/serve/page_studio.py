"""What the painting tabs have in common: prompts, buttons, results, and how a job is followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr
from pydantic import BaseModel

from danqing.errors import DanqingError
from danqing.prompts.chunks import chunks
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import clip
from danqing.requests import REQUESTS, read
from danqing.serve.engine import Engine
from danqing.serve.page_controls import Control, controls_of, fields_of
from danqing.serve.page_errors import explained
from danqing.serve.page_jobs import look, message, shown_files, welcome
from danqing.serve.page_texts import Language, Say, say_in
from danqing.serve.settings import ServeSettings

TEXTS = ("prompt", "negative_prompt")
TABS = ("txt2img", "img2img", "upscale")
"""Those that paint, by their names."""
_KEY = "page"
"""Of the database's options: ours."""


@dataclass(frozen=True)
class Studio:
    """What every part of the page is made from."""

    engine: Engine
    settings: ServeSettings
    language: Language

    @property
    def say(self) -> Say:
        return say_in(self.language)

    @property
    def examples(self) -> list[str]:
        """Prompts to try: in the reader's language for the bundled model, in English for others, which read no Chinese."""
        say = self.say if self.engine.models.settings.default_model is None else say_in("en")
        return say("examples").split("|")

    def problem(self, error: DanqingError) -> str:
        """What went wrong, as HTML."""
        return message(explained(str(error), self.language), problem=True)

    def options(self) -> dict[str, Any]:
        """What was set on the settings' tab for this page: `previews`, and fields of a request that are filled in."""
        return dict(self.engine.store.options().get(_KEY) or {})

    def set_options(self, values: Mapping[str, Any]) -> None:
        """Keep these in place of what there was."""
        self.engine.store.set_options({_KEY: dict(values)})


@dataclass(frozen=True, eq=False)
class Tab:
    """A tab that paints."""

    name: str
    controls: tuple[Control, ...]
    inputs: tuple[Any, ...]
    """The components whose values `ask` takes."""
    ask: Callable[..., tuple[type[BaseModel], dict[str, Any]]]
    """What is asked for, as a request's class and fields. Raises DanqingError."""
    status: Any
    job: Any
    """Browser's memory of the last job, so that it is found again after a reload."""
    timer: Any
    results: Any
    info: Any
    chosen: Any
    """Id of the result that is looked at."""
    seen: Any
    """Ids of the results that are shown."""
    sends: Mapping[str, Any] = field(default_factory=dict)
    """Buttons that send it to other tabs."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Components of this tab alone."""

    @property
    def components(self) -> list[Any]:
        return [control.component for control in self.controls]

    @property
    def followed(self) -> list[Any]:
        """What `followed` fills."""
        return [self.status, self.results, self.info, self.chosen, self.seen, self.timer]

    def named(self, name: str) -> Any:
        """The control of a field. Raises StopIteration where the tab has none."""
        return next(control.component for control in self.controls if control.path == (name,))


def on(
    event: Callable[..., Any], fn: Callable[..., Any] | None, inputs: Any = None, outputs: Any = None, **more: Any
) -> Any:
    """Bind a handler that answers at once: no queue of Gradio's own, and none but this page calls it."""
    return event(fn, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private", **more)


def handed(value: str) -> str:
    """The word that `page.js` wrote into a hidden box for a button, without the number of the press behind it.

    Such a box is listened to with `trigger_mode="multiple"` and never emptied: a press is not lost for one before it.
    """
    return value.rpartition("#")[0]


def base_url(request: gr.Request, settings: ServeSettings) -> str:
    """What the browser calls this studio; the guard has checked both headers."""
    headers = request.headers
    return headers.get("origin") or f"{settings.scheme}://{headers.get('host', '')}"


def prompts(studio: Studio, name: str, value: str = "") -> list[Control]:
    """Prompt boxes with their counters."""
    every = {each.name: each for each in fields_of(REQUESTS["txt2img"])}
    controls: list[Control] = []
    for each in TEXTS:
        control = controls_of(every[each], studio.language, studio.engine.models.settings)[0]
        box = control.component
        box.elem_id = f"{name}-{each}"
        box.elem_classes = ["dq-prompt"]
        box.placeholder = studio.say(f"hint_{each}")
        box.lines = 3 if each == "prompt" else 2
        box.value = value if each == "prompt" else ""
        counter = gr.HTML(tokens(box.value, studio.say), elem_classes="dq-tokens")
        # also when it is filled by another tab
        on(box.change, lambda text: tokens(text, studio.say), [box], [counter], trigger_mode="always_last")
        controls.append(control)
    return controls


def tokens(text: str, say: Say) -> str:
    """How many tokens a prompt has, and for how many there is room in its chunks, as HTML."""
    text = (text or "")[:20_000]
    try:
        prompt = understand(text, 20)
        longest = [
            chunks(segment.text, clip(), 0, "danqing", "original", {})[0]
            for part in prompt.parts
            for segment in part.segments
        ]
    except DanqingError:
        return ""
    used = max((sum(chunk.used for chunk in made) for made in longest), default=0)
    room = 75 * max((len(made) for made in longest), default=1)
    return f'<span class="dq-count">{used}/{max(room, 75)} {say("tokens")}</span>'


def buttons(studio: Studio, name: str, paint: str = "paint") -> dict[str, Any]:
    """What begins a job, and what ends it while it is painted."""
    say = studio.say
    with gr.Row(elem_classes="dq-actions"):
        made = {
            "paint": gr.Button(
                say(paint), variant="primary", size="lg", elem_id=f"{name}-paint", elem_classes="dq-paint"
            )
        }
        for each in ("interrupt", "skip", "cancel"):
            classes = [f"dq-{each}", "dq-live"]
            made[each] = gr.Button(say(each), min_width=60, elem_id=f"{name}-{each}", elem_classes=classes)
    return made


def outputs(studio: Studio, name: str) -> dict[str, Any]:
    """The components of a Tab from its status on, by their names there."""
    say = studio.say
    tries = studio.examples if name == "txt2img" else ()
    status = gr.HTML(welcome(name, say, tries), elem_id=f"{name}-status", elem_classes="dq-live-status")
    results = gr.Gallery(
        label=say("results"), show_label=False, format="png", columns=1, object_fit="contain", height="auto",
        interactive=False, buttons=["download", "fullscreen"], elem_id=f"{name}-results", elem_classes="dq-results",
    )  # fmt: skip
    with gr.Row(elem_classes="dq-sends"):
        sends = {
            each: gr.Button(
                f"→ {say(each)}", size="sm", min_width=60, elem_id=f"{name}-to-{each}", elem_classes="dq-quiet"
            )
            for each in TABS
            if each != name or each == "img2img"
        }
        more = {
            each: gr.Button(say(each), size="sm", min_width=60, elem_id=f"{name}-{each}", elem_classes="dq-quiet")
            for each in (("keep_seed",) if name in ("txt2img", "img2img") else ())
        }
        more["copy"] = gr.Button(say("copy"), size="sm", min_width=60, elem_id=f"{name}-copy", elem_classes="dq-quiet")
    with gr.Accordion(say("result_info"), open=False, elem_classes="dq-group dq-info"):
        info = gr.Textbox(
            show_label=False, label=say("result_info"), lines=3, max_lines=14, interactive=False, container=False,
            buttons=["copy"], elem_id=f"{name}-info",
        )  # fmt: skip
    return {
        "status": status,
        "job": gr.BrowserState("", storage_key=f"danqing-{name}", secret="danqing"),
        "timer": gr.Timer(0.8, active=False),
        "results": results,
        "info": info,
        "chosen": gr.State(""),
        "seen": gr.State(()),
        "sends": sends,
        "extra": more,
    }


def submitted(studio: Studio, tab: Tab, *values: Any) -> tuple[Any, ...]:
    """(job, status, timer) of what a tab asks for, put into the queue, or of what is wrong with it."""
    try:
        kind, fields = tab.ask(*values)
        job = studio.engine.submit(read(kind, fields), origin="page")
    except DanqingError as error:
        return gr.skip(), studio.problem(error), gr.skip()
    return job.id, look(studio.engine, job.id, studio.language).status, gr.Timer(active=True)


def wire(studio: Studio, tab: Tab, pressed: Mapping[str, Any]) -> None:
    """What the buttons do, and how results come in: also those of a job that was begun before the page was loaded."""
    engine = studio.engine
    on(pressed["paint"].click, partial(submitted, studio, tab), list(tab.inputs), [tab.job, tab.status, tab.timer])
    for name in ("interrupt", "skip", "cancel"):
        on(pressed[name].click, partial(_told, getattr(engine, name)), [tab.job], None)

    def follow(identity: str, seen: Sequence[str], request: gr.Request) -> tuple[Any, ...]:
        return followed(studio, identity, seen, base_url(request, studio.settings))

    def choose(identity: str, event: gr.SelectData) -> tuple[str, str]:
        pictures = look(engine, identity, studio.language, previews=False).pictures
        index = event.index if isinstance(event.index, int) and event.index < len(pictures) else 0
        return (pictures[index].id, pictures[index].infotext) if pictures else ("", "")

    def seed_of(chosen: str) -> Any:
        seed = engine.store.picture(chosen).seed if chosen else None
        return gr.skip() if seed is None else str(seed)

    on(tab.timer.tick, follow, [tab.job, tab.seen], tab.followed)
    on(tab.results.select, choose, [tab.job], [tab.chosen, tab.info])
    if "keep_seed" in tab.extra:
        on(tab.extra["keep_seed"].click, seed_of, [tab.chosen], [tab.named("seed")])


def followed(studio: Studio, identity: str, seen: Sequence[str], base: str) -> tuple[Any, ...]:
    """What a tab shows of a job, in the order of `Tab.followed`; `seen` are the pictures that it shows by now.

    Results are sent when there are new ones, so that one that is looked at stays open; the timer stops with the job.
    """
    if not identity:
        return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=False)
    shown = look(studio.engine, identity, studio.language, previews=studio.options().get("previews", True))
    timer = gr.Timer(active=not shown.over)
    ids = tuple(each.id for each in shown.pictures)
    if not ids or ids == tuple(seen or ()):
        return shown.status, gr.skip(), shown.info, gr.skip(), gr.skip(), timer
    results = gr.Gallery(shown_files(shown.pictures, base), columns=1 if len(ids) == 1 else 2)
    return shown.status, results, shown.info, ids[0], ids, timer


def _told(act: Callable[[str], Any], identity: str) -> None:
    if identity:
        try:
            act(identity)
        except DanqingError:  # it is gone; the next look says so
            return
