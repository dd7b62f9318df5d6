"""All of the page's tabs together."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from danqing.serve.engine import Engine
from danqing.serve.page_controls import Control, renewed
from danqing.serve.page_gallery import gallery, keep_copy, picture_of, send
from danqing.serve.page_paint import img2img, txt2img, upscale
from danqing.serve.page_plot import plot
from danqing.serve.page_settings import fill_defaults, settings
from danqing.serve.page_studio import TABS, Studio, base_url, followed, on
from danqing.serve.page_texts import Language
from danqing.serve.page_tips import explain
from danqing.serve.page_tools import models, pnginfo, told_picture, words
from danqing.serve.settings import ServeSettings
from danqing.serve.store import NotFound

_FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")


def theme() -> gr.themes.Base:
    """Cinnabar (丹) for what acts, azurite (青) for what is looked at, paper and ink around; fonts that the reader has."""
    cinnabar = gr.themes.Color(
        "#fdf3f1", "#fbe3de", "#f5c6bd", "#eda093", "#df7262", "#c9402f", "#b43527", "#952a1f", "#75231b", "#571b16", "#33100d",
        name="cinnabar",
    )  # fmt: skip
    paper = gr.themes.Color(
        "#faf9f7", "#f3f1ed", "#e7e3dc", "#d3cdc3", "#a39b8f", "#786f64", "#5b544b", "#433d36", "#2a2622", "#1d1a17", "#141210",
        name="paper",
    )  # fmt: skip
    made = gr.themes.Base(
        primary_hue=cinnabar,
        secondary_hue=cinnabar,
        neutral_hue=paper,
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
        radius_size=gr.themes.sizes.radius_lg,
    )
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_color_dark="*body_text_color_subdued",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_300",
        block_title_text_size="13px",
        block_title_text_weight="500",
        block_info_text_size="12px",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_background_fill_focus="white",
        input_background_fill_focus_dark="*neutral_950",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="#2f7c94",
        input_border_color_focus_dark="#5fb0c6",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px rgb(47 124 148 / 16%)",
        input_shadow_focus_dark="0 0 0 3px rgb(95 176 198 / 22%)",
        input_padding="8px 11px",
        input_text_size="14px",
        button_border_width="1px",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_200",
        button_secondary_border_color_dark="*neutral_700",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
    )


def blocks(engine: Engine, served: ServeSettings, language: Language) -> gr.Blocks:
    """The page in a language."""
    studio = Studio(engine, served, language)
    say = studio.say
    page = gr.Blocks(title=say("title"), analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(_header(studio), elem_id="dq-header")
        with gr.Tabs(selected="txt2img", elem_id="dq-tabs") as choose:
            tabs = {}
            for name, draw in zip(TABS, (txt2img, img2img, upscale)):
                with gr.Tab(say(name), id=name, elem_id=f"tab-{name}"):
                    tabs[name] = draw(studio)
            with gr.Tab(say("plot"), id="plot", elem_id="tab-plot"):
                tabs["plot"] = plot(studio, tabs)
            told = told_picture(studio)
            with gr.Tab(say("gallery"), id="gallery", elem_id="tab-gallery") as wall:
                hung = gallery(studio, tabs, choose, told)
            with gr.Tab(say("models"), id="models", elem_id="tab-models") as shelf:
                shelved = models(studio, tabs["txt2img"], choose)
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

        def again(identity: str, request: gr.Request) -> tuple[Any, ...]:
            """The last job of this browser; one of another data folder is nothing to speak of."""
            try:
                engine.job(identity or "")
            except NotFound:
                identity = ""
            return followed(studio, identity, (), base_url(request, served))

        for tab in tabs.values():
            on(page.load, again, [tab.job], tab.followed)
            for name, button in tab.sends.items():
                send(studio, button.click, tabs[name], [tab.chosen], partial(picture_of, studio), choose, tab.status)
            on(tab.extra["copy"].click, partial(keep_copy, studio), [tab.chosen], [tab.status])
            listed = [control for control in tab.controls if control.listed]
            if listed and tab.name != "plot":  # a model that came since the start can be chosen, too
                boxes = [control.component for control in listed]
                on(page.load, partial(_listed, studio, listed), None, boxes)
        fill_defaults(studio, page.load, tabs["txt2img"])
        gr.HTML(explain(page.blocks.values(), [each for tab in tabs.values() for each in tab.controls], language))
    return page


def _listed(studio: Studio, controls: Sequence[Control]) -> list[Any]:
    return renewed(controls, studio.language, studio.engine.models.settings)


def _header(studio: Studio) -> str:
    """Name, and the switches of language and theme, which `page.js` hears."""
    say = studio.say
    other, name = ("en", "English") if studio.language == "zh" else ("zh", "中文")
    return (
        '<header class="dq-header"><span class="dq-seal" aria-hidden="true">丹青</span>'
        f"<h1>{html.escape(say('title'))}</h1><span class='dq-tagline'>{html.escape(say('tagline'))}</span>"
        f"<span class='dq-keys'>{html.escape(say('keys'))}</span>"
        f'<button type="button" class="dq-switch" lang="{other}" data-dq-language="{other}">{name}</button>'
        f'<button type="button" class="dq-switch" data-dq-theme title="{html.escape(say("theme"))}" '
        f'aria-label="{html.escape(say("theme"))}">◐</button></header>'
    )
