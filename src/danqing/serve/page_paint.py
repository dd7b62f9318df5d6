"""The tabs that paint: text to picture, picture to picture, upscale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image, ImageChops
from pydantic import BaseModel

from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.errors import DanqingError
from danqing.library.folders import BUNDLED
from danqing.prompts.chunks import chunks
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import clip
from danqing.requests import REQUESTS, ImageToImage, Inpaint, Outpaint, Painting, TextToImage, read
from danqing.serve.engine import Engine
from danqing.serve.page_controls import Control, Field, asked, controls_of, fields_of, safe
from danqing.serve.page_jobs import look, message, shown_files
from danqing.serve.page_texts import Language, Say, say_in
from danqing.serve.settings import ServeSettings
from danqing.serve.work import Enlarge

TEXTS = ("prompt", "negative_prompt")
TABS = ("txt2img", "img2img", "upscale")
"""Those that paint, by their names."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    # where each field stands; what is named nowhere is under `more`
    "main": ("model", "steps", "cfg_scale", "width", "height", "sampler_name", "scheduler", "seed", "batch_size",
             "n_iter", "styles"),
    "picture": ("image", "denoising_strength", "resize_mode", "color_correction", "image_cfg_scale", "loops",
                "final_denoising_strength", "denoising_curve", "exact_steps", "initial_noise_multiplier", "extra_noise",
                "background_color", "inversion", "inversion_prompt", "subimage", "subimage_strength", "sd_upscale"),
    "mask": ("mask_blur", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert",
             "mask", "mask_text", "mask_model", "mask_threshold", "mask_blur_x", "mask_blur_y",
             "inpainting_mask_weight", "mask_round", "soft_inpainting"),
    "outpaint": ("left", "right", "up", "down"),
    "upscale": ("upscaler", "scale", "width", "height", "crop", "upscaler_2", "upscaler_2_visibility", "tile",
                "ldsr_steps"),
    "faces": ("face_restorer", "face_visibility", "fidelity", "face_detector", "faces_first"),
    "hires": ("enable_hr", "hr_scale", "hr_upscaler", "denoising_strength", "hr_second_pass_steps", "hr_resize_x",
              "hr_resize_y", "hr_sampler_name", "hr_scheduler", "hr_cfg", "hr_prompt", "hr_negative_prompt",
              "hr_checkpoint_name"),
    "seeds": ("subseed", "subseed_strength", "subprompt", "subprompt_strength", "seed_resize_from_w",
              "seed_resize_from_h", "eta_noise_seed_delta", "noise_source", "tiling"),
    "reading": ("dynamic", "clip_skip", "emphasis", "dialect", "vae", "fast"),
    "lora": ("lora_mode", "lora_switch_every", "lora_regions", "regions"),
    "guidance": ("guidance_rescale", "guidance_start", "guidance_end", "s_min_uncond", "dynamic_thresholding", "pag",
                 "sag", "freeu"),
    "details": ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "sigma_min", "sigma_max", "rho",
                "discard_penultimate"),
    "refiner": ("refiner_checkpoint", "refiner_switch_at"),
    "speed": ("tiled_diffusion", "token_merging", "hypertile"),
    "sdxl": ("original_width", "original_height", "crop_left", "crop_top", "target_width", "target_height",
             "aesthetic_score", "negative_aesthetic_score"),
}  # fmt: skip
_OPEN = frozenset({"main", "picture", "mask", "outpaint", "upscale"})
MODES: Mapping[str, type[ImageToImage]] = {
    "img2img": ImageToImage,
    "sketch": ImageToImage,
    "inpaint": Inpaint,
    "outpaint": Outpaint,
}
_BRUSH_SIZE = 40


@dataclass(frozen=True)
class Studio:
    """What every part of the page is made from."""

    engine: Engine
    settings: ServeSettings
    language: Language

    @property
    def say(self) -> Say:
        return say_in(self.language)


@dataclass(frozen=True, eq=False)
class Tab:
    """A tab that paints."""

    name: str
    controls: tuple[Control, ...]
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


def base_url(request: gr.Request, settings: ServeSettings) -> str:
    """What the browser calls this studio; the guard has checked both headers."""
    headers = request.headers
    return headers.get("origin") or f"{settings.scheme}://{headers.get('host', '')}"


def txt2img(studio: Studio) -> Tab:
    """Text to picture: it stands ready, so that one click paints."""
    controls, buttons = _prompts(studio, "txt2img")
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column(scale=5, min_width=320):
            controls += grouped(studio, [TextToImage], ("main", "hires"))
        with gr.Column(scale=4, min_width=320):
            outputs = _outputs(studio, "txt2img")
    tab = Tab("txt2img", tuple(controls), **outputs)

    def submit(*values: Any) -> tuple[Any, ...]:
        return _submitted(studio, TextToImage, asked(TextToImage, controls, values))

    _wire(studio, tab, buttons, submit, tab.components)
    return tab


def img2img(studio: Studio) -> Tab:
    """Picture to picture: paint over, sketch, inpaint with a brush, outpaint."""
    say, rules = studio.say, studio.engine.rules
    controls, buttons = _prompts(studio, "img2img")
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column(scale=5, min_width=320):
            choices = [(say(f"mode_{mode}"), mode) for mode in MODES]
            mode = gr.Radio(choices, value="img2img", label=say("mode"), elem_id="img2img-mode")
            brush = gr.Brush(default_size=_BRUSH_SIZE, colors=["#ffffff"], color_mode="fixed")
            canvas = {
                "inpaint": _canvas(say("brush"), rules, brush),
                "sketch": _canvas(say("sketch"), rules, gr.Brush(default_size=_BRUSH_SIZE // 2)),
            }
            made, groups = _grouped(studio, [ImageToImage, Inpaint, Outpaint], ("picture", "mask", "outpaint", "main"))
            controls += made
        with gr.Column(scale=4, min_width=320):
            outputs = _outputs(studio, "img2img")
    image = next(control.component for control in controls if control.path == ("image",))
    tab = Tab("img2img", tuple(controls), **outputs, extra={"mode": mode, "image": image, **canvas})

    def switch(name: str) -> list[Any]:
        kind = MODES[name]
        changed = []
        for control in controls:
            field = control.path[0]
            if control.path == ("image",):
                changed.append(gr.update(visible=name in ("img2img", "outpaint")))
            elif control.path == (field,) and field in _DIFFERENT and field in kind.model_fields:
                changed.append(gr.update(value=kind.model_fields[field].default))
            else:
                changed.append(gr.skip())
        return [
            gr.update(visible=name == "inpaint"),
            gr.update(visible=name == "sketch"),
            gr.update(visible=name in ("inpaint", "outpaint")),
            gr.update(visible=name == "outpaint"),
            *changed,
        ]

    named = {control.path: control.component for control in controls}
    sizes = [named["model",], named["width",], named["height",]]
    for component in (image, canvas["inpaint"]):
        on(component.upload, partial(_sized, studio), [component, sizes[0]], sizes[1:])

    places = [canvas["inpaint"], canvas["sketch"], groups["mask"], groups["outpaint"], *tab.components]
    on(mode.change, switch, [mode], places)

    def submit(name: str, painted: Any, drawn: Any, *values: Any) -> tuple[Any, ...]:
        kind = MODES[name]
        fields = asked(kind, controls, values)
        if name == "sketch" and drawn is not None:
            fields["image"] = drawn["composite"]
            if "width" not in fields and "height" not in fields:
                fields |= dict(
                    zip(("width", "height"), fitted(drawn["composite"].size, native(studio, fields.get("model"))))
                )
        if name == "inpaint" and painted is not None and painted["background"] is not None:
            fields["image"] = painted["background"]
            mask = stroke(painted["layers"])
            if mask is not None:
                fields["mask"] = mask.resize(painted["background"].size)
            elif "mask" not in fields and "mask_text" not in fields:
                return _refused(say("no_mask"))
        if fields.get("image") is None:
            return _refused(say("no_picture"))
        return _submitted(studio, kind, fields)

    _wire(studio, tab, buttons, submit, [mode, canvas["inpaint"], canvas["sketch"], *tab.components])
    return tab


_DIFFERENT = frozenset(
    name
    for name, info in Outpaint.model_fields.items()
    if name in Inpaint.model_fields and info.default != Inpaint.model_fields[name].default
)
"""Fields whose defaults depend on what is done."""


def upscale(studio: Studio) -> Tab:
    """Pictures made larger, faces restored."""
    controls: list[Control] = []
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column(scale=5, min_width=320):
            buttons = _buttons(studio, "upscale")
            pictures = next(each for each in fields_of(Enlarge) if each.name == "images")
            controls += controls_of(pictures, studio.language, studio.engine.models.settings, studio.engine.rules)
            controls += grouped(studio, [Enlarge], ("upscale", "faces"), {"images"})
        with gr.Column(scale=4, min_width=320):
            outputs = _outputs(studio, "upscale")
    tab = Tab("upscale", tuple(controls), **outputs, extra={"images": controls[0].component})

    def submit(*values: Any) -> tuple[Any, ...]:
        fields = asked(Enlarge, controls, values)
        return _submitted(studio, Enlarge, fields) if "images" in fields else _refused(studio.say("no_picture"))

    _wire(studio, tab, buttons, submit, tab.components)
    return tab


def on(
    event: Callable[..., Any], fn: Callable[..., Any] | None, inputs: Any = None, outputs: Any = None, **more: Any
) -> Any:
    """Bind a handler that answers at once: no queue of Gradio's own, and none but this page calls it."""
    return event(fn, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private", **more)


def grouped(
    studio: Studio, kinds: Sequence[type[BaseModel]], first: Sequence[str], skip: set[str] | None = None
) -> list[Control]:
    """The controls of all fields of `kinds`, in their groups, `first` before the others."""
    return _grouped(studio, kinds, first, skip)[0]


def _grouped(
    studio: Studio, kinds: Sequence[type[BaseModel]], first: Sequence[str], skip: set[str] | None = None
) -> tuple[list[Control], dict[str, Any]]:
    every: dict[str, Field] = {}
    for each in (each for kind in kinds for each in fields_of(kind)):
        every.setdefault(each.name, each)  # defaults are those of the first kind, which is chosen at first
    for name in {*TEXTS, *(skip or ())}:
        every.pop(name, None)
    controls: list[Control] = []
    places: dict[str, Any] = {}
    for group in [*first, *(group for group in GROUPS if group not in first)]:
        names = [name for name in GROUPS[group] if name in every]
        if names and (group in first or all(issubclass(kind, Painting) for kind in kinds)):
            controls += _group(studio, group, [every.pop(name) for name in names], places)
    if every:
        controls += _group(studio, "more", list(every.values()), places)
    return controls, places


def _group(studio: Studio, group: str, fields: Sequence[Field], places: dict[str, Any]) -> list[Control]:
    controls: list[Control] = []
    library, rules = studio.engine.models.settings, studio.engine.rules
    visible = group not in ("mask", "outpaint")
    places[group] = gr.Accordion(studio.say(f"group_{group}"), open=group in _OPEN, visible=visible)
    with places[group], gr.Row(elem_classes="dq-controls"):
        for each in fields:
            controls += controls_of(each, studio.language, library, rules)
    return controls


def _prompts(studio: Studio, name: str) -> tuple[list[Control], dict[str, Any]]:
    """Prompt boxes with their counters, and the buttons beside them."""
    every = {each.name: each for each in fields_of(REQUESTS["txt2img"])}
    controls: list[Control] = []
    with gr.Row(elem_classes="dq-columns"):
        with gr.Column(scale=5, min_width=320):
            for each in TEXTS:
                control = controls_of(every[each], studio.language, studio.engine.models.settings, studio.engine.rules)[
                    0
                ]
                control.component.elem_id = f"{name}-{each}"
                control.component.elem_classes = ["dq-prompt"]
                counter = gr.HTML(tokens("", studio.say), elem_classes="dq-tokens")
                on(
                    control.component.input,
                    lambda text: tokens(text, studio.say),
                    [control.component],
                    [counter],
                    trigger_mode="always_last",
                )
                controls.append(control)
        with gr.Column(scale=1, min_width=160):
            buttons = _buttons(studio, name)
    controls[0].component.value = studio.say("example") if name == "txt2img" else ""
    return controls, buttons


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


def stroke(layers: Sequence[Image.Image]) -> Image.Image | None:
    """White where any layer was painted on, or None where nothing was."""
    mask: Image.Image | None = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value else 0)
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha)
    return mask if mask is not None and mask.getbbox() is not None else None


def native(studio: Studio, model: str | None) -> tuple[int, int]:
    """The size that a model paints by itself. Raises DanqingError where there is no such model."""
    entry = studio.engine.models.check(model or None) or BUNDLED
    defaults = open_checkpoint(entry.path).family.defaults
    return defaults.width, defaults.height


def fitted(size: tuple[int, int], own: tuple[int, int]) -> tuple[int | None, int | None]:
    """The size at which a picture is painted over: a model's own area in the picture's shape, or unset if it is smaller."""
    scale = math.sqrt(own[0] * own[1] / (size[0] * size[1]))
    if scale >= 1:
        return None, None
    width, height = (max(64, round(side * scale / 8) * 8) for side in size)
    return width, height


def _sized(studio: Studio, picture: Any, model: str | None) -> tuple[int | None, int | None]:
    """A photograph has more pixels than most models paint well, or a machine soon: what it is painted at is shown."""
    background = picture["background"] if isinstance(picture, dict) else picture
    if background is None:
        return None, None
    try:
        own = native(studio, model)
    except DanqingError:
        return None, None
    if isinstance(background, Image.Image):
        return fitted(background.size, own)
    with Image.open(background) as image:
        return fitted(image.size, own)


def _canvas(label: str, rules: Any, brush: gr.Brush) -> Any:
    editor = gr.ImageEditor(
        label=label, type="pil", image_mode="RGBA", format="png", sources=["upload", "clipboard"], brush=brush,
        transforms=(), visible=False, height=480,
    )  # fmt: skip
    return safe(editor, rules)


def _buttons(studio: Studio, name: str) -> dict[str, Any]:
    say = studio.say
    paint = gr.Button(say("paint"), variant="primary", size="lg", elem_id=f"{name}-paint", elem_classes="dq-paint")
    with gr.Row():
        made = {
            each: gr.Button(say(each), size="sm", min_width=60, elem_classes=f"dq-{each}")
            for each in ("interrupt", "skip", "cancel")
        }
    gr.HTML(f'<span class="dq-keys">{say("keys")}</span>')
    return {"paint": paint, **made}


def _outputs(studio: Studio, name: str) -> dict[str, Any]:
    """The components of a Tab from its status on, by their names there."""
    say = studio.say
    status = gr.HTML(message(say("ready")), elem_id=f"{name}-status")
    results = gr.Gallery(
        label=say("results"), format="png", columns=2, object_fit="contain", height="auto", interactive=False,
        buttons=["download", "fullscreen"], elem_id=f"{name}-results",
    )  # fmt: skip
    info = gr.Textbox(label=say("result_info"), lines=4, max_lines=14, interactive=False, buttons=["copy"])
    job = gr.BrowserState("", storage_key=f"danqing-{name}", secret="danqing")
    with gr.Row():
        sends = {
            each: gr.Button(f"{say('send')} {say(each)}", size="sm", min_width=120, elem_id=f"{name}-to-{each}")
            for each in TABS
        }
    return {
        "status": status,
        "job": job,
        "timer": gr.Timer(0.8, active=False),
        "results": results,
        "info": info,
        "chosen": gr.State(""),
        "seen": gr.State(()),
        "sends": sends,
    }


def _submitted(studio: Studio, kind: type[BaseModel], fields: dict[str, Any]) -> tuple[Any, ...]:
    """(job, status, timer) of a request that is put into the queue, or of what is wrong with it."""
    try:
        job = studio.engine.submit(read(kind, fields), origin="page")
    except DanqingError as error:
        return _refused(str(error))
    return job.id, message(studio.say("queued")), gr.Timer(active=True)


def _refused(text: str) -> tuple[Any, ...]:
    return gr.skip(), message(text, problem=True), gr.skip()


def _wire(
    studio: Studio, tab: Tab, buttons: Mapping[str, Any], submit: Callable[..., Any], inputs: Sequence[Any]
) -> None:
    """What the buttons do, and how results come in: also those of a job that was begun before the page was loaded."""
    engine = studio.engine
    on(buttons["paint"].click, submit, list(inputs), [tab.job, tab.status, tab.timer])
    for name in ("interrupt", "skip", "cancel"):
        on(buttons[name].click, partial(_told, getattr(engine, name)), [tab.job], None)

    def follow(identity: str, seen: Sequence[str], request: gr.Request) -> tuple[Any, ...]:
        return followed(studio, identity, seen, base_url(request, studio.settings))

    def choose(identity: str, event: gr.SelectData) -> tuple[str, str]:
        pictures = engine.pictures(identity)
        index = event.index if isinstance(event.index, int) and event.index < len(pictures) else 0
        return (pictures[index].id, pictures[index].infotext) if pictures else ("", "")

    on(tab.timer.tick, follow, [tab.job, tab.seen], tab.followed)
    on(tab.results.select, choose, [tab.job], [tab.chosen, tab.info])


def followed(studio: Studio, identity: str, seen: Sequence[str], base: str) -> tuple[Any, ...]:
    """What a tab shows of a job, in the order of `Tab.followed`; `seen` are the pictures that it shows by now.

    Results are sent when there are new ones, so that one that is looked at stays open; the timer stops with the job.
    """
    if not identity:
        return message(studio.say("ready")), gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=False)
    shown = look(studio.engine, identity, studio.say)
    timer = gr.Timer(active=not shown.over)
    ids = tuple(each.id for each in shown.pictures)
    if not ids or ids == tuple(seen or ()):
        return shown.status, gr.skip(), shown.info, gr.skip(), gr.skip(), timer
    return shown.status, shown_files(shown.pictures, base), shown.info, ids[0], ids, timer


def _told(act: Callable[[str], Any], identity: str) -> None:
    if identity:
        try:
            act(identity)
        except DanqingError:  # it is gone; the next look says so
            return
