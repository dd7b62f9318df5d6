"""What a denoiser is told besides the latents: text, sizes, pictures, and where and when it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor


class Mapped(Protocol):
    """What holds tensors of its own whose first dimension is the batch, or 1."""

    def map(self, fn: Any) -> Any:
        """The same with `fn` applied to each tensor; itself where that changes none."""


@dataclass(frozen=True)
class Conditioning:
    """One branch's conditioning.

    Every tensor's first dimension is the batch B, or 1 for all pictures of the batch alike.
    """

    context: Tensor
    """(B, T, C): the text encoders' hidden states."""
    mask: Tensor | None = None
    """(B, T) bool, True where `context` counts; None when all of it does (the CLIP families)."""
    pooled: Tensor | None = None
    """(B, P): the pooled text vector (SDXL)."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Named inputs of a family: `time_ids` (B, 6 or 5), `guidance` (B,), `class_label` (B,) ..."""
    image_tokens: Tensor | None = None
    """(B, T, C): an image encoder's tokens, for adapters that attend to them."""
    channels: Tensor | None = None
    """(B, C', H, W): concatenated to the scaled latents (inpainting, instruct-pix2pix)."""
    controls: tuple[Mapped, ...] = ()
    """ControlNets and their pictures (on the latents' grid) that act on this branch: `danqing.adapters.control`'s."""
    area: Tensor | None = None
    """(B, 1, H, W) in [0, 1] at latent size: where in the picture this branch holds; None is everywhere."""
    strength: float = 1.0
    """This branch's weight among those of its side (AND prompts, regions)."""
    steps: tuple[float, float] = (float("-inf"), float("inf"))
    """Holds at `At.step` in the half-open range [first, last)."""
    rows: tuple[tuple[int, int], ...] = ()
    """In a call of the network: of each row, which branch it is of (the same number all through a run) and which
    picture. Caches go by it."""

    def holds(self, step: float) -> bool:
        return self.steps[0] <= step < self.steps[1]

    def map(self, fn: Any) -> Conditioning:
        """The same conditioning with `fn` applied to each of its tensors."""

        def apply(value: Tensor | None) -> Tensor | None:
            return None if value is None else fn(value)

        return replace(
            self,
            context=fn(self.context),
            mask=apply(self.mask),
            pooled=apply(self.pooled),
            extra={name: fn(value) for name, value in self.extra.items()},
            image_tokens=apply(self.image_tokens),
            channels=apply(self.channels),
            area=apply(self.area),
            controls=tuple(control.map(fn) for control in self.controls),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved to `device`; floating tensors cast to `dtype`."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    def picture(self, index: int) -> Conditioning:
        """The conditioning of one picture of the batch, with B = 1."""
        return self.map(lambda t: t if t.shape[0] == 1 else t[index : index + 1])
