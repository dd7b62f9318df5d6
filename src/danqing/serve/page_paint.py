"""The tabs that paint: text to picture, picture to picture, upscale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.errors import DanqingError
from danqing.families import Defaults
from danqing.library.folders import BUNDLED
from danqing.requests import ImageToImage, Inpaint, Outpaint, TextToImage
from danqing.serve.page_controls import asked
from danqing.serve.page_groups import grouped
from danqing.serve.page_studio import Studio, Tab, buttons, on, outputs, prompts, wire
from danqing.serve.work import Enlarge

MODES: Mapping[str, type[ImageToImage]] = {
    "img2img": ImageToImage,
    "sketch": ImageToImage,
    "inpaint": Inpaint,
    "outpaint": Outpaint,
}
FILLED: Mapping[str, str] = {
    # what a model fills in by itself: the field and the row of its family
    "width": "width",
    "height": "height",
    "steps": "steps",
    "cfg_scale": "cfg_scale",
}
_BRUSH_SIZE = 40


def txt2img(studio: Studio) -> Tab:
    """Text to picture: it stands ready, so that one click paints."""
    with gr.Row(elem_classes="dq-studio"):
        with gr.Column(elem_classes="dq-say"):
            controls = prompts(studio, "txt2img", studio.examples[0])
        with gr.Column(elem_classes="dq-out"):
            pressed = buttons(studio, "txt2img")
            results = outputs(studio, "txt2img")
        with gr.Column(elem_classes="dq-set"):
            controls += grouped(studio, [TextToImage], ("main", "hires"))[0]

    def ask(*values: Any) -> tuple[type[TextToImage], dict[str, Any]]:
        return TextToImage, asked(TextToImage, controls, values)

    tab = Tab("txt2img", tuple(controls), tuple(each.component for each in controls), ask, **results)
    _filled(studio, tab, tuple(FILLED))
    wire(studio, tab, pressed)
    return tab


def img2img(studio: Studio) -> Tab:
    """Picture to picture: paint over, sketch, inpaint with a brush, outpaint."""
    say = studio.say
    kinds = [ImageToImage, Inpaint, Outpaint]
    with gr.Row(elem_classes="dq-studio"):
        with gr.Column(elem_classes="dq-say"):
            choices = [(say(f"mode_{mode}"), mode) for mode in MODES]
            mode = gr.Radio(
                choices, value="img2img", label=say("mode"), show_label=False, container=False,
                elem_id="img2img-mode", elem_classes="dq-segments",
            )  # fmt: skip
            image, _ = grouped(studio, [ImageToImage], ("picture",), rest=False)
            canvas = {
                "inpaint": _canvas(studio, "brush", _BRUSH_SIZE),
                "sketch": _canvas(studio, "sketch", _BRUSH_SIZE // 2),
            }
            texts = prompts(studio, "img2img")
        with gr.Column(elem_classes="dq-out"):
            pressed = buttons(studio, "img2img")
            results = outputs(studio, "img2img")
        with gr.Column(elem_classes="dq-set"):
            made, groups = grouped(studio, kinds, ("strength", "main", "outpaint", "mask", "masking"), ("picture",))
    controls = [*texts, *image, *made]
    image[0].component.elem_id = "img2img-image"
    results["extra"] |= {"mode": mode, "image": image[0].component, **canvas}

    def ask(name: str, painted: Any, drawn: Any, *values: Any) -> tuple[type[ImageToImage], dict[str, Any]]:
        kind = MODES[name]
        fields = asked(kind, controls, values)
        if name in canvas:  # its picture is on the canvas; that of the other ways is out of sight
            fields.pop("image", None)
        if name == "sketch" and drawn is not None and drawn["composite"] is not None:
            fields["image"] = drawn["composite"]
            if "width" not in fields and "height" not in fields:
                own = native(studio, fields.get("model"))
                fields |= dict(zip(("width", "height"), fitted(drawn["composite"].size, own)))
        if name == "inpaint" and painted is not None and painted["background"] is not None:
            fields["image"] = painted["background"]
            mask = stroke(painted["layers"])
            if mask is not None:
                fields["mask"] = mask.resize(painted["background"].size)
            elif "mask" not in fields and "mask_text" not in fields:
                raise DanqingError(say("no_mask"))
        if fields.get("image") is None:
            raise DanqingError(say("no_picture"))
        return kind, fields

    inputs = (mode, *canvas.values(), *(each.component for each in controls))
    tab = Tab("img2img", tuple(controls), inputs, ask, **results)
    _filled(studio, tab, ("steps", "cfg_scale"))
    sizes = [tab.named("model"), tab.named("width"), tab.named("height")]
    for component in (image[0].component, canvas["inpaint"]):
        on(component.upload, partial(_sized, studio), [component, sizes[0]], sizes[1:])
    places = [*canvas.values(), groups["mask"], groups["masking"], groups["outpaint"]]
    on(mode.change, partial(_switched, controls), [mode], [*places, *tab.components])
    wire(studio, tab, pressed)
    return tab


def upscale(studio: Studio) -> Tab:
    """Pictures made larger, faces restored."""
    with gr.Row(elem_classes="dq-studio"):
        with gr.Column(elem_classes="dq-say"):
            controls, _ = grouped(studio, [Enlarge], ("images",), rest=False)
        with gr.Column(elem_classes="dq-out"):
            pressed = buttons(studio, "upscale", "enlarge")
            results = outputs(studio, "upscale")
        with gr.Column(elem_classes="dq-set"):
            controls += grouped(studio, [Enlarge], ("upscale", "faces"), ("images",))[0]
    controls[0].component.elem_id = "upscale-images"
    results["extra"] |= {"images": controls[0].component}

    def ask(*values: Any) -> tuple[type[Enlarge], dict[str, Any]]:
        fields = asked(Enlarge, controls, values)
        if "images" not in fields:
            raise DanqingError(studio.say("no_picture"))
        return Enlarge, fields

    tab = Tab("upscale", tuple(controls), tuple(each.component for each in controls), ask, **results)
    wire(studio, tab, pressed)
    return tab


_DIFFERENT = frozenset(
    name
    for name, info in Outpaint.model_fields.items()
    if name in Inpaint.model_fields and info.default != Inpaint.model_fields[name].default
)
"""Fields whose defaults depend on what is done."""


def _switched(controls: Sequence[Any], name: str) -> list[Any]:
    """What is there for a way of painting over: its canvas, its groups, its defaults."""
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
    masked = name in ("inpaint", "outpaint")
    return [
        *(gr.update(visible=each) for each in (name == "inpaint", name == "sketch", masked, masked)),
        gr.update(visible=name == "outpaint"),
        *changed,
    ]


def stroke(layers: Sequence[Image.Image]) -> Image.Image | None:
    """White where any layer was painted on, or None where nothing was."""
    mask: Image.Image | None = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value else 0)
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha)
    return mask if mask is not None and mask.getbbox() is not None else None


def defaults(studio: Studio, model: str | None) -> Defaults:
    """What a model fills in by itself. Raises DanqingError where there is no such model."""
    entry = studio.engine.models.check(model or None) or BUNDLED
    return open_checkpoint(entry.path).family.defaults


def native(studio: Studio, model: str | None) -> tuple[int, int]:
    """The size that a model paints by itself. Raises DanqingError where there is no such model."""
    own = defaults(studio, model)
    return own.width, own.height


def _filled(studio: Studio, tab: Tab, names: Sequence[str]) -> None:
    """Empty boxes show what the model fills in."""
    boxes = [tab.named(name) for name in names]

    def own(model: str | None) -> list[str]:
        try:
            row = defaults(studio, model)
        except DanqingError:
            return [studio.say("auto")] * len(names)
        return [f"{getattr(row, FILLED[name]):g}" for name in names]

    for box, value in zip(boxes, own(None)):
        box.placeholder = value
    on(tab.named("model").change, lambda model: [gr.update(placeholder=each) for each in own(model)],
       [tab.named("model")], boxes)  # fmt: skip


def fitted(size: tuple[int, int], own: tuple[int, int]) -> tuple[int | None, int | None]:
    """The size at which a picture is painted over: a model's own area in the picture's shape, or unset if it is smaller."""
    scale = math.sqrt(own[0] * own[1] / (size[0] * size[1]))
    if scale >= 1:
        return None, None
    width, height = (max(64, round(side * scale / 8) * 8) for side in size)
    return width, height


def _sized(studio: Studio, picture: Any, model: str | None) -> list[str]:
    """A photograph has more pixels than most models paint well, or a machine soon: what it is painted at is shown."""
    background = picture["background"] if isinstance(picture, dict) else picture
    if background is None:
        return ["", ""]
    try:
        own = native(studio, model)
    except DanqingError:
        return ["", ""]
    if isinstance(background, Image.Image):
        size = background.size
    else:
        with Image.open(background) as image:
            size = image.size
    return [str(side or "") for side in fitted(size, own)]


def _canvas(studio: Studio, label: str, size: int) -> Any:
    colours: dict[str, Any] = {"colors": ["#ffffff"], "color_mode": "fixed"} if label == "brush" else {}
    return gr.ImageEditor(
        label=studio.say(label), type="pil", image_mode="RGBA", format="png", sources=["upload", "clipboard"],
        brush=gr.Brush(default_size=size, **colours), transforms=(), visible=False, height=460,
        elem_id=f"img2img-{label}", layers=False,
    )  # fmt: skip
