"""The plots' tab: what stands in text to picture, painted under changed settings or with every subset of its parts."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from danqing.errors import DanqingError
from danqing.pipeline.axes import LABELS
from danqing.requests import TextToImage
from danqing.serve.page_controls import asked
from danqing.serve.page_studio import Studio, Tab, buttons, on, outputs, refused, submitted, wire
from danqing.serve.work import Comparison

AXES = (
    "Prompt S/R",
    "Size",
    "Styles",
    *(label for label, field in LABELS.items() if field in TextToImage.model_fields),
)
WAYS = ("axes", "matrix", "prompts")


def plot(studio: Studio, source: Tab) -> Tab:
    """Draw the tab; `source` is the tab whose request is changed. A plot is one job, whose last picture is its sheet."""
    say = studio.say
    with gr.Row(elem_classes="dq-studio"):
        with gr.Column(elem_classes="dq-say"):
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
    tab = Tab("plot", (), **results)

    def switch(name: str) -> list[Any]:
        return [gr.update(visible=each) for each in (*(name == way for way in WAYS), name != "axes")]

    on(way.change, switch, [way], [*places.values(), counted])

    def submit(name: str, *values: Any) -> tuple[Any, ...]:
        given, (letters, negated, text, each, labels, gap), fields = values[:6], values[6:12], values[12:]
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
        try:
            request = asked(TextToImage, source.controls, fields)
        except DanqingError as error:
            return refused(str(error))
        return submitted(studio, Comparison, {**plotted, "request": request})

    inputs = [way, *axes, vary, negative, lines, counted, legend, margin, *source.components]
    wire(studio, tab, pressed, submit, inputs)
    return tab


def _axis(studio: Studio, letter: str) -> list[Any]:
    say, low = studio.say, letter.lower()
    choices = [(say("no_axis"), ""), *((each, each) for each in AXES)]
    with gr.Row(elem_classes="dq-axis"):
        return [
            gr.Dropdown(choices, value="", label=f"{say('axis')} {letter}", scale=2, elem_id=f"plot-axis-{low}"),
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
