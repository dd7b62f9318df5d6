"""Files of the LoRA family become adapters: patches of a family's weights, and what is known of them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danqing.adapters.embedding import Embedding, bundled
from danqing.adapters.formulas import ALGORITHMS, NUMBERS, Algorithm, plain
from danqing.adapters.keys import Layer, Parts, by_layer, layers_of
from danqing.checkpoints.files import TensorFile, open_file
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Family
from danqing.models.weights import WeightPatch

TAGS = ("lora", "lyco")
"""What a prompt calls such files by: `<lora:name:1>`."""
_FILES = tuple(
    f"{stem}.{suffix}" for suffix in ("safetensors", "bin") for stem in ("adapter_model", "pytorch_lora_weights")
)
"""What PEFT and diffusers call it in a folder."""
_STRANGERS: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_transformer_blocks|single_blocks", "Flux"),
    (r"joint_blocks|lora_te3_|add_k_proj", "Stable Diffusion 3"),
    (r"prior_unet", "Stable Cascade"),
    (r"motion_modules", "AnimateDiff"),
    (r"^vae\.|lora_vae_", "an autoencoder"),
)
"""Keys that tell other architectures."""
Numbers = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file does to the weights of a family's networks. Its tensors are read as they are applied."""

    name: str
    path: Path
    kind: str
    """In words: `LoRA`, `LoCon with DoRA`, `LoKr, norm layers`."""
    family: str
    """The name of the family whose layers the patches name."""
    patches: tuple[WeightPatch, ...]
    layers: int
    """How many layers the file names, and of them..."""
    matched: int
    """... how many the family has."""
    ranks: tuple[int, ...] = ()
    """All that occur, rising."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was left aside, in words."""
    embeddings: tuple[Embedding, ...] = ()
    """Words that it brings along."""

    @property
    def report(self) -> str:
        """`722 of 722 layers, rank 32`."""
        ends = dict.fromkeys(str(rank) for rank in (*self.ranks[:1], *self.ranks[-1:]))
        return f"{self.matched} of {self.layers} layers" + (f", rank {' to '.join(ends)}" if ends else "")

    @property
    def alias(self) -> str:
        """The name that its trainer gave it (kohya's `ss_output_name`), else the file's."""
        return self.metadata.get("ss_output_name") or self.name


def read(path: Path | str, family: Family, name: str | None = None) -> Adapter:
    """The adapter in a file of the LoRA family, or in a folder of PEFT's or diffusers', for models of `family`.

    kohya's, LyCORIS', PEFT's, diffusers' (old and new), OneTrainer's and AUTOMATIC1111's spellings; the algorithms of
    `formulas.ALGORITHMS`, mixed as they come. Only headers and single numbers are read.
    Raises DanqingError: damaged; no LoRA; no layer of it is the family's, or one has another shape (the line says which
    family it is likely for); a layer stands twice; rank 0.
    """
    return read_opened(open_adapter(path), family, name)


def read_opened(file: TensorFile, family: Family, name: str | None = None) -> Adapter:
    """`read` of what is open already: a file, or the part of one that is a LoRA."""
    groups, strangers, notes = _matched(file, family)
    settings = _settings(file)
    patches: list[WeightPatch] = []
    ranks: set[int] = set()
    kinds: dict[str, None] = {}
    misfits: list[str] = []
    unused: list[str] = []
    checked: dict[Any, int | None] = {}  # layers are many, their shapes are few
    for layer, parts in groups:
        rows = [row for row in ALGORITHMS if row.needs <= parts.keys()]
        rows = [row for row in rows if row.parameter == "weight" or layer.has_bias]
        used = {part for row in rows for part in row.needs | row.may}
        unused += [f"{layer.name}.{part}" for part in parts if part not in used]
        numbers = _numbers(file, layer, parts, rows, settings)
        for row in rows:
            try:
                rank = _check(row, layer, parts, numbers, checked)
            except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
                if any(0 in parts[part].shape for part in row.needs):
                    raise DanqingError(f"{file.path}: layer {layer.name} has rank 0: there is nothing in it") from error
                misfits.append(f"{layer.name}: {str(error).splitlines()[0][:120]}")
                continue
            ranks |= set() if rank is None else {rank}
            kinds[kind_of(row, parts)] = None
            patches.append(_patch(row, layer, parts, numbers))
    if misfits:
        raise DanqingError(_unlike(file, family, f"{len(misfits)} layers have other shapes ({misfits[0]})"))
    if not patches:
        raise DanqingError(f"{file.path}: changes its layers in no way that Danqing knows: {_few(file.entries)}")
    if strangers:
        notes.append(f"{len(strangers)} layers are not of {family.title} and are left out: {_few(strangers)}")
    if unused:
        notes.append(f"{len(unused)} tensors have no use and are left out: {_few(unused)}")
    return Adapter(
        name or name_of(file), file.path, ", ".join(kinds), family.name,
        tuple(patches), len(groups) + len(strangers), len(groups), tuple(sorted(ranks)), file.metadata, tuple(notes),
        bundled(file, family),
    )  # fmt: skip


def open_adapter(path: Path | str) -> TensorFile:
    """The file, or the one in PEFT's or diffusers' folder. Raises DanqingError as `open_file` does."""
    path = Path(path)
    inside = next((path / name for name in _FILES if (path / name).is_file()), None)
    return open_file(inside or path)


def name_of(file: TensorFile) -> str:
    """The file's name, or that of its folder where all files are called alike."""
    return file.path.parent.name if file.path.name in _FILES else file.path.stem


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(name[:120] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- from keys to layers ----------------------------------------------------------------------------------------------


def _matched(file: TensorFile, family: Family) -> tuple[list[tuple[Layer, Parts]], list[str], list[str]]:
    """(the family's layers with their parts, names of layers that it does not have, notes)."""
    found, doubled = by_layer(file.entries)
    if doubled:
        raise DanqingError(f"{file.path}: one tensor of a layer stands twice: {_few(doubled)}")
    embedded = {name for name in found if name.startswith("bundle_emb.")}
    notes = []
    if embedded:
        words = {name.split(".")[1] for name in embedded}
        notes.append(f"carries an embedding, which prompts call {_few(sorted(words))}")
    table = layers_of(family)
    by_name: dict[Layer, tuple[str, Parts]] = {}
    strangers = []
    for name, parts in found.items():
        layer = table.get(name)
        if layer is None:
            strangers += [] if name in embedded else [name]
            continue
        other, _ = by_name.get(layer, (name, parts))
        canonical = [n.endswith(layer.name.replace(".", "_")) for n in (other, name)]
        if other != name and canonical[0] == canonical[1]:
            raise DanqingError(f"{file.path}: layer {layer.name} stands twice, as {other} and as {name}")
        if other == name or canonical[1]:
            by_name[layer] = name, parts
    twice = len(found) - len(embedded) - len(strangers) - len(by_name)
    if twice:
        notes.append(f"{twice} layers stand twice, by diffusers' names and by others: the former count")
    if not by_name:
        raise DanqingError(_unlike(file, family, f"none of its {len(file.entries)} keys is a layer's"))
    return [(layer, parts) for layer, (_, parts) in by_name.items()], strangers, notes


def _unlike(file: TensorFile, family: Family, why: str) -> str:
    made_for = likely(file)
    hint = f"; it is made for {made_for}" if made_for and made_for != family.title else ""
    return f"{file.path}: does not fit {family.title}: {why}{hint}"


def likely(file: TensorFile) -> str:
    """The title of the architecture that a file seems to be made for; empty if nothing tells."""
    keys = "\n".join(file.entries)
    for pattern, title in _STRANGERS:
        if re.search(pattern, keys, re.MULTILINE):
            return title
    told = file.metadata.get("modelspec.architecture", "") + " " + file.metadata.get("ss_base_model_version", "")
    for mark, row in (("sdxl", "sdxl"), ("xl-v1", "sdxl"), ("v2", "sd2"), ("v1", "sd1")):
        if mark in told:
            return FAMILIES[row].title
    widths = Counter(
        entry.shape[1]
        for key, entry in file.entries.items()
        if re.search(r"attn2[._]to_[kv].*(down|lora_A|w\d_b)", key) and len(entry.shape) >= 2
    )
    titles = {row.denoiser.context_width: row.title for row in reversed(FAMILIES.values())}
    return titles.get(widths.most_common(1)[0][0], "") if widths else ""


# --- one layer --------------------------------------------------------------------------------------------------------


def _numbers(
    file: TensorFile, layer: Layer, parts: Parts, rows: Iterable[Algorithm], settings: Mapping[str, Mapping[str, Any]]
) -> Numbers:
    """The parts that are single numbers, as float32 on the CPU; PEFT's alpha / rank where the file has no alpha."""
    numbers = {}
    for part in NUMBERS:
        if part not in parts:
            continue
        if parts[part].numel != 1:
            raise DanqingError(f"{file.path}: {part} of layer {layer.name} is not one number but {parts[part].numel}")
        numbers[part] = parts[part].load().float().reshape(())
        if not math.isfinite(float(numbers[part])):
            raise DanqingError(f"{file.path}: {part} of layer {layer.name} is {float(numbers[part])}; it is damaged")
    config = settings.get(layer.network, settings.get("", {}))
    if not numbers and config and any("scale" in row.may for row in rows):
        numbers["scale"] = torch.tensor(_peft_scale(file, config, layer.name))
    if "ia3_l" in parts and isinstance(config.get("feedforward_modules"), list):
        inputs = layer.name.endswith(tuple(str(name) for name in config["feedforward_modules"]))
        numbers["on_input"] = torch.tensor(float(inputs))
    return numbers


def _check(row: Algorithm, layer: Layer, parts: Parts, numbers: Numbers, checked: dict[Any, int | None]) -> int | None:
    """The rank; the formula is run on zeros of these shapes, and raises what torch raises where they do not fit."""
    shape = layer.shape if row.parameter == "weight" else layer.shape[:1]
    used = sorted((row.needs | row.may) & (parts.keys() | numbers.keys()))
    shapes = tuple((part, float(numbers[part]) if part in numbers else parts[part].shape) for part in used)
    if (row, shape, shapes) in checked:
        return checked[row, shape, shapes]
    if row.norm and plain(parts):  # nearly all layers of nearly all files: their shapes tell without arithmetic
        up, down = parts["lora_up.weight"].shape, parts["lora_down.weight"].shape
        if (
            up[0] == shape[0]
            and down[0]
            and math.prod(up[1:]) == down[0]
            and math.prod(down[1:]) == math.prod(shape[1:])
        ):
            return down[0]
    zero = torch.zeros(())  # takes no memory, and costs less than what torch imports for its meta device
    tensors = {part: numbers[part] if part in numbers else zero.expand(parts[part].shape) for part in used}
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise ValueError("it is empty")
    result = row.change(tensors, zero.expand(shape), 1.0)
    if result.shape != shape:
        raise ValueError(f"{list(result.shape)} for {list(shape)}")
    rank = checked[row, shape, shapes] = row.rank(tensors) if row.rank else None
    return rank


def _patch(row: Algorithm, layer: Layer, parts: Parts, numbers: Numbers) -> WeightPatch:
    wanted = {part: parts[part] for part in (row.needs | row.may) & parts.keys() if part not in numbers}

    def loaded(device: torch.device) -> Numbers:
        return {part: entry.load().to(device, torch.float32) for part, entry in wanted.items()} | numbers

    def change(weight: Tensor, strength: float) -> Tensor:
        return row.change(loaded(weight.device), weight, strength)

    size = row.norm if row.norm and plain(parts) else None
    norm = None if size is None else lambda: size(loaded(torch.device("cpu")))
    return WeightPatch(layer.network, f"{layer.name}.{row.parameter}", change, norm=norm)


def kind_of(row: Algorithm, parts: Parts) -> str:
    """LoCon is LoRA of convolutions; DoRA is a magnitude beside any of them."""
    core = parts.get("lora_mid.weight", parts.get("lora_down.weight"))
    name = "LoCon" if row.name == "LoRA" and core is not None and math.prod(core.shape[2:]) > 1 else row.name
    return f"{name} with DoRA" if {"dora_scale", "magnitude"} & row.may & parts.keys() else name


# --- PEFT's settings --------------------------------------------------------------------------------------------------


def _settings(file: TensorFile) -> Mapping[str, Mapping[str, Any]]:
    """Component ('' for all) -> PEFT's configuration: in the folder beside it, or in diffusers' metadata."""
    beside = file.path.parent / "adapter_config.json"
    if file.path.stem == "adapter_model" and beside.is_file():
        try:
            return {"": _table(beside.read_text(encoding="utf-8"))}
        except (OSError, ValueError) as error:
            raise DanqingError(f"{beside}: cannot be read as PEFT's settings: {str(error)[:200]}") from error
    if "lora_adapter_metadata" not in file.metadata:
        return {}
    try:
        flat = _table(file.metadata["lora_adapter_metadata"])
    except ValueError as error:
        raise DanqingError(
            f"{file.path}: its metadata lora_adapter_metadata are damaged: {str(error)[:200]}"
        ) from error
    components: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.rpartition(".") if not key.startswith(("unet.", "text_")) else key.partition(".")
        components.setdefault(component, {})[name] = value
    return components


def _table(text: str) -> dict[str, Any]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("it is no table")
    return table


def _peft_scale(file: TensorFile, config: Mapping[str, Any], layer: str) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023); patterns hold for their layers."""

    def value(name: str, pattern: str, default: Any) -> float:
        patterns = config.get(pattern) or {}
        for key, number in patterns.items() if isinstance(patterns, dict) else ():
            if layer == key or layer.endswith(f".{key}") or re.fullmatch(rf"(.*\.)?({key})", layer):
                return float(number)
        return float(config.get(name) or default)

    try:
        rank = value("r", "rank_pattern", 1)
        alpha = value("lora_alpha" if "lora_alpha" in config else "alpha", "alpha_pattern", rank)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise DanqingError(f"{file.path}: PEFT's settings of rank and alpha make no sense: {error}") from error
