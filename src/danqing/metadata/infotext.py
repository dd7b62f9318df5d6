"""AUTOMATIC1111's infotext, written and read: the text under a picture (its `create_infotext`, `infotext_utils`).

One table of entries serves both directions. Keys, order and quoting are AUTOMATIC1111's. Fields that it does not
know follow its own, under keys made of the fields' names; it passes over them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

from pydantic import BaseModel

from danqing.errors import DanqingError
from danqing.metadata import network_text
from danqing.metadata.control_text import KEY, control_pairs, read_controls
from danqing.metadata.enlarged_text import enlarged_pairs
from danqing.metadata.told import UNRECORDED, Told, build, load_json, load_object
from danqing.request_parts import Reference
from danqing.requests import REQUESTS, ImageToImage, Kind, Masked, Painting, ResolvedRequest, TextToImage
from danqing.version import __version__
from danqing.vocabulary import DIALECT_EMPHASIS

Fields = dict[str, Any]
"""Fields of a request, and `checkpoint`, `vae_file`, `others` beside them: references as dicts."""

PAIR = re.compile(
    r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*("(?:\\.|[^\\"])+"|\{(?:"(?:\\.|[^\\"]){0,999}+"|[^{}"]){0,999}+\}|[^,]*)(?:,|$)'
)
"""A pair as AUTOMATIC1111 finds it (`re_param`): a key, a colon, a JSON string or all up to the next comma; and beyond
its grammar a flat JSON object, as its extensions write them.

The look-behind and the greedy parts that give nothing back change no match; without them a long line without a colon
would take quadratic time.
"""
MAX_LINE = 1 << 16
"""Characters of a line that may be the parameters."""


@dataclass(frozen=True)
class Entry:
    """A pair of the parameters line: how it is written of a request, and what it says of one."""

    key: str
    write: Callable[[ResolvedRequest], object]
    """None leaves the pair out."""
    read: Callable[[str], Fields]
    """Nested dicts are merged with those of other entries."""
    fields: tuple[str, ...] = ()
    """The request's fields that this entry speaks for."""


def quote(value: object) -> str:
    """A value as AUTOMATIC1111 writes it: a JSON string where it holds a comma, a colon or a newline.

    Numbers are written in full, so that reading them back gives the same bits; 7.0 is 7. A dict is a JSON object.
    """
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


def unquote(text: str) -> str:
    """A JSON string is what it spells; anything else is itself."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def reference_text(reference: Reference, digits: int = 10) -> str:
    """`name [hash]`, as AUTOMATIC1111 writes a checkpoint that is not the main one."""
    return f"{reference.name} [{reference.sha256[:digits]}]" if reference.sha256 else reference.name


def read_reference(text: str) -> Fields:
    """`name [hash]` -> the fields of a `Reference`."""
    match = re.fullmatch(r"(.*) \[([0-9a-f]{8,64})\]", text, re.DOTALL)
    return {"name": match[1], "sha256": match[2]} if match else {"name": text}


def _field(key: str, field: str, always: bool = False) -> Entry:
    """A field as it is, left out at its default unless `always`."""

    def write(resolved: ResolvedRequest) -> object:
        value = getattr(resolved.request, field, None)
        return value if always or value != _default(resolved.request, field) else None

    return Entry(key, write, lambda text: {field: text}, (field,))


def _hires(key: str, field: str) -> Entry:
    plain = _field(key, field)
    return Entry(
        key, lambda resolved: plain.write(resolved) if _enlarges(resolved.request) else None, plain.read, plain.fields
    )


def _default(request: Painting, field: str) -> object:
    info = type(request).model_fields.get(field)
    return info.default if info else None


def _enlarges(request: Painting) -> bool:
    return isinstance(request, TextToImage) and request.enable_hr


def _size(key: str, width: str, height: str, write: Callable[[Painting], bool]) -> Entry:
    """`512x768`."""

    def text_of(resolved: ResolvedRequest) -> str | None:
        r = resolved.request
        return f"{getattr(r, width)}x{getattr(r, height)}" if write(r) else None

    def read(text: str) -> Fields:
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        return {width: match[1], height: match[2]} if match else {}

    return Entry(key, text_of, read, (width, height))


def _name(key: str, of: Callable[[ResolvedRequest], Reference | None], target: str) -> tuple[Entry, Entry]:
    """A model's hash and its name."""

    def hashed(resolved: ResolvedRequest) -> str | None:
        reference = of(resolved)
        return reference.sha256[:10] if reference and reference.sha256 else None

    def named(resolved: ResolvedRequest) -> str | None:
        reference = of(resolved)
        return (reference.name or None) if reference else None

    return (
        Entry(f"{key} hash", hashed, lambda text: {target: {"sha256": text}}),
        Entry(key, named, lambda text: {target: {"name": text}}),
    )


def _model(key: str, field: str) -> Entry:
    """A further checkpoint, by name and hash."""

    def write(resolved: ResolvedRequest) -> str | None:
        if field == "hr_checkpoint_name" and not _enlarges(resolved.request):
            return None
        known = resolved.others.get(field)
        return reference_text(known) if known else getattr(resolved.request, field, None)

    return Entry(key, write, lambda text: {field: text}, (field,))


def _varied(field: str) -> Callable[[ResolvedRequest], object]:
    return lambda resolved: getattr(resolved.request, field) if resolved.request.subseed_strength > 0 else None


def _strength(resolved: ResolvedRequest) -> object:
    r = resolved.request
    return r.denoising_strength if isinstance(r, ImageToImage) or (isinstance(r, TextToImage) and r.enable_hr) else None


def _mask_weight(resolved: ResolvedRequest) -> object:
    r = resolved.request
    told = isinstance(r, Masked) and (r.inpainting_mask_weight != 1 or "inpaint" in resolved.family)
    return r.inpainting_mask_weight if isinstance(r, Masked) and told else None


_SOURCES = {"cpu": "CPU", "philox": "NV"}
_EMPHASIS = {"original": "Original", "no norm": "No norm", "ignore": "Ignore", "none": "None", "comfyui": "ComfyUI"}


def _emphasis(resolved: ResolvedRequest) -> str | None:
    r = resolved.request
    weighted = set(r.prompt + r.negative_prompt) & set("([")
    mode = r.emphasis or DIALECT_EMPHASIS[r.dialect]
    return _EMPHASIS[mode] if weighted and mode != DIALECT_EMPHASIS[r.dialect] else None


def _tiling(resolved: ResolvedRequest) -> str | None:
    tiling = resolved.request.tiling
    return {"both": "True", "none": None}.get(tiling, tiling)


def _hashes(key: str, kind: str, digest: Literal["sha256", "autov3"]) -> Entry:
    """The files of a kind with AUTOMATIC1111's short hashes of them, which have 12 digits: `name: 0123456789ab, ...`."""

    def write(resolved: ResolvedRequest) -> str | None:
        named = [(name, getattr(file, digest)) for name, file in resolved.others.items() if name.startswith(f"{kind}:")]
        rows = [f"{_plain(name.partition(':')[2])}: {value[:12]}" for name, value in named if value]
        return ", ".join(rows) or None

    def read(text: str) -> Fields:
        rows = re.findall(r"(\S[^,]*?): ([0-9a-f]{6,64})(?:, |,?$)", text)
        return {"others": {f"{kind}:{name}": {"name": name, digest: value} for name, value in rows}}

    return Entry(key, write, read)


def _plain(name: str) -> str:
    return name.replace(":", "").replace(",", "")


def _thresholding(part: str) -> Callable[[ResolvedRequest], object]:
    def write(resolved: ResolvedRequest) -> object:
        values = resolved.request.dynamic_thresholding
        if values is None:
            return None
        # the extension counts in per cent; decimal, so that nothing is rounded
        return values.mimic_scale if part == "mimic_scale" else (Decimal(repr(values.percentile)) * 100).normalize()

    return write


def _per_cent(text: str) -> Fields:
    try:
        return {"dynamic_thresholding": {"percentile": float(Decimal(text) / 100)}}
    except ArithmeticError:
        return {}


_TILES = {
    "Method": "method",
    "Tile tile width": "tile_width",
    "Tile tile height": "tile_height",
    "Tile Overlap": "overlap",
    "Tile batch size": "batch_size",
}
"""The extension Tiled Diffusion's words for the fields."""


def _tiles(resolved: ResolvedRequest) -> object:
    tiles = resolved.request.tiled_diffusion
    return None if tiles is None else {key: getattr(tiles, name) for key, name in _TILES.items()}


def _read_tiles(text: str) -> Fields:
    try:
        values = load_object(text, "Tiled Diffusion")
    except DanqingError:
        return {"tiled_diffusion": text}  # told as what is no such field
    return {"tiled_diffusion": {name: values[key] for key, name in _TILES.items() if key in values}}


def _more_of_tiles(text: str) -> Iterator[str]:
    """What the extension did besides, and nothing here does."""
    try:
        values = load_object(text, "Tiled Diffusion")
    except DanqingError:
        return
    for key in values.keys() - _TILES.keys() - {"Keep input size"}:
        yield f"'Tiled Diffusion: {key}' has no counterpart here and is left out"


def _soft(part: str) -> Entry:
    def write(resolved: ResolvedRequest) -> object:
        values = getattr(resolved.request, "soft_inpainting", None)
        return getattr(values, part) if values else None

    return Entry(f"Soft inpainting {part.replace('_', ' ')}", write, lambda text: {"soft_inpainting": {part: text}})


def _sd_upscale(part: str) -> Entry:
    def write(resolved: ResolvedRequest) -> object:
        values, file = getattr(resolved.request, "sd_upscale", None), resolved.others.get("sd_upscale")
        if values is None:
            return None
        return file.name if part == "upscaler" and file else getattr(values, part)

    return Entry(f"SD upscale {part}", write, lambda text: {"sd_upscale": {part: text}}, ("sd_upscale",))


_AESTHETIC = {
    "Aesthetic LR": "learning_rate",
    "Aesthetic weight": "weight",
    "Aesthetic steps": "steps",
    "Aesthetic embedding": "embedding",
    "Aesthetic slerp": "slerp",
    "Aesthetic text": "text",
    "Aesthetic text negative": "text_negative",
    "Aesthetic slerp angle": "slerp_angle",
    "Aesthetic projection": "projection",
}
"""The extension aesthetic-gradients' words for the fields; it has none for the last."""


def _aesthetic(key: str, part: str) -> Entry:
    def write(resolved: ResolvedRequest) -> object:
        values = resolved.request.aesthetic
        value = None if values is None else getattr(values, part)
        file = resolved.others.get({"embedding": "aesthetic", "projection": "aesthetic.projection"}.get(part, ""))
        return file.name if file and value is not None else None if value == "" else value

    def read(text: str) -> Fields:
        return {} if part == "embedding" and text == "None" else {"aesthetic": {part: text}}

    return Entry(key, write, read, ("aesthetic",))


def _masked(field: str, told: Callable[[Any], object]) -> Callable[[ResolvedRequest], object]:
    """Of inpainting only: what `told` says of the field's value."""

    def write(resolved: ResolvedRequest) -> object:
        return told(getattr(resolved.request, field)) if hasattr(resolved.request, field) else None

    return write


def _second_prompt(field: str, first: str) -> Callable[[ResolvedRequest], object]:
    """The second pass's prompt, where it is not the first's."""

    def write(resolved: ResolvedRequest) -> object:
        r = resolved.request
        text = getattr(r, field, "")
        return text if _enlarges(r) and text and text != getattr(r, first) else None

    return write


def _init_image(resolved: ResolvedRequest) -> object:
    image = getattr(resolved.request, "image", None)
    return image.md5 if isinstance(image, Reference) else None


def _padding(resolved: ResolvedRequest) -> object:
    r = resolved.request
    return getattr(r, "inpaint_full_res_padding", None) if getattr(r, "inpaint_full_res", False) else None


def _upscaler(resolved: ResolvedRequest) -> object:
    known = resolved.others.get("hr_upscaler")
    return known.name if known else _hires("", "hr_upscaler").write(resolved)


def _template(part: str) -> Callable[[ResolvedRequest], object]:
    """What was asked for where styles or wildcards made the prompt: its text always, the rest where it is not empty."""

    def write(resolved: ResolvedRequest) -> object:
        template = resolved.request.template
        value = None if template is None else getattr(template, part)
        if part == "styles":
            return json.dumps(value, ensure_ascii=False) if value else None
        return value if part == "prompt" or value not in ("", "none") else None

    return write


ENTRIES: tuple[Entry, ...] = (
    # AUTOMATIC1111's fixed order
    _field("Steps", "steps"),
    _field("Sampler", "sampler_name"),
    _field("Schedule type", "scheduler"),
    _field("CFG scale", "cfg_scale"),
    _field("Image CFG scale", "image_cfg_scale"),
    _field("Seed", "seed"),
    _size("Size", "width", "height", lambda r: bool(r.width and r.height)),
    *_name("Model", lambda resolved: resolved.checkpoint, "checkpoint"),
    *_name("VAE", lambda resolved: resolved.vae, "vae_file"),
    Entry("Variation seed", _varied("subseed"), lambda text: {"subseed": text}, ("subseed",)),
    Entry(
        "Variation seed strength",
        _varied("subseed_strength"),
        lambda text: {"subseed_strength": text},
        ("subseed_strength",),
    ),
    _size(
        "Seed resize from",
        "seed_resize_from_w",
        "seed_resize_from_h",
        lambda r: r.seed_resize_from_w > 0 and r.seed_resize_from_h > 0,
    ),
    Entry("Denoising strength", _strength, lambda text: {"denoising_strength": text}, ("denoising_strength",)),
    Entry(
        "Conditional mask weight",
        _mask_weight,
        lambda text: {"inpainting_mask_weight": text},
        ("inpainting_mask_weight",),
    ),
    Entry(
        "Clip skip",
        lambda resolved: resolved.request.clip_skip if (resolved.request.clip_skip or 1) > 1 else None,
        lambda text: {"clip_skip": text},
        ("clip_skip",),
    ),
    _field("ENSD", "eta_noise_seed_delta"),
    Entry(network_text.RATIO, lambda resolved: network_text.ratio(resolved.request), lambda text: {}),
    Entry(network_text.RATIO_HR, lambda resolved: network_text.ratio_hr(resolved.request), lambda text: {}),
    Entry("Init image hash", _init_image, lambda text: {"image": {"name": "", "md5": text}}),
    Entry(
        "RNG",
        lambda resolved: _SOURCES.get(resolved.request.noise_source or ""),
        lambda text: {"noise_source": {"NV": "philox"}.get(text, text)},
        ("noise_source",),
    ),
    Entry("Tiling", _tiling, lambda text: {"tiling": {"True": "both", "False": "none"}.get(text, text)}, ("tiling",)),
    # its extra keys, in the order in which its parts add them: extensions, then itself
    _sd_upscale("overlap"),
    _sd_upscale("upscaler"),
    _sd_upscale("scale"),  # AUTOMATIC1111 leaves it out
    Entry("Tiled Diffusion", _tiles, _read_tiles, ("tiled_diffusion",)),
    Entry("Mask mode", _masked("inpainting_mask_invert", lambda on: "Inpaint not masked" if on else None),
          lambda text: {"inpainting_mask_invert": text == "Inpaint not masked"}, ("inpainting_mask_invert",)),
    Entry("Mask blur", _masked("mask_blur", lambda pixels: pixels), lambda text: {"mask_blur": text}, ("mask_blur",)),
    Entry("Inpaint area", _masked("inpaint_full_res", lambda on: "Only masked" if on else None),
          lambda text: {"inpaint_full_res": text == "Only masked"}, ("inpaint_full_res",)),
    Entry("Masked area padding", _padding, lambda text: {"inpaint_full_res_padding": text},
          ("inpaint_full_res_padding",)),
    Entry("Masked content", _masked("inpainting_fill", lambda fill: None if fill == "original" else fill),
          lambda text: {"inpainting_fill": text}, ("inpainting_fill",)),
    _field("Noise multiplier", "initial_noise_multiplier"),
    _field("Extra noise", "extra_noise"),
    _model("Hires checkpoint", "hr_checkpoint_name"),
    _hires("Hires sampler", "hr_sampler_name"),
    Entry("Hires prompt", _second_prompt("hr_prompt", "prompt"), lambda text: {"hr_prompt": text}, ("hr_prompt",)),
    Entry("Hires negative prompt", _second_prompt("hr_negative_prompt", "negative_prompt"),
          lambda text: {"hr_negative_prompt": text}, ("hr_negative_prompt",)),
    _hires("Hires schedule type", "hr_scheduler"),
    _hires("Hires CFG Scale", "hr_cfg"),
    Entry(
        "Hires upscale",
        lambda resolved: getattr(resolved.request, "hr_scale", None) if _by_scale(resolved.request) else None,
        lambda text: {"hr_scale": text, "enable_hr": True},
        ("hr_scale", "enable_hr"),
    ),
    _size("Hires resize", "hr_resize_x", "hr_resize_y", lambda r: _enlarges(r) and not _by_scale(r)),
    _hires("Hires steps", "hr_second_pass_steps"),
    Entry("Hires upscaler", _upscaler, lambda text: {"hr_upscaler": text}, ("hr_upscaler",)),
    _model("Refiner", "refiner_checkpoint"),
    _field("Refiner switch at", "refiner_switch_at"),
    _hashes("Lora hashes", "lora", "autov3"),
    _hashes("TI hashes", "embedding", "sha256"),
    _hashes("Hypernet hashes", "hypernet", "sha256"),  # AUTOMATIC1111 has no such pair
    *(_aesthetic(key, part) for key, part in _AESTHETIC.items()),
    Entry("Emphasis", _emphasis, lambda text: {"emphasis": text}, ("emphasis",)),
    _field("Eta", "eta"),
    Entry("Eta DDIM", lambda resolved: None, lambda text: {"eta": text}),
    _field("Sigma churn", "s_churn"),
    _field("Sigma tmin", "s_tmin"),
    _field("Sigma tmax", "s_tmax"),
    _field("Sigma noise", "s_noise"),
    _field("Schedule min sigma", "sigma_min"),
    _field("Schedule max sigma", "sigma_max"),
    _field("Schedule rho", "rho"),
    _field("Discard penultimate sigma", "discard_penultimate"),
    _field("NGMS", "s_min_uncond"),
    _field("Skip Early CFG", "guidance_start"),
    _field("CFG rescale", "guidance_rescale"),
    Entry("Soft inpainting enabled", _masked("soft_inpainting", lambda values: values and True),
          lambda text: {"soft_inpainting": {}} if text == "True" else {}, ("soft_inpainting",)),
    *(_soft(part) for part in ("schedule_bias", "preservation_strength", "transition_contrast_boost",
                               "mask_influence", "difference_threshold", "difference_contrast")),
    Entry("Dynamic thresholding enabled", lambda resolved: resolved.request.dynamic_thresholding and True,
          lambda text: {"dynamic_thresholding": {}} if text == "True" else {}, ("dynamic_thresholding",)),
    Entry("Mimic scale", _thresholding("mimic_scale"), lambda text: {"dynamic_thresholding": {"mimic_scale": text}}),
    Entry("Threshold percentile", _thresholding("percentile"), _per_cent),
    # The extension Dynamic Prompts writes the first two.
    Entry("Template", _template("prompt"), lambda text: {"template": {"prompt": text}}, ("template",)),
    Entry("Negative Template", _template("negative_prompt"), lambda text: {"template": {"negative_prompt": text}}),
    Entry("Template styles", _template("styles"), lambda text: {"template": {"styles": load_json(text, "styles")}}),
    Entry("Template dynamic", _template("dynamic"), lambda text: {"template": {"dynamic": text}}),
)  # fmt: skip


def _by_scale(request: Painting) -> bool:
    return isinstance(request, TextToImage) and request.enable_hr and not (request.hr_resize_x or request.hr_resize_y)


ELSEWHERE = ("prompt", "negative_prompt", "batch_size", "n_iter", "model", "vae", *network_text.FIELDS)
"""Fields that no entry speaks for: the prompts stand above, a picture is alone, models are told by name and hash; what
acts inside the network has pairs of its own."""


def _own(name: str, annotation: object) -> Entry:
    """A field that AUTOMATIC1111 does not know, under its own name; what is no plain value as JSON."""

    def write(resolved: ResolvedRequest) -> object:
        value = getattr(resolved.request, name, None)
        if value is None or value == _default(resolved.request, name):
            return None
        if name in ("original_width", "target_width", "original_height", "target_height"):
            return value if value != getattr(resolved.request, name.partition("_")[2]) else None  # as resolve fills it
        if isinstance(value, Reference):
            return reference_text(value, 64)
        if isinstance(value, BaseModel | tuple):
            return json.dumps(resolved.request.model_dump(mode="json", include={name})[name], ensure_ascii=False)
        return value

    pictures, structured = _holds(annotation, Reference), _holds(annotation, BaseModel) or _holds(annotation, tuple)

    def read(text: str) -> Fields:
        if pictures and name in ("image", "mask", "subimage"):
            return {name: read_reference(text)}
        return {name: load_json(text, name) if structured else text}

    return Entry(name.replace("_", " ").capitalize(), write, read, (name,))


def _holds(annotation: object, kind: type) -> bool:
    """Whether a type is `kind` or has it within."""
    if isinstance(annotation, type) and issubclass(annotation, kind):
        return True
    return getattr(annotation, "__origin__", None) is kind or any(_holds(part, kind) for part in get_args(annotation))


def _own_entries() -> Iterator[Entry]:
    known = {field for entry in ENTRIES for field in entry.fields} | set(ELSEWHERE)
    for cls in REQUESTS.values():
        for name, info in cls.model_fields.items():
            if name not in known:
                known.add(name)
                yield _own(name, info.annotation)


OWN_ENTRIES: tuple[Entry, ...] = tuple(_own_entries())
VERSION = "danqing "


def infotext(resolved: ResolvedRequest, more: Mapping[str, str] | None = None) -> str:
    """Prompt, negative prompt and parameters in AUTOMATIC1111's three-part form; `more` pairs stand before the last."""
    request = resolved.request
    pairs = [(entry.key, entry.write(resolved)) for entry in (*ENTRIES, *OWN_ENTRIES)]
    pairs += [*network_text.network_pairs(request), *control_pairs(resolved)]
    pairs += [*(more or {}).items(), ("Version", VERSION + __version__)]
    for step in resolved.enlarged:  # AUTOMATIC1111 puts it behind all that was there
        pairs += enlarged_pairs(step.request, step.before, step.after).items()
    line = ", ".join(f"{key}: {quote(value)}" for key, value in pairs if value is not None)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{negative}\n{line}".strip()


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt, and the pairs of the parameters line, as AUTOMATIC1111 tells them apart.

    The last line is parameters if it holds three pairs. A line that begins `Negative prompt:` begins the negative
    prompt. Lines lose the blanks at their ends.
    """
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last) if len(last) <= MAX_LINE else []
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    sides: list[list[str]] = [[], []]
    side = 0
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            side, line = 1, line[len("Negative prompt:") :].strip()
        if line or sides[side]:  # blank lines before the text are lost
            sides[side].append(line)
    return "\n".join(sides[0]), "\n".join(sides[1]), {key: unquote(value) for key, value in pairs}


def read_infotext(text: str) -> Told:
    """The request of an infotext, Danqing's, AUTOMATIC1111's, Forge's or of a tool that follows them.

    Raises DanqingError where the text holds no parameters.
    """
    prompt, negative_prompt, pairs = parse(text)
    if not pairs:
        raise DanqingError("the text is no infotext: its last line holds no 'Steps: 20, Sampler: ...'")
    own = pairs.get("Version", "").startswith(VERSION)
    entries = {entry.key: entry for entry in (*ENTRIES, *(OWN_ENTRIES if own else ()))}
    fields: Fields = {"prompt": prompt, "negative_prompt": negative_prompt}
    notes: list[str] = []
    for key, value in pairs.items():
        if key in entries:
            _merge(fields, entries[key].read(value))
        elif key not in _UNIMPORTANT and key not in network_text.KEYS and not KEY.fullmatch(key):
            notes.append(f"'{key}: {value[:60]}' has no counterpart here and is left out")
    if not own:
        fields |= read_controls(pairs, notes)
    fields |= network_text.read_network(pairs, notes)
    notes += sorted(_more_of_tiles(pairs.get("Tiled Diffusion", "")))
    kind = _kind(pairs)
    _fill(fields, pairs, kind, own)
    if "Hypernet" in pairs:  # from before there were tags
        fields["prompt"] += f"<hypernet:{pairs['Hypernet']}:{pairs.get('Hypernet strength', '1.0')}>"
    checkpoint, vae = fields.pop("checkpoint", None), fields.pop("vae_file", None)
    others = {name: Reference(**values) for name, values in fields.pop("others", {}).items()}
    return Told(
        "Danqing" if own else _tool(pairs),
        build(kind, fields, notes),
        Reference(**{"name": "", **checkpoint}) if checkpoint else None,
        Reference(**{"name": "", **vae}) if vae else None,
        others,
        tuple(notes),
    )


_UNIMPORTANT = ("Version", "User", "Hashes", "Hypernet", "Hypernet strength",
                "Hypernet hash", "Template", "Negative Template", "Civitai resources", "Civitai metadata", "Script",
                *(f"{part}{axis} {what}" for axis in "XYZ" for part, what in
                  (("", "Type"), ("", "Values"), ("Fixed ", "Values"))))  # fmt: skip


def _merge(fields: Fields, more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            _merge(fields[name], value)
        else:
            fields[name] = value


def _kind(pairs: Mapping[str, str]) -> Kind:
    if pairs.keys() & {"Left", "Right", "Up", "Down"}:
        return "outpaint"
    if pairs.keys() & {"Mask blur", "Mask mode", "Inpaint area", "Masked content", "Masked area padding"}:
        return "inpaint"
    enlarged = pairs.keys() & {"Hires upscale", "Hires resize", "Hires upscaler", "Hires steps", "First pass size"}
    return "img2img" if "Denoising strength" in pairs and not enlarged else "txt2img"


def _fill(fields: Fields, pairs: Mapping[str, str], kind: Kind, own: bool) -> None:
    """What a missing pair says, and what follows from the kind."""
    if own:
        fields.setdefault("noise_source", "gpu")
        fields.setdefault("clip_skip", "1")
        fields.setdefault("emphasis", DIALECT_EMPHASIS[fields.get("dialect", "danqing")])
    else:
        fields.setdefault("dialect", "a1111")
        if kind == "inpaint":
            fields["mask"] = UNRECORDED
            fields.setdefault("mask_blur", "0")  # which AUTOMATIC1111 leaves out
    if kind in ("inpaint", "outpaint"):
        fields.setdefault("inpainting_fill", "original")
    if kind == "outpaint":
        fields.pop("width", None), fields.pop("height", None)
    if kind == "txt2img":
        fields.pop("image", None)
        if pairs.keys() & {"Hires upscale", "Hires resize", "Hires upscaler", "Hires steps"}:
            fields["enable_hr"] = True
        else:
            fields.pop("denoising_strength", None)


def _tool(pairs: Mapping[str, str]) -> str:
    version = pairs.get("Version", "")
    for mark, tool in (("Fooocus", "Fooocus"), ("ComfyUI", "ComfyUI"), ("f", "Forge"), ("neo", "Forge")):
        if version.startswith(mark):
            return tool
    return "AUTOMATIC1111"
