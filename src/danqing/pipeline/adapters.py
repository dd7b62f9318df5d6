"""The LoRAs, embeddings and hypernetworks that a request's prompts name: found, read, applied to the models that
paint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from danqing.adapters import aesthetic
from danqing.adapters.apply import Use, apply, block_weights
from danqing.adapters.hypernetwork import TAG, with_hypernetworks
from danqing.adapters.hypernetwork import read as read_hypernetwork
from danqing.adapters.lora import TAGS, read
from danqing.adapters.schedule import Holds, always, averaged, between, by_places, in_turn, scheduled
from danqing.checkpoints.files import open_file
from danqing.checkpoints.hashes import addnet_hash
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.folders import Kind
from danqing.library.names import find, known
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.embeddings import speaking
from danqing.pipeline.models import Say
from danqing.pipeline.run import Studio
from danqing.pipeline.texts import area
from danqing.prompts.grammar import NetworkTag, understand
from danqing.request_parts import AestheticEmbedding, Reference
from danqing.requests import Painting, TextToImage

Want = TypeVar("Want")


@dataclass(frozen=True)
class Wanted:
    """What a tag asks for."""

    name: str
    te: float = 1.0
    unet: float = 1.0
    blocks: Mapping[str, float] | None = None
    holds: Holds = always
    """Of the U-Net; the text encoders are changed throughout."""


@dataclass(frozen=True, eq=False)
class Dressed:
    """What a painting is made with, after its adapters, and the files that took part."""

    studio: Studio
    references: Mapping[str, Reference] = field(default_factory=dict)
    """By the record's key, `lora:NAME`, `embedding:NAME`, `hypernet:NAME`, and `aesthetic`."""
    paths: dict[str, str | None] = field(default_factory=dict)


def tags(text: str, request: Painting) -> tuple[NetworkTag, ...]:
    """The `<lora:...>` tags of a prompt, as its dialect has it (only AUTOMATIC1111's language knows tags)."""
    prompt = understand(text, request.steps or 1, dialect=request.dialect)
    return tuple(tag for tag in prompt.networks if tag.kind in TAGS)


def wanted(tag: NetworkTag, steps: int, note: Say) -> Wanted:
    """`<lora:name:te:unet>` as AUTOMATIC1111 reads it (its extensions-builtin/Lora/extra_networks_lora.py): both are 1
    unless given, `unet` is `te` unless given, `te=` and `unet=` name them. Besides, as hako-mikan's
    sd-webui-lora-block-weight: `lbw=` a preset or numbers for the blocks, `start=`, `stop=` or `step=start-stop`, the
    steps of the U-Net between which it holds; with a point they are parts of all steps.

    Raises DanqingError for a number that is none.
    """

    def number(text: str) -> float:
        return _number(text, tag)

    def step(text: str) -> float:
        return number(text) * (steps if "." in text else 1)

    named, numbers = dict(tag.named), list(tag.positional[1:])
    te = number(named.pop("te", numbers[0] if numbers else "1"))
    unet = number(named.pop("unet", numbers[1])) if len(numbers) > 1 else number(named.pop("unet", str(te)))
    blocks = block_weights(named.pop("lbw")) if "lbw" in named else None
    first, _, last = named.pop("step", "").partition("-")
    first, last = named.pop("start", first), named.pop("stop", last)
    holds = between(step(first) if first else 0.0, step(last) if last else math.inf) if first or last else always
    for rest in (*numbers[2:], *(f"{key}={value}" for key, value in named.items())):
        note(f"{_shown(tag)}: '{rest}' has no effect")
    return Wanted(tag.positional[0] if tag.positional else "", te, unet, blocks, holds)


def _shown(tag: NetworkTag) -> str:
    return f"<{tag.kind}:{':'.join([*tag.positional, *(f'{k}={v}' for k, v in tag.named.items())])}>"


def _number(text: str, tag: NetworkTag) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DanqingError(f"prompt: {_shown(tag)[:120]}: '{text[:40]}' is no number")
    return value


def find_lora(name: str, settings: Settings | None = None) -> Path:
    """The file of the LoRA of that name, path, or alias (`ss_output_name`, the name that its trainer gave it).

    Raises DanqingError where there is none, or several.
    """
    settings = settings or load_settings()
    try:
        return find(name, "lora", settings).path
    except DanqingError:
        for entry in known(settings):
            if entry.kind == "lora" and _alias(entry.path) == name:
                return entry.path
        raise


ADAPTERS: tuple[Kind, ...] = ("lora", "embedding", "hypernetwork", "controlnet", "ip_adapter")
"""The library's kinds of files that change a model or steer it."""


def find_adapter(name: str) -> Path:
    """The adapter of whatever kind that has that name or path. Raises DanqingError where there is none, or several."""
    settings = load_settings()
    try:
        return find_lora(name, settings)
    except DanqingError as error:
        for kind in ADAPTERS[1:]:
            with suppress(DanqingError):
                return find(name, kind, settings).path
        raise error


def _alias(path: Path) -> str | None:
    try:
        return open_file(path).metadata.get("ss_output_name")
    except DanqingError:
        return None


def stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells a file, or those of a folder, as they are now: path, size and time of the last change of each."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def dress(request: Painting, studio: Studio) -> Dressed:
    """The studio whose models wear the adapters that the request's prompts name: embeddings in any of them, LoRAs and
    hypernetworks in the prompt; those of a hires prompt hold in its pass. And its aesthetic embedding.

    A name that is no file's is told to `studio.note`, and the picture is painted without it. Raises DanqingError for
    a file that is damaged or made for another family, and for a tag that makes no sense.
    """
    studio, loras = _with_loras(request, studio)
    studio, embeddings = speaking(request, studio)  # but for those that LoRAs have brought
    if embeddings:
        words = tuple((embedding.name, stamps(embedding.path)) for embedding in embeddings)
        studio = replace(studio, cache=studio.cache.setdefault(("embeddings", words), {}))
    studio, networks = _with_hypernetworks(request, studio)
    references = {f"lora:{name}": Reference(name=name, autov3=_autov3(path)) for name, path in loras.items()}
    paths = {f"lora:{name}": path for name, path in loras.items()}
    plain = {f"embedding:{embedding.path.stem}": embedding.path for embedding in embeddings}
    plain |= {f"hypernet:{name}": path for name, path in networks.items()}
    references |= {key: Reference(name=key.partition(":")[2]) for key in plain}
    studio, learned = _with_aesthetic(request, studio)
    references |= {key: Reference(name=path.name) for key, path in learned.items()}
    return Dressed(studio, references, {key: str(path) for key, path in (paths | plain | learned).items()})


def _with_loras(request: Painting, studio: Studio) -> tuple[Studio, dict[str, Path]]:
    """(the studio with the LoRAs of the prompt and of a hires prompt, their files by name)."""
    steps = request.steps or studio.model.family.defaults.steps
    asked = [[wanted(tag, steps, studio.note) for tag in tags(text, request)] for text in _passes(request)]
    names = dict.fromkeys(want.name for wants in asked for want in wants)
    files = _files("lora", names, find_lora, studio.note)
    if not files:
        _say_idle(request, 0, studio.note)
        return studio, files
    first, second = ([want for want in wants if want.name in files] for wants in asked)
    kept = tuple((stamps(files[want.name]), want.te, want.blocks and want.blocks["BASE"]) for want in first)
    _say_idle(request, max(len(first), len(second)), studio.note)
    places = _places(request, studio, names)

    def wear(model: Model, wants: Sequence[Wanted]) -> Model:
        return _wearing(model, wants, files, request, steps, places, studio.note)

    dressed = _dressed(studio, first, second, wear)
    return replace(dressed, cache=studio.cache.setdefault(("loras", kept), {})), files


def _with_hypernetworks(request: Painting, studio: Studio) -> tuple[Studio, dict[str, Path]]:
    """The same of `<hypernet:name:strength>`."""
    asked = [_hypernetworks(text, request, studio.note) for text in _passes(request)]
    names = dict.fromkeys(name for wants in asked for name, _ in wants)
    files = _files(TAG, names, lambda name: find(name, "hypernetwork", load_settings()).path, studio.note)
    if not files:
        return studio, files
    networks = {name: read_hypernetwork(path, name) for name, path in files.items()}
    first, second = ([want for want in wants if want[0] in files] for wants in asked)

    def wear(model: Model, wants: Sequence[tuple[str, float]]) -> Model:
        return with_hypernetworks(model, [(networks[name], strength) for name, strength in wants], studio.note)

    return _dressed(studio, first, second, wear), files


def _with_aesthetic(request: Painting, studio: Studio) -> tuple[Studio, dict[str, Path]]:
    """(the studio whose models of the same family read as the request's aesthetic embedding has them, its files)."""
    asked = request.aesthetic
    if asked is None:
        return studio, {}
    files = aesthetic_files(request)
    if not asked.text and (
        asked.text_negative or asked.slerp_angle != AestheticEmbedding.model_fields["slerp_angle"].default
    ):
        studio.note("aesthetic: slerp_angle and text_negative have no effect: there is no text")
    vectors = aesthetic.read(files["aesthetic"])
    projection = aesthetic.read_projection(files["aesthetic.projection"]) if asked.projection is not None else None

    def wear(model: Model, wants: Sequence[AestheticEmbedding]) -> Model:
        (settings,) = wants
        return aesthetic.with_aesthetic(model, settings, vectors, projection)

    cache = studio.cache.setdefault(("aesthetic", asked, *map(stamps, files.values())), {})
    return replace(_dressed(studio, [asked], [asked], wear), cache=cache), files


def aesthetic_files(request: Painting) -> dict[str, Path]:
    """The files of the request's aesthetic embedding by the record's field. Raises DanqingError for an unknown name."""
    asked = request.aesthetic
    if asked is None:
        return {}
    settings = load_settings()
    files = {"aesthetic": find(asked.embedding, "aesthetic_embedding", settings).path}
    if asked.projection is not None:
        files["aesthetic.projection"] = find(asked.projection, "text_encoder", settings).path
    return files


def _passes(request: Painting) -> tuple[str, str]:
    """The prompts of the first pass and of a hires fix's, which are often the same."""
    hires = request.hr_prompt if isinstance(request, TextToImage) and request.enable_hr else ""
    return request.prompt, hires or request.prompt


def _hypernetworks(text: str, request: Painting, note: Say) -> list[tuple[str, float]]:
    """(name, strength) of a prompt's tags, as AUTOMATIC1111 reads them (modules/extra_networks_hypernet.py)."""
    found = []
    for tag in understand(text, request.steps or 1, dialect=request.dialect).networks:
        if tag.kind == TAG:
            name, strength = (*tag.positional[:2], *("", "1")[len(tag.positional) :])
            found.append((name, _number(strength, tag)))
            for extra in (*tag.positional[2:], *(f"{key}={value}" for key, value in tag.named.items())):
                note(f"{_shown(tag)}: '{extra}' has no effect")
    return found


def _files(kind: str, names: Iterable[str], look: Callable[[str], Path], note: Say) -> dict[str, Path]:
    """The files of those names that are some file's; the others are told."""
    files: dict[str, Path] = {}
    for name in names:
        try:
            files[name] = look(name)
        except DanqingError as error:
            note(f"<{kind}:{name}>: {error}; painted without it")
    return files


def _dressed(
    studio: Studio, first: Sequence[Want], second: Sequence[Want], wear: Callable[[Model, Sequence[Want]], Model]
) -> Studio:
    """The studio whose model wears what the prompt asks for, and its further ones what the last pass's does."""
    strange = {name for name, other in studio.others.items() if other.family.name != studio.model.family.name}
    others = {name: other if name in strange else wear(other, second) for name, other in studio.others.items()}
    for name in strange:
        title = others[name].family.title
        studio.note(f"{name}: {title} paints without the request's adapters, which are for another family")
    if second != first and "hr_checkpoint_name" not in others:
        others["hr_checkpoint_name"] = wear(studio.model, second)
    return replace(studio, model=wear(studio.model, first), others=others)


def _wearing(
    model: Model,
    wants: Sequence[Wanted],
    files: Mapping[str, Path],
    request: Painting,
    steps: int,
    places: Mapping[str, Tensor],
    note: Say,
) -> Model:
    """`model` with LoRAs as the request has them go together. Raises DanqingError where what tags and fields say
    clashes."""
    uses = [
        (Use(read(files[want.name], model.family, want.name), want.te, want.unet, want.blocks), want.holds)
        for want in wants
    ]
    plain, timed = [use for use, _ in uses], any(holds is not always for _, holds in uses)
    field = "lora_regions" if places else "lora_mode"
    if timed and (places or (request.lora_mode != "merge" and len(uses) > 1)):
        raise DanqingError(f"{field}: does not go with start=, stop= and step= in the tags of LoRAs; leave them out")
    here = [(use, places[want.name]) for use, want in zip(plain, wants) if want.name in places]
    if here:
        everywhere = [use for use, want in zip(plain, wants) if want.name not in places]
        return by_places(model, here, note, everywhere)
    if request.lora_mode == "composite" and len(uses) > 1:
        return averaged(model, plain, note)
    if request.lora_mode == "switch" and len(uses) > 1:
        longest = max(steps, getattr(request, "hr_second_pass_steps", 0))
        return scheduled(model, in_turn(plain, request.lora_switch_every), longest, note)
    return scheduled(model, uses, steps, note) if timed else apply(model, plain, note)


def _places(request: Painting, studio: Studio, names: Collection[str]) -> dict[str, Tensor]:
    """Where LoRAs hold, by their names: (h, w) from 0 to 1 on the latents' grid.

    Raises DanqingError for one that no tag names.
    """
    cell = studio.model.family.autoencoder.downscale
    cells = ((request.width or 0) // cell, (request.height or 0) // cell)
    places: dict[str, Tensor] = {}
    for index, region in enumerate(request.lora_regions):
        if region.name not in names:
            raise DanqingError(
                f"lora_regions: the prompt has no <lora:{region.name}:1>; write it there, with its weight"
            )
        held = area(region, cells, studio.pictures.get(f"lora_regions.{index}.mask"))[0, 0]
        places[region.name] = torch.maximum(held, places[region.name]) if region.name in places else held
    return places


def _say_idle(request: Painting, count: int, note: Say) -> None:
    """Says which of the fields about LoRAs have no effect on so many of them."""
    if request.lora_mode != "merge" and count < 2:
        note(f"lora_mode has no effect: there {'is one LoRA' if count else 'are no LoRAs'} in the prompt")
    if request.lora_switch_every != 1 and request.lora_mode != "switch":
        note("lora_switch_every has no effect: lora_mode is not switch")
    if request.lora_regions and not count:
        note("lora_regions has no effect: there are no LoRAs in the prompt")


def _autov3(path: Path) -> str | None:
    """The hash that AUTOMATIC1111 names a LoRA by: its trainer wrote it down, or it is computed."""
    file = open_file(path) if path.is_file() else None
    if file is None or file.format != "safetensors":
        return None
    told = file.metadata.get("sshs_model_hash", "")
    return told if re.fullmatch(r"[0-9a-f]{64}", told) else addnet_hash(path)
