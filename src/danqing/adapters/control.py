"""ControlNets, T2I-Adapters and LLLites at work: which acts when, how strongly, on which side, and where in the U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import At, Model, Process
from danqing.models.conditioning import Conditioning
from danqing.models.controlnet import ControlNet
from danqing.models.lllite import LLLite
from danqing.models.patches import Patches, stacked
from danqing.models.t2i_adapter import T2IAdapter, places
from danqing.models.unet import UNetConfig
from danqing.runtime.numerics import guarded
from danqing.sampling.predict import PatchSource
from danqing.vocabulary import Dialect

Mode = Literal["balanced", "prompt", "control", "guess"]
"""Whose word counts. `prompt` and `control` weigh the layers down towards the finest, by 0.825 a layer (lllyasviel's
ControlNet, `gradio_*.py`; Mikubill's sd-webui-controlnet, `hook.py`); `control` and `guess` act on the positive prompts
alone, so that guidance multiplies them; `guess` weighs the layers from 0.1 to 1 (diffusers' `guess_mode`)."""
Resize = Literal["stretch", "crop", "fill"]
"""How a hint of another shape is made to fit: AUTOMATIC1111's Just Resize, Crop and Resize, Resize and Fill."""

_DECAY = 0.825
_LAYERS = 13
"""Layers of SD 1.x that a ControlNet adds to; `_DECAY` is counted from the last of these."""
_ADAPTER_WEIGHTS = (0.25, 0.62, 0.825, 1.0)
"""What `prompt` and `control` make a T2I-Adapter's features count (Mikubill's sd-webui-controlnet, `hook.py`)."""

Network = ControlNet | T2IAdapter | LLLite
Prepared = list[Tensor] | dict[str, Tensor] | tuple[Tensor, ...]
"""What of a control does not depend on the step: a ControlNet's hints embedded, a T2I-Adapter's features by place, or
what each layer of a LLLite sees."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A network, the picture that it is shown, and how much it is listened to.

    Raises DanqingError for settings that make no sense.
    """

    network: Network
    pictures: tuple[Tensor, ...]
    """Each (1, C, H, W) of any size, from 0 to 1 (-1 where an inpainting hint is masked). One, but a union network
    takes several."""
    weight: float = 1.0
    start: float = 0.0
    """Share of the steps at which it begins, from 0 to 1."""
    end: float = 1.0
    mode: Mode = "balanced"
    resize: Resize = "crop"
    tasks: tuple[int, ...] = ()
    """A union network's number for each picture's kind, from 0."""
    listens: object | None = None
    """The picture prompt whose tokens it is told in place of the text (InstantID's network)."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise DanqingError(
                f"control: start {self.start:g} and end {self.end:g} should be between 0 and 1, the start not after the end"
            )
        if not math.isfinite(self.weight):
            raise DanqingError(f"control: weight {self.weight} is not a number")
        kinds = self.network.control.tasks if isinstance(self.network, ControlNet) else 0
        if kinds and (len(self.tasks) != len(self.pictures) or not all(0 <= task < kinds for task in self.tasks)):
            raise DanqingError(
                f"control: a union ControlNet is told each picture's kind, from 0 to {kinds - 1}; got {list(self.tasks)}"
            )
        if not kinds and (self.tasks or len(self.pictures) != 1):
            raise DanqingError("control: only a union ControlNet takes several pictures, or is told their kind")

    @property
    def positive_only(self) -> bool:
        """Whether it acts on the positive prompts alone."""
        pooled = isinstance(self.network, ControlNet) and self.network.control.pooled
        return self.mode in ("control", "guess") or pooled


@dataclass(frozen=True, eq=False)
class Control:
    """A unit at one size of latents. Two of them are the same only if they are one object."""

    unit: Unit
    hints: tuple[Tensor, ...]
    """The pictures on the latents' grid, (B or 1, C * cell * cell, H, W): they are cut where the latents are cut."""
    cell: int
    """Pixels of the picture to one of the latents, along a side."""
    told: tuple[int, int] | None = None
    """(first, count) of the branch's image tokens that it is told in place of the text (InstantID's network)."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Control:
        """The same with `fn` applied to each hint; itself where that changes none, so that what is kept of it stays."""
        hints = tuple(fn(hint) for hint in self.hints)
        same = all(new is old for new, old in zip(hints, self.hints))
        return self if same else replace(self, hints=hints)


def holds(start: float, end: float, at: At, steps: int, process: Process, dialect: Dialect) -> bool:
    """Whether what begins and ends at these shares of a run of `steps` acts at this step.

    AUTOMATIC1111 (and Danqing) let it act from `start` to `end` of the steps that are done, both included;
    diffusers ends it with the step that would pass `end`; ComfyUI counts the share of the training's noise levels.
    """
    if dialect == "comfyui":
        first, last = (_sigma(process, share) for share in (start, end))
        return last <= at.sigma <= first
    step = math.floor(at.step)
    after = step + 1 if dialect == "diffusers" else step
    return step / steps >= start and after / steps <= end


def held_steps(
    start: float, end: float, sigmas: Sequence[float], process: Process, dialect: Dialect
) -> tuple[float, float]:
    """The half-open range of `At.step` in which what `holds` from `start` to `end` acts, in a run over noise levels
    that end with the last step's result. It is unbounded where it takes in the first or last step; an inner evaluation
    is part of its step."""
    count = len(sigmas) - 1
    held = [i for i in range(count) if holds(start, end, At(sigmas[i], i), count, process, dialect)]
    if not held:
        return math.inf, math.inf
    return (held[0] if held[0] else -math.inf), (held[-1] + 1 if held[-1] < count - 1 else math.inf)


def _sigma(process: Process, share: float) -> float:
    """ComfyUI's noise level at a share of the way from pure noise (0) to the picture (1)."""
    if share <= 0 or share >= 1:
        return math.inf if share <= 0 else 0.0
    return process.sigma_at((1 - share) * (process.steps - 1))


def layer_weights(mode: Mode, count: int) -> list[float]:
    """What each of a ControlNet's `count` layers counts, from the finest skip connection to the middle."""
    if mode == "balanced":
        return [1.0] * count
    if mode == "guess":
        return [float(weight) for weight in torch.logspace(-1, 0, count)]
    return [_DECAY ** max(_LAYERS - 1 - i, 0) for i in range(count)]


# --- the hint ---------------------------------------------------------------------------------------------------------


def control(unit: Unit, width: int, height: int, cell: int) -> Control:
    """The unit for latents of `width` x `height`, of which each is `cell` pixels wide and high."""
    pictures = [fitted(picture, width * cell, height * cell, unit.resize) for picture in unit.pictures]
    return Control(unit, tuple(F.pixel_unshuffle(picture, cell) for picture in pictures), cell)


def part_of(unit: Unit, size: tuple[int, int], box: tuple[int, int, int, int]) -> Unit:
    """The unit for a part of the picture: `box` = (left, upper, right, lower) of a picture of `size` = (width,
    height)."""
    left, upper, right, lower = box
    pictures = (fitted(picture, *size, unit.resize) for picture in unit.pictures)
    return replace(unit, pictures=tuple(picture[..., upper:lower, left:right] for picture in pictures), resize="fill")


def fitted(picture: Tensor, width: int, height: int, resize: Resize) -> Tensor:
    """The picture (B, C, H, W) at another size: stretched; cut to the shape about its middle; or whole, its edges drawn
    out over what is left."""
    old_height, old_width = picture.shape[-2:]
    if (old_width, old_height) == (width, height):
        return picture
    scales = width / old_width, height / old_height
    if resize == "stretch":
        return _resized(picture, width, height)
    scale = max(scales) if resize == "crop" else min(scales)
    near_width, near_height = round(old_width * scale), round(old_height * scale)
    picture = _resized(picture, near_width, near_height)
    left, top = abs(near_width - width) // 2, abs(near_height - height) // 2
    if resize == "crop":
        return picture[..., top : top + height, left : left + width]
    return F.pad(picture, (left, width - near_width - left, top, height - near_height - top), mode="replicate")


def _resized(picture: Tensor, width: int, height: int) -> Tensor:
    if bool((picture < 0).any()):  # an inpainting hint: half a masked pixel is neither
        return F.interpolate(picture, (height, width), mode="nearest-exact")
    return F.interpolate(picture, (height, width), mode="bilinear", align_corners=False, antialias=True)


def _prepared(control: Control, config: UNetConfig) -> Prepared:
    network = control.unit.network
    weight = next(network.parameters())
    pictures = [F.pixel_shuffle(hint.to(weight.device), control.cell).to(weight.dtype) for hint in control.hints]
    if isinstance(network, ControlNet):
        wanted = network.control.hint_channels
        return [network.hint(_channels(picture, wanted)) for picture in pictures]
    if isinstance(network, LLLite):
        return network.hints(_channels(pictures[0], 3))
    adapter = network.config
    picture = _channels(pictures[0], adapter.hint_channels)
    height, width = (math.ceil(side / adapter.downscale) * adapter.downscale for side in picture.shape[-2:])
    if picture.shape[-2:] != (height, width):
        picture = _resized(picture, width, height)
    return dict(zip(places(adapter, config), network(picture)))


def _channels(picture: Tensor, count: int) -> Tensor:
    """A coloured picture for a network of grey hints, or the other way."""
    if picture.shape[1] == count:
        return picture
    if count == 1:
        return picture.mean(1, keepdim=True)
    if picture.shape[1] == 1:
        return picture.expand(-1, count, -1, -1)
    raise DanqingError(f"control: the network takes pictures of {count} channels, and this one has {picture.shape[1]}")


# --- in a run ---------------------------------------------------------------------------------------------------------


def with_controls(
    branches: Sequence[Conditioning], controls: Sequence[Control], positive: bool
) -> tuple[Conditioning, ...]:
    """The branches of one side with the controls that act on it."""
    acting = tuple(control for control in controls if positive or not control.unit.positive_only)
    return tuple(replace(branch, controls=(*branch.controls, *acting)) for branch in branches)


def control_source(
    model: Model,
    steps: int,
    dialect: Dialect = "danqing",
    say: Callable[[str], None] = lambda line: None,
) -> PatchSource:
    """What `predictor(patches=...)` is given so that each branch's `controls` act, over a run of `steps`.

    A hint is embedded once a run; a ControlNet runs with every call of the U-Net in whose step it holds. `say` is told
    what had to run in float32. Several controls add up.
    """
    kept: WeakKeyDictionary[Control, Prepared] = WeakKeyDictionary()
    config = model.family.denoiser

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        skips: dict[str, Tensor] = {}
        residuals: dict[str, Tensor] = {}
        beside: list[Patches | None] = []
        for control in conditioning.controls:
            if not isinstance(control, Control):
                continue
            unit = control.unit
            if not unit.weight or not holds(unit.start, unit.end, at, steps, model.process, dialect):
                continue
            prepared = kept.get(control)
            if prepared is None:
                prepared = kept[control] = _prepared(control, config)
            if isinstance(prepared, tuple):
                assert isinstance(unit.network, LLLite)
                beside.append(unit.network.patches(prepared, unit.weight))
                continue
            if isinstance(prepared, dict):
                weights = _ADAPTER_WEIGHTS if unit.mode in ("prompt", "control") else (1.0,) * len(prepared)
                _add(residuals, prepared, [unit.weight * w for w in weights], scaled.dtype)
                continue
            made = _run(control, prepared, scaled, told, conditioning, say)
            by_layer = [unit.weight * w for w in layer_weights(unit.mode, len(made))]
            middle = {"mid_block": made.pop("mid_block")}
            _add(skips, made, by_layer[:-1], scaled.dtype)
            _add(residuals, middle, by_layer[-1:], scaled.dtype)
        added = Patches(residuals=residuals, skips=skips) if skips or residuals else None
        return stacked([added, *beside])

    return source


def _add(total: dict[str, Tensor], parts: Mapping[str, Tensor], weights: Sequence[float], dtype: torch.dtype) -> None:
    for (name, part), weight in zip(parts.items(), weights):
        part = (part * weight).to(dtype)
        total[name] = total[name] + part if name in total else part


def _run(
    control: Control,
    hints: list[Tensor],
    scaled: Tensor,
    told: Tensor,
    conditioning: Conditioning,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """The network's answer to the U-Net's own input, in the network's own precision."""
    network, context, mask = control.unit.network, conditioning.context, conditioning.mask
    assert isinstance(network, ControlNet)
    weight = network.conv_in.weight
    if control.told is not None and conditioning.image_tokens is not None:
        first, count = control.told
        context, mask = conditioning.image_tokens[:, first : first + count], None

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(weight.device, weight.dtype)

    given: dict[str, Any] = {}
    if network.add_embedding is not None:
        if conditioning.pooled is not None:
            given["pooled"] = cast(conditioning.pooled)
        given["time_ids"] = conditioning.extra.get("time_ids")
    if network.config.guidance_width:
        given["guidance"] = conditioning.extra.get("guidance")

    def run() -> dict[str, Tensor]:
        made: dict[str, Tensor] = network(
            cast(scaled[:, : network.config.in_channels]),
            told.to(weight.device),
            cast(context),
            hints,
            tasks=control.unit.tasks,
            mask=mask,
            **given,
        )
        return made

    made = guarded(network, run, lambda module, part: say(f"NaN in {module}: {part} ran in float32"), "ControlNet")
    return {name: tensor.to(scaled.device) for name, tensor in made.items()}
