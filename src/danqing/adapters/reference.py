"""Reference-only: the pixels of a painting attend to those of a given picture too, and so take up its look.

Source: lllyasviel's `reference_only` of Mikubill's sd-webui-controlnet (`hook.py`). In every step the U-Net first sees
the given picture, as noisy as the painting is, and its self-attentions' keys and values are kept; then it sees the
painting, whose self-attentions have those beside their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from danqing.adapters.control import fitted, holds
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Attention, Patches
from danqing.models.unet import UNetConfig, transformer_blocks
from danqing.models.weights import ASKED
from danqing.sampling.predict import PatchSource, ask
from danqing.vocabulary import Dialect

Pair = dict[int, tuple[Tensor, Tensor]]
"""The keys and values of one picture in one self-attention, by the number of the network of several
(`weights.ASKED`)."""
Bank = dict[str, list[Pair]]
"""By self-attention: those of the pictures that it was shown."""


@dataclass(frozen=True, eq=False)
class ReferencePicture:
    """A picture that the painting shall look like. Raises DanqingError for settings that make no sense."""

    pixels: Tensor
    """(1, 3, H, W) of any size, from 0 to 1."""
    weight: float = 1.0
    """The share of the self-attentions that look at it, from 0 to 1, the widest first."""
    start: float = 0.0
    end: float = 1.0
    fidelity: float = 0.5
    """Style fidelity: how much the negative prompt's side keeps to itself, from 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise DanqingError(
                f"image_prompts: start {self.start:g} and end {self.end:g} should be between 0 and 1, the start not after "
                "the end"
            )
        if not 0 <= self.weight <= 1 or not 0 <= self.fidelity <= 1:
            raise DanqingError(
                f"image_prompts: a reference's weight, {self.weight:g}, is a share of the self-attentions and should be from 0 "
                f"to 1; so should its style fidelity, {self.fidelity:g}"
            )


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference picture at one size of latents, for one side."""

    picture: ReferencePicture
    latents: Tensor
    """(B or 1, C, H, W)."""
    own: float
    """How much of its self-attention this side keeps to itself."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Reference:
        latents = fn(self.latents)
        return self if latents is self.latents else replace(self, latents=latents)


def references(
    picture: ReferencePicture, width: int, height: int, encode: Callable[[Tensor], Tensor]
) -> tuple[Reference, Reference]:
    """(of the positive side, of the negative side) for a painting of `width` x `height` pixels, cut to whose shape it
    is.

    `encode` makes latents (1, C, h, w) of pixels (1, 3, H, W) in [-1, 1].
    """
    latents = encode(fitted(picture.pixels, width, height, "crop") * 2 - 1)
    positive = Reference(picture, latents, 0.0)
    return positive, replace(positive, own=picture.fidelity) if picture.fidelity else positive


def looking(config: UNetConfig, weight: float) -> tuple[str, ...]:
    """The self-attentions that look at a reference of this weight: of n, sorted by falling width, those whose number is
    below n times the weight."""
    found = transformer_blocks(config)
    widest = sorted(found, key=lambda name: -config.channels[found[name]])
    return tuple(f"{name}.attn1" for index, name in enumerate(widest) if index / len(widest) < weight)


def reference_source(
    model: Model, steps: int, dialect: Dialect = "danqing", say: Callable[[str], None] = lambda line: None
) -> PatchSource:
    """What `predictor(patches=...)` is given so that each branch's references act, over a run of `steps`.

    The noise on a reference is the step's own, whatever the seed, so a painting does not depend on its batch.
    """

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        acting = [
            each
            for each in conditioning.controls
            if isinstance(each, Reference)
            and holds(each.picture.start, each.picture.end, at, steps, model.process, dialect)
        ]
        bank: Bank = {}
        kept: dict[str, float] = {}
        for each in acting:
            names = looking(model.family.denoiser, each.picture.weight)
            if names:
                _show(model, each, names, bank, scaled, told, at, conditioning, say)
                kept |= dict.fromkeys(names, each.own)
        return Patches(attention={name: partial(_read, bank[name], kept[name]) for name in bank}) if bank else None

    return source


def _show(
    model: Model,
    reference: Reference,
    names: tuple[str, ...],
    bank: Bank,
    scaled: Tensor,
    told: Tensor,
    at: At,
    conditioning: Conditioning,
    say: Callable[[str], None],
) -> None:
    """The U-Net sees the reference, as noisy as the painting; what the named self-attentions make of it goes to
    `bank`."""
    generator = torch.Generator().manual_seed(round(2 * at.step))
    latents = reference.latents.float()
    noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device)
    seen = (latents + at.sigma * noise) * model.process.scalings(at.sigma)[2]
    seen = seen.to(scaled.device, scaled.dtype).expand(len(scaled), -1, -1, -1)
    if scaled.shape[1] > seen.shape[1]:  # what an inpainting model is told besides
        seen = torch.cat([seen, scaled[:, seen.shape[1] :]], 1)
    for name in names:
        bank.setdefault(name, []).append({})
    patches = Patches(attention={name: partial(_write, bank[name][-1]) for name in names})
    ask(
        model,
        seen,
        told,
        at,
        conditioning,
        patches,
        lambda module, part: say(f"NaN in {module}: {part} ran in float32"),
    )


def _write(
    made: Pair, plain: Attention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, context: Tensor
) -> Tensor:
    made[ASKED.get()] = key, value
    return plain(query, key, value)


def _read(
    pairs: list[Pair],
    own: float,
    plain: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    context: Tensor,
) -> Tensor:
    seen = [pair[ASKED.get()] for pair in pairs]
    keys = torch.cat([key, *(k.to(key.dtype) for k, _ in seen)], 2)
    values = torch.cat([value, *(v.to(value.dtype) for _, v in seen)], 2)
    out = plain(query, keys, values)
    return out if own == 0 else own * plain(query, key, value) + (1 - own) * out
