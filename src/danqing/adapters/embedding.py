"""Textual inversion (Gal et al. 2022): files of vectors that stand for a word in prompts.

Layouts: AUTOMATIC1111's (`string_to_param`), kohya's (`emb_params`), SDXL's (`clip_l` and `clip_g`, in diffusers'
training script also `text_encoders_0` and `_1`), and one tensor alone under whatever name, as diffusers writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from danqing.checkpoints.files import Entry, TensorFile, open_file
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Family, Model
from danqing.prompts.chunks import LENGTH

TOWERS: Mapping[str, str] = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "clip_h": "text_encoder",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
"""Whose vectors a tensor of that name has, by text encoder."""
ANY = ""
"""Stands for the one text encoder of a file that names none."""
_BUNDLED = "bundle_emb."


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word's vectors for a family's text encoders."""

    name: str
    """What prompts call it."""
    path: Path
    vectors: Mapping[str, Tensor]
    """Text encoder -> (n, C) float32; as many for each."""

    @property
    def count(self) -> int:
        return len(next(iter(self.vectors.values())))


def read(path: Path | str, family: Family, name: str | None = None) -> Embedding:
    """The embedding in a file, for models of `family`; `name` is what prompts call it, else the file's own name.

    Raises DanqingError: damaged; no embedding, or several; made for text encoders of another width (the line says which
    family they are of); numbers that are not finite; more vectors than a chunk of a prompt holds.
    """
    file = open_file(path)
    placed = _placed(file, tensors(file), family)
    return Embedding(name or file.path.stem, file.path, {tower: _vectors(file, e) for tower, e in placed.items()})


def bundled(file: TensorFile, family: Family) -> tuple[Embedding, ...]:
    """The embeddings inside a LoRA file (`bundle_emb.NAME....`, OneTrainer's and AUTOMATIC1111's), by their names.

    Raises DanqingError as `read` does.
    """
    inside: dict[str, dict[str, Entry]] = {}
    for key, entry in file.entries.items():
        if key.startswith(_BUNDLED):
            name, _, rest = key.removeprefix(_BUNDLED).partition(".")
            inside.setdefault(name, {})[rest] = entry
    found = []
    for name, entries in inside.items():
        placed = _placed(file, tensors(replace(file, entries=entries)), family)
        found.append(Embedding(name, file.path, {tower: _vectors(file, e) for tower, e in placed.items()}))
    return tuple(found)


def with_embeddings(model: Model, embeddings: Iterable[Embedding]) -> Model:
    """`model` in whose prompts these words stand for their vectors. `model` itself is left as it is.

    Raises DanqingError for one that was read for other text encoders.
    """
    found = {}
    for embedding in embeddings:
        towers = {encoder.name: encoder.config.width for encoder in model.family.text_encoders}
        if {name: vectors.shape[1] for name, vectors in embedding.vectors.items()} != towers:
            raise DanqingError(f"{embedding.path}: was read for other text encoders than {model.family.title}'s")
        found[embedding.name] = embedding.vectors
    return replace(model, embeddings={**model.embeddings, **found}) if found else model


def tensors(file: TensorFile) -> dict[str, Entry]:
    """Text encoder (`ANY` where the file names none) -> its vectors, (n, C) or (C,).

    Raises DanqingError: none, or several words in one file.
    """
    named = {TOWERS[key]: entry for key, entry in file.entries.items() if key in TOWERS}
    if named:
        return named
    params = [entry for key, entry in file.entries.items() if key.startswith("string_to_param.")]
    found = params or [entry for entry in file.entries.values() if entry.dtype.is_floating_point]
    if len(found) != 1:
        count = "several words" if len(found) > 1 else "no vectors"
        raise DanqingError(f"{file.path}: is no textual inversion embedding: it holds {count}")
    return {ANY: found[0]}


def widths(placed: Mapping[str, Entry]) -> tuple[int, ...]:
    """Of the text encoders' vectors, in their order."""
    return tuple(placed[tower].shape[-1] for tower in sorted(placed) if placed[tower].shape)


def made_for(sizes: tuple[int, ...]) -> str:
    """The title of the family whose text encoders have these widths; empty if none has."""
    titles = {tuple(e.config.width for e in row.text_encoders): row.title for row in reversed(FAMILIES.values())}
    return titles.get(sizes, "")


def _placed(file: TensorFile, found: dict[str, Entry], family: Family) -> dict[str, Entry]:
    """Each of the family's text encoders with its vectors. Raises DanqingError where they do not fit."""
    wanted = {encoder.name: encoder.config.width for encoder in family.text_encoders}
    if ANY in found and len(wanted) == 1:
        found = {next(iter(wanted)): found[ANY]}
    sizes = widths(found)
    placed = {tower: found[tower] for tower in wanted if tower in found}
    right = len(placed) == len(wanted) and all(placed[tower].shape[-1:] == (wanted[tower],) for tower in placed)
    if not right or ("text_encoder_2" in found and "text_encoder_2" not in wanted):
        title = made_for(sizes)
        hint = f"; it is made for {title}" if title and title != family.title else ""
        shown = " and ".join(map(str, sizes)) or "no"
        needed = " and ".join(str(width) for width in wanted.values())
        raise DanqingError(
            f"{file.path}: does not fit {family.title}: its vectors are {shown} wide, not {needed}{hint}"
        )
    counts = {entry.shape[0] if len(entry.shape) == 2 else 1 for entry in placed.values()}
    if any(len(entry.shape) > 2 for entry in placed.values()) or len(counts) != 1 or 0 in counts:
        raise DanqingError(
            f"{file.path}: is no textual inversion embedding: its vectors are of no shape that makes sense"
        )
    if max(counts) > LENGTH:
        raise DanqingError(f"{file.path}: holds {max(counts)} vectors, but a chunk of a prompt has room for {LENGTH}")
    return placed


def _vectors(file: TensorFile, entry: Entry) -> Tensor:
    vectors = entry.load().float().reshape(-1, entry.shape[-1]).clone()
    if not bool(torch.isfinite(vectors).all()):
        raise DanqingError(f"{file.path}: holds numbers that are not finite; download it again")
    return vectors
