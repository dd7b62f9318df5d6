"""Aesthetic gradients (Gallego 2022, arXiv 2209.12330): a text encoder that learns to read one prompt as pictures look.

A file holds the mean of CLIP's vectors of some pictures. For each prompt a copy of the text encoder takes a few steps
of gradient descent that bring the prompt's own vector, in the space that CLIP's texts and pictures share, nearer to it;
the hidden states before and after are mixed. Settings and arithmetic are those of AUTOMATIC1111's extension
(stable-diffusion-webui-aesthetic-gradients), but that a chunk's tokens are the prompt's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.checkpoints.files import open_file
from danqing.errors import DanqingError
from danqing.families import Model, TextEncoder
from danqing.models.clip import CLIPText
from danqing.prompts.chunks import LENGTH, Layout
from danqing.prompts.encode import tokenizer_of
from danqing.request_parts import AestheticEmbedding

Read = Callable[[CLIPText], tuple[Tensor, Tensor]]
"""A text encoder on one chunk -> (hidden states (1, 77, C), pooled (1, P)), float32."""


@dataclass(frozen=True, eq=False)
class Aesthetic:
    """Whither a prompt is brought, and how far."""

    target: Tensor
    """(n, P): vectors of pictures."""
    projection: Tensor | None
    """(P, C): from the text encoder's width to the target's, where the encoder does not do so itself."""
    settings: AestheticEmbedding
    """Its weight is that of the hidden states after. With `slerp` they are mixed on an arc, each number of the width
    along the tokens."""

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.target).all()):
            raise DanqingError("aesthetic: the embedding holds numbers that are not finite; make it again")


def read(path: Path | str) -> Tensor:
    """The vectors in a file, (n, P) float32, each of length 1. Raises DanqingError: damaged, or not one tensor of
    vectors."""
    file = open_file(path)
    found = [entry for entry in file.entries.values() if entry.dtype.is_floating_point]
    if len(found) != 1 or len(found[0].shape) not in (1, 2) or 0 in found[0].shape:
        raise DanqingError(
            f"{file.path}: is no aesthetic embedding, which is one tensor: the mean of CLIP's of pictures"
        )
    return F.normalize(found[0].load().float().reshape(-1, found[0].shape[-1]))


def read_projection(path: Path | str) -> Tensor:
    """(P, C): CLIP's projection of texts, from a file of a whole CLIP or of its text encoder.

    Raises DanqingError for a file without one.
    """
    file = open_file(path)
    for key, entry in file.entries.items():
        if len(entry.shape) == 2 and key.endswith(("text_projection.weight", "text_projection")):
            weight = entry.load().float().clone()
            return weight if key.endswith(".weight") else weight.T  # OpenCLIP multiplies from the other side
    raise DanqingError(
        f"{file.path}: holds no text_projection; a whole CLIP's file does, as openai/clip-vit-large-patch14's"
    )


def with_aesthetic(
    model: Model, settings: AestheticEmbedding, vectors: Tensor, projection: Tensor | None = None
) -> Model:
    """`model` whose prompts, but for negative ones, are brought nearer to `vectors` (n, P). `model` is left as it is.

    `projection` (P, C) is needed for text encoders that have none, as all of SD 1.x and 2.x; the files that `settings`
    name are not read. With a `text` the vectors are turned towards it by `slerp_angle`, or with `text_negative` away
    from it. Raises DanqingError where no text encoder speaks of vectors of that width, or where they are not finite.
    """
    encoder = _encoder(model, vectors, projection)
    aesthetic = Aesthetic(vectors, projection, settings)
    if settings.text:
        told = _features(aesthetic, _pooled(model, encoder, settings.text))
        if settings.text_negative:
            told = F.normalize(vectors.to(told) - told)
        aesthetic = replace(aesthetic, target=arc(vectors.to(told), told, settings.slerp_angle))
    return replace(model, text_changes={**model.text_changes, encoder.name: partial(learned, aesthetic)})


def learned(aesthetic: Aesthetic, network: CLIPText, read: Read, hidden: Tensor) -> Tensor:
    """`hidden` (1, 77, C) of a chunk, mixed with what the network makes of it after it has learned. Adam, as the
    extension."""
    asked = aesthetic.settings
    pupil = copy.deepcopy(network).float().requires_grad_(True)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(pupil.text_model.parameters(), lr=asked.learning_rate)
        for _ in range(asked.steps):
            features = F.normalize(_features(aesthetic, read(pupil)[1]))
            loss = -(features @ aesthetic.target.to(features).T).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        after, _ = read(pupil)
    return arc(hidden, after, asked.weight) if asked.slerp else torch.lerp(hidden, after, asked.weight)


def arc(low: Tensor, high: Tensor, part: float) -> Tensor:
    """`part` of the way from `low` to `high` on an arc, angles taken along dimension 1; the lengths are mixed
    likewise."""
    cosine = (F.normalize(low, dim=1) * F.normalize(high, dim=1)).sum(1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    mixed = torch.sin((1 - part) * angle) / sine * low + torch.sin(part * angle) / sine * high
    return torch.where(sine.abs() < 1e-6, torch.lerp(low, high, part), mixed)


def _features(aesthetic: Aesthetic, pooled: Tensor) -> Tensor:
    """The vector of a text (1, P), of whatever length, of its pooled state."""
    return pooled if aesthetic.projection is None else F.linear(pooled, aesthetic.projection.to(pooled))


@torch.no_grad()
def _pooled(model: Model, encoder: TextEncoder, text: str) -> Tensor:
    tokenizer, network = tokenizer_of(model, encoder), model.text_encoders[encoder.name]
    tokens = [(token, 1.0) for token in tokenizer.encode(text)[:LENGTH]]
    chunk = Layout(tokenizer.start, tokenizer.end, encoder.pad_token).chunk(tokens)
    pooled: Tensor = network(torch.tensor([chunk.ids], device=model.device)).pooled.float()
    return pooled


def _encoder(model: Model, vectors: Tensor, projection: Tensor | None) -> TextEncoder:
    """The text encoder that can speak of these vectors."""
    width = vectors.shape[-1]
    if projection is not None and projection.shape[0] != width:
        raise DanqingError(
            f"aesthetic: the projection leads to vectors {projection.shape[0]} wide, but the embedding's are {width}"
        )
    for encoder in model.family.text_encoders:
        config = encoder.config
        own = projection is None and config.projection == width
        given = projection is not None and config.projection is None and config.width == projection.shape[1]
        if own or given:
            return encoder
    if projection is None:
        raise DanqingError(
            f"aesthetic: no text encoder of {model.family.title} projects to vectors {width} wide; give a file with CLIP's "
            "text_projection as projection, openai/clip-vit-large-patch14's for embeddings 768 wide"
        )
    raise DanqingError(
        f"aesthetic: the projection is for a text encoder {projection.shape[1]} wide, which {model.family.title} lacks"
    )
