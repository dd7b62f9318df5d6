"""What an adapter's file says of itself, without a model: LoRAs at length, other kinds in a few words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from danqing.adapters import embedding, hypernetwork
from danqing.adapters.fast import lora_known
from danqing.adapters.formulas import ALGORITHMS
from danqing.adapters.keys import by_layer
from danqing.adapters.lora import kind_of as algorithm_of
from danqing.adapters.lora import likely, name_of, open_adapter
from danqing.checkpoints.files import TensorFile, open_component
from danqing.checkpoints.image_prompts import TOWERS, ip_adapter_config
from danqing.checkpoints.recognise import kind_of
from danqing.errors import DanqingError
from danqing.families import SD1, SD2, SDXL

SETTINGS: tuple[tuple[str, str], ...] = (
    ("ss_sd_model_name", "base model"),
    ("ss_base_model_version", "base version"),
    ("ss_resolution", "resolution"),
    ("ss_num_train_images", "images"),
    ("ss_steps", "steps"),
    ("ss_num_epochs", "epochs"),
    ("ss_total_batch_size", "batch size"),
    ("ss_learning_rate", "learning rate"),
    ("ss_unet_lr", "U-Net's learning rate"),
    ("ss_text_encoder_lr", "text encoder's learning rate"),
    ("ss_optimizer", "optimizer"),
    ("ss_network_dim", "rank"),
    ("ss_network_alpha", "alpha"),
    ("ss_network_module", "network"),
    ("ss_clip_skip", "clip skip"),
    ("ss_noise_offset", "noise offset"),
    ("ss_training_comment", "comment"),
    ("modelspec.title", "title"),
    ("modelspec.author", "author"),
    ("modelspec.description", "description"),
    ("modelspec.license", "license"),
    ("modelspec.date", "date"),
    ("step", "steps"),
    ("sd_checkpoint_name", "base model"),
)
"""(metadata key of kohya's, Stability's or AUTOMATIC1111's, in words) of what is shown, in this order."""


@dataclass(frozen=True)
class Summary:
    """An adapter as its header tells it."""

    name: str
    alias: str
    """What its trainer called it; empty where that is unknown."""
    path: Path
    kind: str
    """`LoRA`, `LoCon, norm layers`, `textual inversion embedding`, `hypernetwork`, `ControlNet` ..."""
    family: str
    """Title of the family that it seems to be made for; empty where nothing tells."""
    unet: int = 0
    """A LoRA's layers of the U-Net."""
    text: int = 0
    """A LoRA's layers of text encoders."""
    ranks: tuple[int, ...] = ()
    """A LoRA's."""
    words: tuple[str, ...] = ()
    """Trigger words: those that its maker names, else the tags that most of its training pictures have."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """How it was trained, in words, from its metadata."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What other kinds than LoRAs tell: an embedding's vectors, a hypernetwork's layers."""


def inspect_adapter(path: Path | str) -> Summary:
    """What the file or folder is, by its header. Raises DanqingError: damaged, or no adapter."""
    file = _opened(Path(path))
    kind = kind_of(file.shapes)
    if kind.name == "embedding":
        return _embedding(file)
    if kind.name == "hypernetwork":
        return _hypernetwork(file)
    if kind.name == "ip-adapter":
        return _ip_adapter(file)
    if kind.name in _OTHERS:
        title = kind.title.partition(" ")[2]  # without its article
        return Summary(name_of(file), "", file.path, title, _family_of(file), settings=_settings(file.metadata))
    return _lora(file)


_OTHERS = ("controlnet", "lllite", "t2i-adapter", "photomaker")
_TEXTS = {row.denoiser.context_width: row.title for row in (SDXL, SD2, SD1)}


def _opened(path: Path) -> TensorFile:
    whole = open_component(path) if path.is_dir() and not (path / "adapter_config.json").is_file() else None
    return whole or open_adapter(path)


def _family_of(file: TensorFile) -> str:
    """By the width of the text that its attention layers take."""
    widths = {
        e.shape[-1] for key, e in file.entries.items() if e.shape and key.endswith((".to_k.weight", "_ip.weight"))
    }
    return next((title for width, title in _TEXTS.items() if width in widths), "")


def _settings(metadata: Mapping[str, str]) -> dict[str, str]:
    return {words: metadata[key][:200] for key, words in SETTINGS if metadata.get(key) not in (None, "", "None")}


def _embedding(file: TensorFile) -> Summary:
    placed = embedding.tensors(file)
    sizes = embedding.widths(placed)
    shape = next(iter(placed.values())).shape
    facts = {"vectors": str(shape[0] if len(shape) > 1 else 1), "width": " and ".join(map(str, sizes))}
    family = embedding.made_for(sizes)
    name, told = file.path.stem, _settings(file.metadata)
    alias = file.metadata.get("name", "")
    return Summary(
        name, alias, file.path, "textual inversion embedding", family, words=(name,), settings=told, facts=facts
    )


def _hypernetwork(file: TensorFile) -> Summary:
    network = hypernetwork.read(file.path)
    facts = {
        "sizes": ", ".join(map(str, network.pairs)),
        "layers": ", ".join(f"{ratio:g}" for ratio in network.structure),
        "activation": network.activation or "linear",
    }
    family, alias = hypernetwork.likely(set(network.pairs)), file.metadata.get("name", "")
    told = _settings(file.metadata)
    return Summary(network.name, alias, file.path, "hypernetwork", family, settings=told, facts=facts)


def _ip_adapter(file: TensorFile) -> Summary:
    """What it looks at, and through which of CLIP's image towers."""
    config = ip_adapter_config(file)
    titles = {"full": "IP-Adapter full", "face": "IP-Adapter FaceID", "face plus": "IP-Adapter FaceID plus"}
    plus = "InstantID's IP-Adapter" if config.look == "face" else "IP-Adapter plus"
    facts = {"looks at": {"vector": "pictures", "patches": "pictures"}.get(config.look, config.look)}
    if config.look != "face":
        answer = "vector" if config.look == "vector" else "patches"
        facts["through"] = TOWERS.get((answer, config.feature_width), f"{config.feature_width} numbers")
    if config.kind != "full":
        facts["tokens"] = str(config.tokens)
    title = plus if config.kind == "plus" else titles.get(config.kind, "IP-Adapter")
    told = _settings(file.metadata)
    return Summary(name_of(file), "", file.path, title, _family_of(file), settings=told, facts=facts)


def _lora(file: TensorFile) -> Summary:
    """No tensor is read."""
    found, _ = by_layer(file.entries)
    kinds: Counter[str] = Counter()
    ranks: set[int] = set()
    layers: set[str] = set()
    for name, parts in found.items():
        for row in ALGORITHMS:
            if not row.needs <= parts.keys():
                continue
            kinds[algorithm_of(row, parts)] += 1
            layers.add(name)
            if row.rank is not None:
                ranks.add(row.rank({part: torch.empty(entry.shape, device="meta") for part, entry in parts.items()}))
    if not layers:
        raise DanqingError(f"{file.path}: holds no layer of a LoRA or of its kin")
    told, few = file.metadata, lora_known(name_of(file), file.metadata)
    text = sum("text_model" in name or name.startswith(("lora_te", "text_encoder", "clip_")) for name in layers)
    return Summary(
        name_of(file),
        told.get("ss_output_name", ""),
        file.path,
        ", ".join(kind for kind, _ in kinds.most_common()),
        likely(file),
        len(layers) - text,
        text,
        tuple(sorted(ranks)),
        trigger_words(file.path, told),
        ({"few steps": f"{few.row.title}, by {few.by}"} if few else {}) | _settings(told),
    )


def trigger_words(path: Path, metadata: Mapping[str, str], most: int = 8) -> tuple[str, ...]:
    """The `activation text` of AUTOMATIC1111's card beside the file (`name.json`), or the file's own trigger phrase;
    else the most frequent of kohya's training tags, at most `most`."""
    for phrase in (_json_table(_beside(path)).get("activation text"), metadata.get("modelspec.trigger_phrase")):
        if isinstance(phrase, str) and phrase.strip():
            return tuple(word.strip() for word in phrase.split(",") if word.strip())
    counts: Counter[str] = Counter()
    for tags in _json_table(metadata.get("ss_tag_frequency", "")).values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[str(tag).strip()] += count if isinstance(count, int) else 0
    return tuple(_first(counts, most))


def _first(counts: Counter[str], most: int) -> Iterable[str]:
    return (tag for tag, count in counts.most_common(most) if tag and count > 0)


def _beside(path: Path) -> str:
    try:
        return path.with_suffix(".json").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _json_table(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text) if text else {}
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}
