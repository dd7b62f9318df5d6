"""All of the page's tabs together."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from danqing.serve.engine import Engine
from danqing.serve.page_gallery import gallery, picture_of, send
from danqing.serve.page_paint import TABS, Studio, base_url, followed, img2img, on, txt2img, upscale
from danqing.serve.page_plot import followed_plot, plot
from danqing.serve.page_texts import Language
from danqing.serve.page_tools import models, pnginfo, settings, told_picture, words
from danqing.serve.settings import ServeSettings

_FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")


def theme() -> gr.themes.Base:
    """Gradio's own, in the colour of 丹 (cinnabar), with fonts that the reader has."""
    return gr.themes.Soft(
        primary_hue=gr.themes.colors.red,
        neutral_hue=gr.themes.colors.stone,
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def blocks(engine: Engine, served: ServeSettings, language: Language) -> gr.Blocks:
    """The page in a language."""
    studio = Studio(engine, served, language)
    say = studio.say
    page = gr.Blocks(title=say("title"), analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(f'<div class="dq-title"><h1>{say("title")}</h1><span>{say("tagline")}</span></div>')
        with gr.Tabs(selected="txt2img", elem_id="dq-tabs") as choose:
            tabs = {}
            for name, draw in zip(TABS, (txt2img, img2img, upscale)):
                with gr.Tab(say(name), id=name, elem_id=f"tab-{name}"):
                    tabs[name] = draw(studio)
            with gr.Tab(say("plot"), id="plot", elem_id="tab-plot"):
                sheet = plot(studio, tabs["txt2img"])
            told = told_picture(studio)
            with gr.Tab(say("gallery"), id="gallery", elem_id="tab-gallery") as wall:
                hung = gallery(studio, tabs, choose, told)
            with gr.Tab(say("models"), id="models", elem_id="tab-models") as shelf:
                shelved = models(studio, tabs["txt2img"].controls[0].component)
            with gr.Tab(say("pnginfo"), id="pnginfo", elem_id="tab-pnginfo"):
                pnginfo(studio, tabs, choose, told)
            with gr.Tab(say("settings"), id="settings", elem_id="tab-settings") as board:
                state = settings(studio)
            with gr.Tab(say("glossary"), id="glossary", elem_id="tab-glossary"):
                words(studio)
        # a tab looks for what is new whenever it is opened
        hung(wall.select)
        shelved(shelf.select)
        state(board.select)
        for tab in tabs.values():

            def again(identity: str, request: gr.Request) -> tuple[Any, ...]:
                return followed(studio, identity, (), base_url(request, served))

            on(page.load, again, [tab.job], tab.followed)
            for name, button in tab.sends.items():
                send(studio, button.click, tabs[name], [tab.chosen], partial(picture_of, studio), choose, tab.status)
        on(page.load, lambda kept: followed_plot(studio, kept), [sheet.job], [sheet.status, sheet.results, sheet.timer])
    return page
