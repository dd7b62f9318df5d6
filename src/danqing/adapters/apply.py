"""Adapters on a model: another model, whose networks are twins that share every weight that nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danqing.adapters.embedding import with_embeddings
from danqing.adapters.keys import layers_of
from danqing.adapters.lora import Adapter
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.clip import CLIPText
from danqing.models.weights import WeightPatch, patched, patched_anew, twin
from danqing.runtime.stream import Streamed, whole
from danqing.vocabulary import choose

_AT_ONCE = 1 << 18
Changes = dict[str, list[tuple[WeightPatch, float]]]
"""Parameter -> what changes it, and how much."""


class Use(NamedTuple):
    """An adapter and how strongly it holds: 1 as it was trained, 0 not at all, below 0 the other way."""

    adapter: Adapter
    te: float = 1.0
    """For the text encoders."""
    unet: float = 1.0
    blocks: Mapping[str, float] | None = None
    """A factor for each block of the U-Net, and `BASE` for all else (`block_weights`); None is 1 everywhere."""


def apply(model: Model, uses: Sequence[Use], say: Callable[[str], None] | None = None) -> Model:
    """`model` with the adapters applied in order. `model` itself is left as it is: taking them off is going back to it.

    Every weight is reckoned in float32 from the model's own and rounded once to its type; only weights that change take
    memory. The words that they bring along are known to the prompts. `say` is told of each adapter: "style: 722 of 722
    layers, rank 32, effect 0.8% of the weights' norm", of those that change nothing (strength or weights are zero), and
    of what their files hold besides.
    Raises DanqingError for an adapter that was read for another family, or whose numbers are not finite.
    """
    nets: dict[str, nn.Module] = {"unet": model.denoiser, **model.text_encoders}
    changes: dict[str, Changes] = {}
    effects = [_Effect() for _ in uses]
    for use, effect in zip(uses, effects):
        if use.adapter.family != model.family.name:
            raise DanqingError(
                f"{use.adapter.path}: was read for a model of family '{use.adapter.family}', not '{model.family.name}'"
            )
        for patch, strength in strengths(use, model):
            if strength:
                mine = replace(patch, change=effect.measured(patch))
                changes.setdefault(patch.network, {}).setdefault(patch.layer, []).append((mine, strength))
    twins = {network: _twin(nets[network], found) for network, found in changes.items()}
    for use, effect in zip(uses, effects):
        told = effect.told(use.adapter)
        if say is not None:
            say(f"{use.adapter.name}: {use.adapter.report}, {told}")
            for note in use.adapter.notes:
                say(f"{use.adapter.name}: {note}")
    texts: dict[str, CLIPText] = {name: twins.get(name, net) for name, net in model.text_encoders.items()}  # type: ignore[misc]
    words = [embedding for use in uses for embedding in use.adapter.embeddings]
    return with_embeddings(replace(model, denoiser=twins.get("unet", model.denoiser), text_encoders=texts), words)


@torch.no_grad()
def _twin(net: nn.Module, changes: Changes) -> nn.Module:
    parameters = dict(net.named_parameters())
    return twin(net, {name: _patched(parameters[name], found) for name, found in changes.items()})


def _patched(weight: Tensor, changes: list[tuple[WeightPatch, float]]) -> Tensor:
    """The weight as it will be; a streamed one is made once, to be measured, and then whenever it comes."""
    done = patched(whole(weight), changes)
    if not isinstance(weight, Streamed):
        return done
    return patched_anew(weight, changes)


def strengths(use: Use, model: Model) -> list[tuple[WeightPatch, float]]:
    """Each patch of an adapter, and how strongly it holds."""
    blocks = {(layer.network, layer.name): layer.block for layer in layers_of(model.family).values()}
    out = []
    for patch in use.adapter.patches:
        strength = use.unet if patch.network == "unet" else use.te
        if use.blocks is not None:
            strength *= use.blocks.get(blocks[patch.network, patch.layer.rpartition(".")[0]], 0.0)
        out.append((patch, strength))
    return out


class _Effect:
    """How much an adapter changes, gathered while it does."""

    def __init__(self) -> None:
        self.moved: list[Tensor] = []
        self.whole: list[Tensor] = []
        self.known = False

    def measured(self, patch: WeightPatch) -> Callable[[Tensor, float], Tensor]:
        def measured(weight: Tensor, strength: float) -> Tensor:
            new = patch.change(weight, strength)
            if not self.known:
                self.moved.append(_distance(new, weight) if patch.norm is None else abs(strength) * patch.norm())
                self.whole.append(torch.linalg.vector_norm(weight))
            return new

        return measured

    def told(self, adapter: Adapter) -> str:
        """In words. Raises DanqingError where the numbers are not finite."""
        self.known = True
        if not self.moved:
            return "changes nothing: its strength is 0"
        moved, whole = (math.hypot(*(float(norm) for norm in norms)) for norms in (self.moved, self.whole))
        if not math.isfinite(moved):
            raise DanqingError(f"{adapter.path}: holds numbers that are not finite, or too large; download it again")
        if moved == 0:
            return "changes nothing: its weights are zero"
        return f"effect {100 * moved / whole:.2g}% of the weights' norm" if whole else "where the weights are zero"


def _distance(new: Tensor, old: Tensor) -> Tensor:
    """The norm of new - old, a few rows at a time: fresh memory for a whole difference costs more than its sum."""
    rows = max(1, _AT_ONCE * len(old) // max(old.numel(), 1))
    parts = [torch.linalg.vector_norm(a - b) for a, b in zip(torch.split(new, rows), torch.split(old, rows))]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


# --- block weights ----------------------------------------------------------------------------------------------------

_IN, _OUT = ([f"{side}{i:02d}" for i in range(12)] for side in ("IN", "OUT"))
BLOCKS: dict[int, tuple[str, ...]] = {
    26: ("BASE", *_IN, "M00", *_OUT),
    20: ("BASE", *_IN[:9], "M00", *_OUT[:9]),
    17: ("BASE", *(_IN[i] for i in (1, 2, 4, 5, 7, 8)), "M00", *_OUT[3:]),
    12: ("BASE", *(_IN[i] for i in (4, 5, 7, 8)), "M00", *_OUT[:6]),
}
"""What the numbers of a list of that length are for, by hako-mikan's sd-webui-lora-block-weight: all blocks of SD 1.x and
2.x, of SDXL; the blocks with attention of SD 1.x and 2.x, of SDXL. Blocks that a list does not name count 0."""

PRESETS: dict[str, str] = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}
"""The presets that the same extension comes with."""


def block_weights(text: str) -> dict[str, float]:
    """Block -> factor, from a preset's name or 12, 17, 20 or 26 numbers between commas.

    Raises DanqingError for an unknown name or another count.
    """
    listed = text if "," in text else PRESETS[choose("block weights", text.strip(), list(PRESETS))]
    try:
        numbers = [float(number) for number in listed.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in BLOCKS or not all(map(math.isfinite, numbers)):
        raise DanqingError(
            f"block weights '{text[:80]}': should be 12, 17, 20 or 26 numbers between commas, or one of {', '.join(PRESETS)}"
        )
    return dict(zip(BLOCKS[len(numbers)], numbers))
