"""The X/Y/Z plot's tab: what stands in text to picture, painted under changed settings; each cell is a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from danqing.errors import DanqingError
from danqing.pipeline.axes import LABELS
from danqing.pipeline.expand import fix_seeds
from danqing.pipeline.plot import Place, Plot, xyz
from danqing.pipeline.plot import sheet as sheet_of
from danqing.prompts.values import split_csv
from danqing.requests import TextToImage, read
from danqing.serve.accept import FILES, check_name, model_roots
from danqing.serve.page_controls import asked
from danqing.serve.page_jobs import message
from danqing.serve.page_paint import Studio, Tab, on
from danqing.serve.store import NotFound

AXES = (
    "Prompt S/R",
    "Size",
    "Styles",
    *(label for label, field in LABELS.items() if field in TextToImage.model_fields),
)
MOST = 400
"""Cells of one plot."""


def plot(studio: Studio, source: Tab) -> Tab:
    """Draw the tab; `source` is the tab whose request is changed."""
    say = studio.say
    gr.Markdown(say("plot_hint"))
    axes: list[Any] = []
    for letter in "XYZ":
        with gr.Row():
            axes.append(gr.Dropdown(["", *AXES], value="", label=f"{say('axis')} {letter}", scale=1))
            axes.append(gr.Textbox(label=f"{say('values')} {letter}", scale=3, elem_id=f"plot-values-{letter.lower()}"))
    vary = gr.CheckboxGroup(["x", "y", "z"], label=say("vary_seeds"))
    with gr.Row():
        paint = gr.Button(say("paint"), variant="primary", elem_id="plot-paint", elem_classes="dq-paint")
        cancel = gr.Button(say("cancel"), elem_classes="dq-interrupt")
    status = gr.HTML(message(say("ready")), elem_id="plot-status")
    image = gr.Image(label=say("sheet"), type="pil", format="png", interactive=False, elem_id="plot-sheet")
    memory = gr.BrowserState({}, storage_key="danqing-plot", secret="danqing")
    timer = gr.Timer(1.5, active=False)
    tab = Tab("plot", (), status, memory, timer, image, None, None, None)

    def submit(*values: Any) -> tuple[Any, ...]:
        given, letters, fields = values[:6], values[6], values[7:]
        specs = [f"{title}={text}" if title else "" for title, text in zip(given[::2], given[1::2])]
        try:
            request = asked(TextToImage, source.controls, fields)
            kept = {"request": request, "axes": specs, "vary": "".join(letters or ())}
            made = planned(studio, kept)
            kept["request"] = fix_seeds(read(TextToImage, request)).model_dump(mode="json", exclude_unset=True)
            made = planned(studio, kept)
            return {**kept, "jobs": submitted(studio, made)}, message(say("queued")), gr.Timer(active=True)
        except DanqingError as error:
            return gr.skip(), message(str(error), problem=True), gr.skip()

    on(paint.click, submit, [*axes, vary, *source.components], [memory, status, timer])

    def stop(kept: Mapping[str, Any]) -> None:
        for each in (kept or {}).get("jobs", ()):
            try:
                studio.engine.cancel(each)
            except NotFound:
                continue

    on(cancel.click, stop, [memory], None)
    on(timer.tick, lambda kept: followed_plot(studio, kept), [memory], [status, image, timer])
    return tab


def planned(studio: Studio, kept: Mapping[str, Any]) -> Plot:
    """The plot that was asked for; the same each time, for its seeds are drawn. Raises DanqingError."""
    library = studio.engine.models.settings
    roots = model_roots(library)
    for spec in kept["axes"]:
        title, _, text = spec.partition("=")
        if LABELS.get(title, title) in FILES:
            for name in split_csv(text):
                check_name(name, title, roots)
    if not any(kept["axes"]):
        raise DanqingError("plot: choose an axis")
    made = xyz(read(TextToImage, kept["request"]), *kept["axes"], vary_seeds=kept["vary"], settings=library)
    if made.count > MOST:
        raise DanqingError(f"plot: it would have {made.count} pictures, more than {MOST}")
    return made


def submitted(studio: Studio, made: Plot) -> list[str]:
    """The ids of a job for each request of the plot, in its order. Where one is refused, none of them stays."""
    jobs: list[str] = []
    try:
        for cell in made.cells:
            for request in cell.requests:
                jobs.append(studio.engine.submit(request, origin="page").id)
    except DanqingError:
        for each in jobs:
            studio.engine.cancel(each)
        raise
    return jobs


def followed_plot(studio: Studio, kept: Mapping[str, Any]) -> tuple[Any, ...]:
    """(status, picture, timer) of a plot: the grid comes when its last job is over."""
    say, engine = studio.say, studio.engine
    if not kept or not kept.get("jobs"):
        return message(say("ready")), gr.skip(), gr.Timer(active=False)
    try:
        jobs = [engine.job(each) for each in kept["jobs"]]
        over = sum(job.over for job in jobs)
        if over < len(jobs):
            return message(f"{over}/{len(jobs)} {say('cells')}"), gr.skip(), gr.Timer(active=True)
        image = drawn(studio, planned(studio, kept), kept["jobs"])
    except DanqingError as error:
        return message(str(error), problem=True), gr.skip(), gr.Timer(active=False)
    problems = [job.error for job in jobs if job.error]
    return message(problems[0] if problems else say("done"), problem=bool(problems)), image, gr.Timer(active=False)


def drawn(studio: Studio, made: Plot, jobs: Sequence[str]) -> Image.Image:
    """The labelled grid of what the jobs painted. Raises DanqingError where that is nothing."""
    owners = [cell.place for cell in made.cells for _ in cell.requests]
    found: dict[Place, list[Image.Image]] = {}
    for place, job in zip(owners, jobs):
        for picture in studio.engine.pictures(job):
            with Image.open(studio.engine.path(picture)) as image:
                found.setdefault(place, []).append(image.convert("RGB"))
    return sheet_of(made, found, note=lambda line: None)
