"""The plots' tab: what stands in text to picture or in picture to picture, painted under changed settings or with every subset of its parts."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from danqing.pipeline.axes import LABELS
from danqing.requests import REQUESTS, ImageToImage, Inpaint, Outpaint, Painting, TextToImage
from danqing.serve.page_studio import Studio, Tab, buttons, on, outputs, wire
from danqing.serve.work import Comparison

SOURCES: Mapping[str, tuple[type[Painting], ...]] = {
    "txt2img": (TextToImage,),
    "img2img": (ImageToImage, Inpaint, Outpaint),
}
"""Tabs whose request can be plotted, and what they ask for."""
WAYS = ("axes", "matrix", "prompts")


def plot(studio: Studio, tabs: Mapping[str, Tab]) -> Tab:
    """Draw the tab; of `tabs` those of `SOURCES` are plotted. A plot is one job, whose last picture is its sheet.

    What is sent to it goes into text to picture.
    """
    say = studio.say
    with gr.Row(elem_classes="dq-studio"):
        with gr.Column(elem_classes="dq-say"):
            source = gr.Radio(
                [(say(each), each) for each in SOURCES],
                value="txt2img",
                label=say("plot_source"),
                elem_id="plot-source",
                elem_classes="dq-segments",
            )
            way = gr.Radio(
                [(say(f"plot_{each}"), each) for each in WAYS],
                value="axes",
                label=say("plot"),
                show_label=False,
                container=False,
                elem_id="plot-way",
                elem_classes="dq-segments",
            )
            places = {}
            with gr.Column(elem_classes="dq-panel") as places["axes"]:
                gr.HTML(_hint(studio, "plot_hint"))
                axes = [each for letter in "XYZ" for each in _axis(studio, letter)]
                vary = gr.CheckboxGroup(
                    ["x", "y", "z"], label=say("vary_seeds"), info=say("vary_seeds_hint"), elem_id="plot-vary"
                )
            with gr.Column(elem_classes="dq-panel", visible=False) as places["matrix"]:
                gr.HTML(_hint(studio, "matrix_hint"))
                negative = gr.Checkbox(
                    label=say("matrix_negative"), info=say("matrix_negative_hint"), elem_id="plot-negative"
                )
            with gr.Column(elem_classes="dq-panel", visible=False) as places["prompts"]:
                lines = gr.Textbox(label=say("plot_prompts"), info=say("prompts_hint"), lines=6, elem_id="plot-prompts")
            with gr.Column(elem_classes="dq-panel"), gr.Row(elem_classes="dq-controls"):
                counted = gr.Checkbox(
                    label=say("seed_each"), info=say("seed_each_hint"), visible=False, elem_id="plot-iterate"
                )
                legend = gr.Checkbox(label=say("legend"), info=say("legend_hint"), value=True, elem_id="plot-legend")
                margin = gr.Slider(
                    0, 100, value=0, step=1, label=say("margin"), info=say("margin_hint"), elem_id="plot-margin"
                )
        with gr.Column(elem_classes="dq-out"):
            pressed = buttons(studio, "plot")
            results = outputs(studio, "plot")
    on(source.change, lambda name: [gr.update(choices=_choices(studio, name)) for _ in "XYZ"], [source], axes[::2])

    def switch(name: str) -> list[Any]:
        return [gr.update(visible=each) for each in (*(name == way for way in WAYS), name != "axes")]

    on(way.change, switch, [way], [*places.values(), counted])

    def ask(chosen: str, name: str, *values: Any) -> tuple[type[Comparison], dict[str, Any]]:
        given, (letters, negated, text, each, labels, gap), rest = values[:6], values[6:12], values[12:]
        plotted: dict[str, Any] = {"legend": bool(labels), "margin": int(gap or 0)}
        if name == "axes":
            plotted |= {
                letter: f"{title}={text}" for letter, title, text in zip("xyz", given[::2], given[1::2]) if title
            }
            plotted["vary_seeds"] = "".join(letters or ())
        elif name == "matrix":
            plotted["matrix"] = "negative_prompt" if negated else "prompt"
        else:
            plotted["prompts"] = [line for line in (text or "").splitlines() if line.strip()]
        if name != "axes" and each:
            plotted["iterate_seeds"] = True
        count = len(tabs["txt2img"].inputs)
        kind, request = tabs[chosen].ask(*(rest[:count] if chosen == "txt2img" else rest[count:]))
        plotted["kind"] = next(each for each, made in REQUESTS.items() if made is kind)
        return Comparison, {**plotted, "request": request}

    own = (source, way, *axes, vary, negative, lines, counted, legend, margin)
    results["extra"] |= {"source": source}
    inputs = (*own, *tabs["txt2img"].inputs, *tabs["img2img"].inputs)
    tab = Tab("plot", tabs["txt2img"].controls, inputs, ask, **results)
    wire(studio, tab, pressed)
    return tab


def _choices(studio: Studio, source: str) -> list[tuple[str, str]]:
    """The axes of what a tab asks for."""
    fields = {field for kind in SOURCES[source] for field in kind.model_fields}
    titles = ("Prompt S/R", "Size", "Styles", *(title for title, field in LABELS.items() if field in fields))
    return [(studio.say("no_axis"), ""), *((each, each) for each in titles)]


def _axis(studio: Studio, letter: str) -> list[Any]:
    say, low = studio.say, letter.lower()
    with gr.Row(elem_classes="dq-axis"):
        return [
            gr.Dropdown(
                _choices(studio, "txt2img"),
                value="",
                label=f"{say('axis')} {letter}",
                scale=2,
                elem_id=f"plot-axis-{low}",
            ),
            gr.Textbox(
                label=f"{say('values')} {letter}",
                placeholder=say("values_hint"),
                scale=3,
                max_lines=1,
                elem_id=f"plot-values-{low}",
            ),
        ]


def _hint(studio: Studio, key: str) -> str:
    return f'<p class="dq-hint">{html.escape(studio.say(key))}</p>'
