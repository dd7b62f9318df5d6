"""Chunks of tokens through the text towers to conditionings: weights, clip skip, SDXL's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import Family, Model, TextChange, TextEncoder
from danqing.models.clip import CLIPText
from danqing.models.conditioning import Conditioning
from danqing.prompts.chunks import Chunk, Layout, Words, chunks, shown, vector_ids
from danqing.prompts.grammar import Part, Prompt
from danqing.prompts.tokenizer import Tokenizer, clip, from_folder, from_texts
from danqing.vocabulary import Dialect, Emphasis

TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {"clip": clip}
"""The bundled tokenizers, by `TextEncoder.tokenizer`."""

Cache = MutableMapping[Any, Any]
"""What one model's towers made of each chunk, and its tokenizers. Belongs to a run."""


@dataclass(frozen=True)
class Sizes:
    """SDXL's size conditioning (Podell et al. 2023, section 2.2), in pixels, height before width."""

    original: tuple[int, int]
    crop: tuple[int, int]
    """Top, left."""
    target: tuple[int, int]
    aesthetic: float = 6.0
    """The refiner has this score in place of `target`."""
    negative_aesthetic: float = 2.5

    def ids(self, family: Family, negative: bool = False) -> Tensor | None:
        """`time_ids`: (1, 6) float32, for the refiner (1, 5), None for a family that takes none."""
        if family.size_ids == "none":
            return None
        score = self.negative_aesthetic if negative else self.aesthetic
        tail = self.target if family.size_ids == "base" else (score,)
        return torch.tensor([[*self.original, *self.crop, *tail]], dtype=torch.float32)


def conditionings(
    model: Model,
    prompt: Prompt,
    *,
    emphasis: Emphasis = "original",
    clip_skip: int | None = None,
    dialect: Dialect = "danqing",
    sizes: Sizes | None = None,
    negative: bool = False,
    cache: Cache | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Conditioning, ...]:
    """One conditioning (B = 1, float32) for each AND part and each of its segments, in their order.

    `strength` is the part's weight, `steps` the segment's range of `At.step`, `context` (1, 77 n, C) the n chunks'
    hidden states, each chunk encoded on its own; contexts of different parts may differ in length (see `pad_to`).
    `pooled` is the first chunk's, from the last tower that has a projection. With several towers, their hidden
    states are joined on the channels.

    `clip_skip` counts AUTOMATIC1111's way: 1 or None is the family's own layer, 2 the one before the last.
    `sizes` is required by families with size ids. `cache` may be shared by all calls that use one model with one
    set of adapters. `say` is told what had to be cut (diffusers' dialect).
    An empty negative prompt is all zeros where the family wants that, but not in ComfyUI's dialect; diffusers'
    own rule is the same for a negative prompt that was never given.
    `model.embeddings` stand for their words; one that `embedding:` calls and the model lacks is left out.
    `model.text_changes` change what is not negative.
    Raises DanqingError if `clip_skip` reaches below a text encoder's layers.
    """
    if sizes is None and model.family.size_ids != "none":
        raise ValueError(f"{model.family.title} needs sizes")
    cache = {} if cache is None else cache
    towers = [_Tower.of(model, encoder, clip_skip, cache, negative) for encoder in model.family.text_encoders]
    ids = sizes.ids(model.family, negative) if sizes else None
    device = next(towers[0].network.parameters()).device
    extra = {} if ids is None else {"time_ids": ids.to(device)}
    zero_empty = negative and model.family.zero_empty_negative and dialect != "comfyui"
    result = []
    for part in prompt.parts:
        is_blank = zero_empty and [segment.text for segment in part.segments] == [""]
        start = float("-inf")
        for segment, (context, pooled) in zip(part.segments, _encode_part(part, towers, dialect, emphasis, say)):
            encoded = Conditioning(
                context=torch.zeros_like(context) if is_blank else context,
                pooled=torch.zeros_like(pooled) if is_blank and pooled is not None else pooled,
                extra=extra,
                strength=part.weight,
                steps=(start, segment.until),
            )
            result.append(encoded)
            start = segment.until
    return tuple(result)


def pad_to(branches: Sequence[Conditioning], length: int) -> tuple[Conditioning, ...]:
    """The same with contexts of at least `length` tokens: the last vector is repeated (AUTOMATIC1111's rule)."""

    def padded(context: Tensor) -> Tensor:
        missing = max(length - context.shape[1], 0)
        return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1)

    return tuple(replace(branch, context=padded(branch.context)) for branch in branches)


def words_of(model: Model) -> dict[str, int]:
    """What the model's embeddings are called -> how many vectors each has."""
    return {name: len(next(iter(vectors.values()))) for name, vectors in model.embeddings.items()}


def tokenizer_of(model: Model, encoder: TextEncoder) -> Tokenizer:
    """The checkpoint's own, or CLIP's. Raises DanqingError where neither can be had."""
    own = model.tokenizers.get(encoder.name)
    if isinstance(own, Path):
        return from_folder(own)
    if own is not None:
        return from_texts(own, f"{model.path or model.name}: {encoder.name}")
    tokenizer = TOKENIZERS[encoder.tokenizer]()
    if tokenizer.end >= encoder.config.vocabulary:
        raise DanqingError(
            f"{model.path or model.name}: its {encoder.name} has {encoder.config.vocabulary} words of its own, which the "
            "file does not hold; take the model as a diffusers folder"
        )
    return tokenizer


@dataclass(frozen=True)
class _Tower:
    """A text encoder ready to encode: its network, its tokens, and the layer to take."""

    encoder: TextEncoder
    network: CLIPText
    tokenizer: Tokenizer
    layer: int
    """Index into the hidden states; -1 is the last."""
    cache: Cache
    words: Words
    vectors: Mapping[int, Tensor]
    """What the ids of embeddings stand for, (C,) each."""
    change: TextChange | None = None

    @staticmethod
    def of(model: Model, encoder: TextEncoder, clip_skip: int | None, cache: Cache, negative: bool) -> _Tower:
        skips = encoder.clip_skip and clip_skip is not None and clip_skip > 1
        layer = -clip_skip if skips and clip_skip is not None else encoder.layer
        if -layer > encoder.config.layers + 1:
            raise DanqingError(
                f"clip_skip {-layer}: {encoder.name} has only {encoder.config.layers} layers; "
                f"choose at most {encoder.config.layers + 1}"
            )
        if ("tokenizer", encoder.name) not in cache:
            cache["tokenizer", encoder.name] = tokenizer_of(model, encoder)
        tokenizer = cache["tokenizer", encoder.name]
        words = words_of(model)
        numbers = vector_ids(words)
        vectors = {
            number: vector
            for name, own in model.embeddings.items()
            for number, vector in zip(numbers[name], own[encoder.name])
        }
        change = None if negative else model.text_changes.get(encoder.name)
        return _Tower(encoder, model.text_encoders[encoder.name], tokenizer, layer, cache, words, vectors, change)

    def empty(self) -> Chunk:
        return Layout(self.tokenizer.start, self.tokenizer.end, self.encoder.pad_token).chunk([])

    @torch.no_grad()
    def encode(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """((1, 77, C) float32, pooled (1, P) float32)."""
        key = (self.encoder.name, self.layer, chunk.ids)
        if key not in self.cache:
            self.cache[key] = self.read(chunk, self.network)
        found: tuple[Tensor, Tensor] = self.cache[key]
        return found

    def changed(self, chunk: Chunk, hidden: Tensor, emphasis: Emphasis) -> Tensor:
        """`hidden` (1, 77, C) of a chunk, with its weights, as the model's adapters change it."""
        if self.change is None:
            return hidden
        key = ("changed", self.encoder.name, self.layer, chunk, emphasis)
        if key not in self.cache:
            self.cache[key] = self.change(self.network, partial(self.read, chunk), hidden)
        found: Tensor = self.cache[key]
        return found

    def read(self, chunk: Chunk, network: CLIPText) -> tuple[Tensor, Tensor]:
        """What a network of this tower's kind makes of a chunk: ((1, 77, C) float32, pooled (1, P) float32)."""
        ids, embedded = self.told(chunk, network)
        out = network(ids, embeddings=embedded)
        if self.layer == -1 and self.encoder.final_norm:
            hidden = out.last
        else:
            hidden = out.hidden[self.layer]
            hidden = network.final_norm(hidden) if self.encoder.final_norm else hidden
        return hidden.float(), out.pooled.float()

    def told(self, chunk: Chunk, network: CLIPText) -> tuple[Tensor, Tensor | None]:
        """What the network is called with: ids (1, 77), and embeddings (1, 77, C) where some are not its own."""
        device = next(network.parameters()).device
        ids = torch.tensor([[0 if token in self.vectors else token for token in chunk.ids]], device=device)
        if self.vectors.keys().isdisjoint(chunk.ids):
            return ids, None
        embedded = network.embed(ids).clone()
        for place, token in enumerate(chunk.ids):
            if token in self.vectors:
                embedded[0, place] = self.vectors[token].to(embedded)
        return ids, embedded


def _encode_part(
    part: Part, towers: Sequence[_Tower], dialect: Dialect, emphasis: Emphasis, say: Callable[[str], None] | None
) -> list[tuple[Tensor, Tensor | None]]:
    """(context, pooled) of each segment; all contexts of a part are as long as its longest (AUTOMATIC1111)."""
    cut_up: list[list[tuple[Chunk, ...]]] = []
    for segment in part.segments:
        row = []
        for tower in towers:
            made, cut = chunks(segment.text, tower.tokenizer, tower.encoder.pad_token, dialect, emphasis, tower.words)
            if cut and say and tower is towers[0]:
                words = shown(cut, tower.tokenizer, tower.words)
                say(f"the prompt is {len(cut)} tokens too long for the diffusers dialect; cut: {words}")
            row.append(made)
        cut_up.append(row)
    count = max(len(made) for row in cut_up for made in row)
    result = []
    for row in cut_up:
        contexts, pooled = [], None
        for tower, made in zip(towers, row):
            filled = [*made, *[tower.empty()] * (count - len(made))]
            contexts.append(_weighted(tower, filled, emphasis))
            if tower.encoder.config.projection is not None:
                pooled = tower.encode(filled[0])[1]
        result.append((torch.cat(contexts, dim=-1), pooled))
    return result


def _weighted(tower: _Tower, filled: Sequence[Chunk], emphasis: Emphasis) -> Tensor:
    """(1, 77 n, C) float32: the chunks' hidden states with the tokens' weights on them.

    - original: times the weight, then each chunk's mean brought back to what it was (AUTOMATIC1111)
    - no norm: times the weight
    - comfyui: (z - z_empty) * weight + z_empty, z_empty being the empty prompt's vector at that place
    """
    vectors = []
    for chunk in filled:
        hidden, _ = tower.encode(chunk)
        if emphasis not in ("ignore", "none") and any(weight != 1 for weight in chunk.weights):
            weights = torch.tensor(chunk.weights, device=hidden.device)[None, :, None]
            if emphasis == "comfyui":
                empty, _ = tower.encode(tower.empty())
                hidden = torch.where(weights == 1, hidden, (hidden - empty) * weights + empty)
            else:
                mean = hidden.mean()
                hidden = hidden * weights
                new_mean = hidden.mean()
                if emphasis == "original" and new_mean != 0:
                    hidden = hidden * (mean / new_mean)
        vectors.append(tower.changed(chunk, hidden, emphasis))
    return torch.cat(vectors, dim=1)
