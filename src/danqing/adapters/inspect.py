"""What a file of the LoRA family says of itself, without a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danqing.adapters.formulas import ALGORITHMS
from danqing.adapters.keys import by_layer
from danqing.adapters.lora import kind_of, likely, name_of, open_adapter
from danqing.errors import DanqingError

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
)
"""(metadata key of kohya's or Stability's, in words) of what is shown, in this order."""


@dataclass(frozen=True)
class Summary:
    """An adapter as its header tells it."""

    name: str
    alias: str
    """What its trainer called it; empty where that is unknown."""
    path: Path
    kind: str
    """`LoRA`, `LoCon, norm layers` ..."""
    family: str
    """Title of the family that it seems to be made for; empty where nothing tells."""
    unet: int
    """Layers of the U-Net."""
    text: int
    """Layers of text encoders."""
    ranks: tuple[int, ...]
    words: tuple[str, ...]
    """Trigger words: those that its maker names, else the tags that most of its training pictures have."""
    settings: Mapping[str, str]
    """How it was trained, in words, from its metadata."""


def inspect_adapter(path: Path | str) -> Summary:
    """What the file is. No tensor is read. Raises DanqingError: damaged, or nothing of the LoRA family in it."""
    file = open_adapter(path)
    found, _ = by_layer(file.entries)
    kinds: Counter[str] = Counter()
    ranks: set[int] = set()
    layers: set[str] = set()
    for name, parts in found.items():
        for row in ALGORITHMS:
            if not row.needs <= parts.keys():
                continue
            kinds[kind_of(row, parts)] += 1
            layers.add(name)
            if row.rank is not None:
                ranks.add(row.rank({part: torch.empty(entry.shape, device="meta") for part, entry in parts.items()}))
    if not layers:
        raise DanqingError(f"{file.path}: holds no layer of a LoRA or of its kin")
    told = file.metadata
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
        {words: told[key][:200] for key, words in SETTINGS if told.get(key) not in (None, "", "None")},
    )


def trigger_words(path: Path, metadata: Mapping[str, str], most: int = 8) -> tuple[str, ...]:
    """The `activation text` of AUTOMATIC1111's card beside the file (`name.json`), or the file's own trigger phrase; else
    the most frequent of kohya's training tags, at most `most`."""
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
