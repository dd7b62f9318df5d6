"""The axes of an X/Y/Z plot: what each changes in a request, and to which values (AUTOMATIC1111's scripts/xyz_grid.py).

An axis is any field of the request by its name or AUTOMATIC1111's label, or one of a few that are no field: Prompt S/R,
Prompt order, Size, Styles, LoRA weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from danqing.errors import DanqingError
from danqing.pipeline.expand import draw_seed
from danqing.pipeline.outputs import parse_size
from danqing.prompts.values import split_csv, spread
from danqing.requests import Painting, read
from danqing.vocabulary import nearest, quoted

LABELS: Mapping[str, str] = {
    # AUTOMATIC1111's labels of fields
    "Seed": "seed",
    "Var. seed": "subseed",
    "Var. strength": "subseed_strength",
    "Steps": "steps",
    "Hires steps": "hr_second_pass_steps",
    "CFG Scale": "cfg_scale",
    "Image CFG Scale": "image_cfg_scale",
    "Sampler": "sampler_name",
    "Hires sampler": "hr_sampler_name",
    "Checkpoint name": "model",
    "Negative Guidance minimum sigma": "s_min_uncond",
    "Sigma Churn": "s_churn",
    "Sigma min": "s_tmin",
    "Sigma max": "s_tmax",
    "Sigma noise": "s_noise",
    "Schedule type": "scheduler",
    "Schedule min sigma": "sigma_min",
    "Schedule max sigma": "sigma_max",
    "Schedule rho": "rho",
    "Eta": "eta",
    "Clip skip": "clip_skip",
    "Denoising": "denoising_strength",
    "Initial noise multiplier": "initial_noise_multiplier",
    "Extra noise": "extra_noise",
    "Hires upscaler": "hr_upscaler",
    "Cond. Image Mask Weight": "inpainting_mask_weight",
    "VAE": "vae",
    "Always discard next-to-last sigma": "discard_penultimate",
    "Refiner checkpoint": "refiner_checkpoint",
    "Refiner switch at": "refiner_switch_at",
    "RNG source": "noise_source",
    "Token merging ratio": "token_merging",
}
_ALIASES = {
    "cfg": "CFG Scale",
    "checkpoint": "Checkpoint name",
    "batch count": "n_iter",
    "ensd": "eta_noise_seed_delta",
}
COSTS: Mapping[str, float] = {
    # what a change of the field costs beside painting: a file is loaded
    "model": 1.0,
    "refiner_checkpoint": 1.0,
    "hr_checkpoint_name": 1.0,
    "vae": 0.7,
    "hr_upscaler": 0.5,
}
_BARE = {"Prompt S/R", "Prompt order", "Sampler"}
"""Labels of their values go without the axis's title, as in AUTOMATIC1111."""
_FILES = {"model", "refiner_checkpoint", "hr_checkpoint_name"}
_SEEDS = ("seed", "subseed")
_NOT_PLOTTED = {"template", "styles", "prompt_order"}

Change = Callable[[Mapping[str, Any], Any], dict[str, Any]]
"""(the request's fields, a value) -> the fields that it changes."""


@dataclass(frozen=True)
class Axis:
    title: str
    """AUTOMATIC1111's label, or the field's name; empty for no axis."""
    text: str
    """The values as they were given."""
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    change: Change
    cost: float = 0.0

    @property
    def field(self) -> str:
        return LABELS.get(self.title, self.title)


NOTHING = Axis("", "", (None,), ("",), lambda fields, value: {})
"""An axis of one value that changes nothing."""


def parse_axis(spec: str, request: Painting, *, fix_seeds: bool = True) -> Axis:
    """The axis that `TITLE=VALUES` means for this request: `Steps=10-30 (+10)`, `Prompt S/R=apple,pear`.

    Every value is checked against the request. With `fix_seeds` seeds of -1 are drawn now.
    Raises DanqingError: an unknown axis (with the nearest), a value that the field does not take.
    """
    title, equals, text = spec.partition("=")
    if not equals:
        raise DanqingError(f"axis {quoted(spec)}: write it as TITLE=VALUES, such as Steps=10-30 (+10)")
    title, lora = _title(title.strip(), request)
    if title == "Nothing":
        return NOTHING
    special = _SPECIAL.get(title)
    try:
        if special:
            axis = special(title, text, request, lora)
        else:
            axis = _field_axis(title, text, request, fix_seeds)
        if not axis.values:
            raise DanqingError("it has no values")
        fields = request.model_dump(exclude_unset=True)
        for value in axis.values:
            read(type(request), {**fields, **axis.change(fields, value)})
    except DanqingError as error:
        raise DanqingError(f"axis {title}: {error}") from None
    return axis


def titles(kind: type[Painting]) -> list[str]:
    """Every axis that requests of this kind have, AUTOMATIC1111's labels first."""
    fields = [name for name in kind.model_fields if name not in _NOT_PLOTTED]
    labelled = [label for label, name in LABELS.items() if name in fields]
    return [*_SPECIAL, *labelled, *(name for name in fields if name not in LABELS.values())]


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _title(asked: str, request: Painting) -> tuple[str, str]:
    """(the axis's title, the rest of a `LoRA weight NAME`)."""
    folded = _fold(asked)
    if folded in ("", "nothing"):
        return "Nothing", ""
    if folded.startswith("lora weight "):
        return "LoRA weight", asked[len("lora weight ") :].strip()
    known = titles(type(request))
    by_name = {LABELS[label]: label for label in known if label in LABELS} | dict(_ALIASES)
    names = {_fold(name): label for name, label in by_name.items()} | {_fold(label): label for label in known}
    if folded not in names or names[folded] not in known:
        every = [*known, *by_name]
        like = nearest(asked, every)
        hint = f"did you mean {' or '.join(like)}?" if like else "any field of the request is one, or Prompt S/R, Size"
        raise DanqingError(f"axis {quoted(asked)} is unknown; {hint}")
    return names[folded], ""


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field takes: `int | None` -> {int, NoneType}."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return {str}
    if get_origin(annotation) in (Union, type(int | str)):
        return set().union(*(_kinds(each) for each in get_args(annotation)))
    return {annotation}


def _field_axis(title: str, text: str, request: Painting, fix_seeds: bool) -> Axis:
    field = LABELS.get(title, title)
    kinds = _kinds(type(request).model_fields[field].annotation)
    values: list[Any] = []
    for word in split_csv(text):
        numbers = spread(word, int in kinds) if kinds & {int, float} and bool not in kinds else None
        if numbers is not None:
            values += numbers
        elif type(None) in kinds and word.casefold() in ("none", "automatic") and field != "scheduler":
            values.append(None)
        elif field == "noise_source" and word.casefold() == "nv":
            values.append("philox")  # AUTOMATIC1111's name of CUDA's numbers computed anywhere
        else:
            values.append(word)
    if field in _SEEDS:
        values = [_seed(value, fix_seeds) for value in values]
    labels = [_label(title, field, value) for value in values]
    return Axis(title, text, tuple(values), tuple(labels), lambda fields, value: {field: value}, COSTS.get(field, 0.0))


def _seed(value: Any, fixed: bool) -> Any:
    return draw_seed() if fixed and value in (None, "", "-1", -1) else value


def _label(title: str, field: str, value: Any) -> str:
    if isinstance(value, float):
        value = f"{round(value, 8):g}" if abs(value) < 1e6 else value
    if field in _FILES and value is not None:
        return PurePath(str(value)).name
    return str(value) if title in _BARE else f"{title}: {value}"


def _search_replace(title: str, text: str, request: Painting, rest: str) -> Axis:
    """Prompt S/R: the first value is the text to replace, in the prompt and the negative one."""
    values = split_csv(text)
    searched = values[0] if values else ""
    names = [
        name for name in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt") if hasattr(request, name)
    ]
    if not searched or not any(searched in getattr(request, name) for name in names):
        raise DanqingError(f"{quoted(searched)} is in neither prompt; the first value is the text to replace")

    def change(fields: Mapping[str, Any], value: Any) -> dict[str, Any]:
        return {name: fields[name].replace(searched, value) for name in names if fields.get(name)}

    return Axis(title, text, tuple(values), tuple(values), change)


def _order(title: str, text: str, request: Painting, rest: str) -> Axis:
    """Prompt order: all orders of these pieces of the prompt, in the places where the pieces are."""
    pieces = split_csv(text)
    if not pieces:
        raise DanqingError("it has no values; they are pieces of the prompt")
    missing = [piece for piece in pieces if not piece or piece not in request.prompt]
    if missing:
        raise DanqingError(f"{quoted(missing[0])} is not in the prompt; the values are pieces of it")
    if len(set(pieces)) < len(pieces) or len(pieces) > 6:
        raise DanqingError("its values should be up to six different pieces of the prompt")

    def change(fields: Mapping[str, Any], value: Any) -> dict[str, Any]:
        # whichever piece is found first in the prompt is replaced by the order's first, and so on
        pattern = "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True))
        waiting, put = list(value), set()

        def next_piece(match: re.Match[str]) -> str:
            if match[0] in put:
                return match[0]
            put.add(match[0])
            return str(waiting.pop(0))

        return {"prompt": re.sub(pattern, next_piece, fields.get("prompt", ""))}

    orders = tuple(permutations(pieces))
    return Axis(title, text, orders, tuple(", ".join(order) for order in orders), change)


def _size(title: str, text: str, request: Painting, rest: str) -> Axis:
    """Size: 512x768 and so on."""
    values = split_csv(text)
    return Axis(
        title,
        text,
        tuple(values),
        tuple(f"{title}: {value}" for value in values),
        lambda fields, value: parse_size(value),
    )


def _styles(title: str, text: str, request: Painting, rest: str) -> Axis:
    """Styles: each value adds to the request's; several at once in quotes, `"oil, sketch"`."""
    values = split_csv(text)

    def change(fields: Mapping[str, Any], value: str) -> dict[str, Any]:
        names = (name.strip() for name in value.split(","))
        return {"styles": (*fields.get("styles", ()), *(name for name in names if name and name != "None"))}

    return Axis(title, text, tuple(values), tuple(f"{title}: {value}" for value in values), change)


def _lora_weight(title: str, text: str, request: Painting, name: str) -> Axis:
    """LoRA weight: that of every `<lora:name:weight>` in the prompt, or of one, by `LoRA weight NAME`."""
    tag = re.compile(rf"<(lora|lyco):({re.escape(name) if name else '[^:<>]+'})(?::[^:<>=]*)?(?=[:>])", re.IGNORECASE)
    if not tag.search(request.prompt):
        raise DanqingError(f"the prompt has no <lora:{name or 'NAME'}:WEIGHT>")
    values: list[Any] = []
    for word in split_csv(text):
        numbers = spread(word, False)
        try:
            values += [float(word)] if numbers is None else numbers
        except ValueError:
            raise DanqingError(f"{quoted(word)} is no number") from None

    def change(fields: Mapping[str, Any], value: Any) -> dict[str, Any]:
        return {"prompt": tag.sub(rf"<\1:\2:{value:g}", fields.get("prompt", ""))}

    title = f"{title} {name}".strip()
    return Axis(title, text, tuple(values), tuple(f"{title}: {value:g}" for value in values), change)


_SPECIAL: Mapping[str, Callable[[str, str, Painting, str], Axis]] = {
    "Prompt S/R": _search_replace,
    "Prompt order": _order,
    "Size": _size,
    "Styles": _styles,
    "LoRA weight": _lora_weight,
}
