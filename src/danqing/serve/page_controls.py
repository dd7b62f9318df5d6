"""Controls made from a request class: one per field, so that the page has all that can be asked for.

What a request holds by itself (`FreeU`, `ControlUnit` ...) has the controls of its own fields, under its name.
"""

from __future__ import annotations

import base64
import html
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import gradio as gr
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from danqing.library.settings import Settings
from danqing.serve.a1111_library import entries, stem
from danqing.serve.accept import PICTURES
from danqing.serve.page_texts import Language, choice, label, say_in, tooltip
from danqing.vocabulary import MODULES, SAMPLERS, SCHEDULERS

UNITS: Mapping[str, int] = {"controls": 2, "image_prompts": 1, "detailers": 2}
"""Fields of several records, and how many of them the page has room for."""
LONG = frozenset({"prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt", "regions", "lora_regions"})
SKIPPED = frozenset({"template"})
_LISTED = frozenset({"classes"})
"""Fields of records that are lists, written in a line."""
_WHOLE = 2**53
"""Above it a browser's numbers are not exact."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    # field, or group.field -> the kinds of models that it names
    "model": ("checkpoint",),
    "vae": ("vae",),
    "refiner_checkpoint": ("checkpoint",),
    "hr_checkpoint_name": ("checkpoint",),
    "controls.model": ("controlnet",),
    "image_prompts.model": ("ip_adapter",),
    "image_prompts.encoder": ("clip_vision",),
    "image_prompts.identity_net": ("controlnet",),
    "aesthetic.embedding": ("aesthetic_embedding",),
    "detailers.detector": ("other", "face_detector"),
    "face_restorer": ("face_restorer",),
    "face_detector": ("face_detector",),
}
_UPSCALERS = frozenset({"upscaler", "upscaler_2", "sd_upscale.upscaler", "hr_upscaler"})


@dataclass(frozen=True, eq=False)
class Control:
    """A field's control."""

    path: tuple[str, ...]
    """(field), (field, its record's field) or (field, number of the record, its field); `on` switches a record on."""
    component: Any
    default: Any
    """Its value where the field is unset."""
    listed: Field | None = None
    """The field, where its choices are what is in the model folders: `renewed` reads them anew."""
    said: str = ""
    """What is said of it, where Gradio has no place for that: it is a picture."""


@dataclass(frozen=True)
class Field:
    """A field as its control is made of it."""

    group: str
    """The request's field that holds it, or nothing."""
    name: str
    info: FieldInfo

    @property
    def kind(self) -> Any:
        """The type, without Annotated and None."""
        return _bare(self.info.annotation)

    @property
    def key(self) -> str:
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def default(self) -> Any:
        value = self.info.default
        return None if value is PydanticUndefined else value

    def bounds(self) -> tuple[float | None, float | None]:
        """Least and largest value."""
        least: Any = None
        most: Any = None
        for each in (*self.info.metadata, *_metadata(self.info.annotation)):
            if isinstance(each, annotated_types.Ge):
                least = each.ge
            elif isinstance(each, annotated_types.Gt):
                least = each.gt
            elif isinstance(each, annotated_types.Le):
                most = each.le
        return least, most


def fields_of(kind: type[BaseModel], group: str = "") -> Iterator[Field]:
    """The fields of a class that have controls."""
    for name, info in kind.model_fields.items():
        if name not in SKIPPED:
            yield Field(group, name, info)


def controls_of(field: Field, language: Language, library: Settings) -> list[Control]:
    """Draw the control of a field, or those of all that it holds, here in the page."""
    record = record_of(field)
    if record is None:
        path = (field.group, field.name) if field.group else (field.name,)
        return [_control(field, path, language, library)]
    made = []
    title = label("", field.name, language)
    info = tooltip("", field.name, field.info.description or "", language)
    if field.name not in UNITS:
        with gr.Accordion(title, open=False, elem_classes="dq-record"), gr.Row(elem_classes="dq-controls"):
            switch = gr.Checkbox(
                label=say_in(language)("on"), info=info, value=False, interactive=True, elem_classes="dq-f-on"
            )
            made.append(Control((field.name, "on"), switch, False))
            for each in fields_of(record, field.name):
                made.append(_control(each, (field.name, each.name), language, library))
        return made
    for number in range(UNITS[field.name]):
        with gr.Accordion(f"{title} {number + 1}", open=False, elem_classes="dq-record"):
            gr.HTML(f'<p class="dq-hint">{html.escape(info)}</p>')
            with gr.Row(elem_classes="dq-controls"):
                for each in fields_of(record, field.name):
                    made.append(_control(each, (field.name, str(number), each.name), language, library))
    return made


def record_of(field: Field) -> type[BaseModel] | None:
    """The class of what a field holds, where that has controls of its own."""
    kind = field.kind
    if field.name in UNITS:
        kind = _bare(get_args(kind)[0])
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) and not field.group else None


def _control(field: Field, path: tuple[str, ...], language: Language, library: Settings) -> Control:
    kind, default = field.kind, field.default
    words: dict[str, Any] = {"label": label(field.group, field.name, language), "interactive": True}
    words["elem_classes"] = [f"dq-f-{field.name}"]
    info = tooltip(field.group, field.name, field.info.description or "", language)
    automatic = say_in(language)("auto")
    if field.name in PICTURES:
        words["elem_classes"].append(f"dq-t-{'-'.join(path)}")
        return Control(path, _picture(field, words), None, said=info)
    words["info"] = info
    found = choices_of(field, library)
    if found is not None:
        many = get_origin(kind) is tuple
        value = list(default or ()) if many else default or ""
        rows = _rows(field, found, language)
        box = gr.Dropdown(rows, value=value, multiselect=many, allow_custom_value=True, **words)
        return Control(path, box, value, field if _in_folders(field) else None)
    if kind is bool and default is not None:
        return Control(path, gr.Checkbox(value=default, **words), default)
    if kind is bool:
        return Control(path, gr.Dropdown([(automatic, ""), ("✓", "true"), ("✗", "false")], value="", **words), "")
    if get_origin(kind) is Literal:
        named = [(choice(str(value), language), value) for value in get_args(kind)]
        if default is None:
            named.insert(0, (automatic, ""))
        return Control(path, gr.Dropdown(named, value="" if default is None else default, **words), default or "")
    if kind in (int, float):
        return _number(field, path, words, automatic)
    value = default if isinstance(default, str) else "+".join(map(str, default)) if field.name == "layers" else ""
    lines = 2 if field.name in LONG or field.name in ("text", "subprompt") else 1
    return Control(path, gr.Textbox(value=value, lines=lines, max_lines=12, **words), value)


def _rows(field: Field, found: Sequence[str], language: Language) -> list[tuple[str, str]]:
    """Choices as (shown, value); none is one where the field may be unset."""
    optional = get_origin(field.kind) is not tuple and field.default in (None, "")
    return [(value or say_in(language)("auto"), value) for value in (("", *found) if optional else found)]


def _in_folders(field: Field) -> bool:
    return field.key in _KINDS or field.key in _UPSCALERS or field.key == "styles"


def renewed(controls: Sequence[Control], language: Language, library: Settings) -> list[Any]:
    """For those that are `listed`: what there is to choose from by now."""
    found = {control.listed.key: choices_of(control.listed, library) or [] for control in controls if control.listed}
    return [
        gr.update(choices=_rows(control.listed, found[control.listed.key], language))
        for control in controls
        if control.listed
    ]


def _number(field: Field, path: tuple[str, ...], words: dict[str, Any], automatic: str) -> Control:
    """A slider for a short range, a box for a long one.

    It is a box of text where nothing is a value, for Gradio's box of numbers makes 0 of nothing, and where a browser
    would round.
    """
    least, most = field.bounds()
    whole, default = field.kind is int, field.default
    if default is None or (whole and most is not None and most > _WHOLE):
        words["elem_classes"] = [*words["elem_classes"], "dq-number"]
        value = "" if default in (None, 0) else str(default)
        return Control(path, gr.Textbox(value=value, placeholder=automatic, max_lines=1, **words), value)
    if least is not None and most is not None and most - least <= (300 if whole else 10):
        step = 1 if whole else 0.01 if most - least <= 1 else 0.05
        return Control(path, gr.Slider(least, most, value=default, step=step, **words), default)
    step = 1 if whole else 0.1
    box = gr.Number(value=default, minimum=least, maximum=most, precision=0 if whole else None, step=step, **words)
    return Control(path, box, default)


def _picture(field: Field, words: dict[str, Any]) -> Any:
    if get_origin(field.kind) is tuple:
        return gr.File(file_count="multiple", file_types=["image"], type="filepath", **words)
    return gr.Image(
        type="filepath", image_mode=None, sources=["upload", "clipboard"], height=240, format="png", **words
    )


def choices_of(field: Field, library: Settings) -> list[str] | None:
    """What a text field may be, where that is looked up in a table or among the models; None for any text."""
    if field.name in ("sampler_name", "hr_sampler_name"):
        return [row.name for row in SAMPLERS]
    if field.name in ("scheduler", "hr_scheduler"):
        return [row.name for row in SCHEDULERS]
    if field.name == "module":
        return [row.name for row in MODULES]
    if field.key == "styles":
        from danqing.pipeline.expand import style_places
        from danqing.prompts.styles import all_styles

        return [style.name for style in all_styles(style_places(library))]
    if field.key in _UPSCALERS:
        from danqing.pipeline.hires import LATENT_MODES
        from danqing.pipeline.upscale import upscaler_names

        latent = list(LATENT_MODES) if field.name == "hr_upscaler" else []
        return [*latent, *upscaler_names(library)]
    if field.key in _KINDS:
        kinds: Any = _KINDS[field.key]
        return [stem(entry) for entry in entries(library, *kinds)]
    return None


def asked(kind: type[BaseModel], controls: Sequence[Control], values: Sequence[Any]) -> dict[str, Any]:
    """What the controls say of a request of `kind`: the fields that are not as they are by default."""
    fields: dict[str, Any] = {}
    records: dict[tuple[str, ...], dict[str, Any]] = {}
    for control, value in zip(controls, values):
        name, *inner = control.path
        if name not in kind.model_fields:
            continue
        if not inner:
            if _given(value) and value != _plain(kind.model_fields[name].default):
                fields[name] = value
        elif _given(value) and value != control.default:
            listed = isinstance(value, str) and inner[-1] in _LISTED
            records.setdefault(tuple(control.path[:-1]), {})[inner[-1]] = (
                value.replace(",", " ").split() if listed else value
            )
    for path, record in records.items():
        name = path[0]
        if len(path) == 1:
            if record.pop("on", False):
                fields[name] = record
            continue
        if _named(name, kind, record):
            fields.setdefault(name, []).append(record)
    return {name: _with_pictures(value, name) for name, value in fields.items()}


def shown(controls: Sequence[Control], fields: Mapping[str, Any]) -> list[Any]:
    """The values of the controls that stand for these fields of a request; pictures stay as they are."""
    values = []
    for control in controls:
        name, *inner = control.path
        if control.path[-1] in PICTURES:
            values.append(gr.skip())
            continue
        value = fields.get(name)
        if len(inner) == 1:
            value = value is not None if inner[0] == "on" else (value or {}).get(inner[0])
        elif len(inner) == 2:
            rows = list(value or ())
            number = int(inner[0])
            value = rows[number].get(inner[1]) if number < len(rows) else None
        values.append(control.default if value is None else _as_control(control, value))
    return values


def _as_control(control: Control, value: Any) -> Any:
    if isinstance(control.component, gr.Textbox):
        if isinstance(value, list | tuple):
            if value and isinstance(value[0], Mapping):
                return json.dumps(value, ensure_ascii=False)
            return "+".join(map(str, value)) if control.path[-1] == "layers" else " ".join(map(str, value))
        return str(value)
    if isinstance(control.default, str) and isinstance(value, bool):
        return "true" if value else "false"
    return value


def _named(name: str, kind: type[BaseModel], record: Mapping[str, Any]) -> bool:
    """Whether a record has what it cannot do without: else nobody asked for it."""
    field = Field("", name, kind.model_fields[name])
    held = record_of(field)
    return held is not None and all(each in record for each, info in held.model_fields.items() if info.is_required())


def _with_pictures(value: Any, name: str = "") -> Any:
    """The same with its pictures' files as data URLs, as the engine takes them."""
    if isinstance(value, dict):
        return {key: _with_pictures(each, key) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_pictures(each, name) for each in value]
    if name in PICTURES and isinstance(value, str | Path | Image.Image) and not str(value).startswith("picture:"):
        return value if isinstance(value, Image.Image) else data_url(Path(value))
    return value


def data_url(path: Path) -> str:
    """A file as the data URL that requests take."""
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _given(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != ()


def _plain(default: Any) -> Any:
    return [] if default == () else default


def _bare(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Literal, tuple):
        return annotation
    inner = [arg for arg in get_args(annotation) if arg is not type(None)]
    return _bare(inner[0]) if inner else annotation


def _metadata(annotation: Any) -> Iterator[Any]:
    """What Annotated says anywhere in a type, `Unit | None` too."""
    if get_origin(annotation) is Annotated:
        for each in get_args(annotation)[1:]:
            yield from each.metadata if isinstance(each, FieldInfo) else (each,)
    for each in get_args(annotation):
        if get_origin(annotation) is not Literal and not isinstance(each, FieldInfo):
            yield from _metadata(each)
