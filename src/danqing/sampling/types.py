"""What samplers, guidance and the network's caller hand each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning


@dataclass(frozen=True)
class Prediction:
    """What the model takes the clean picture to be, in the samplers' coordinates."""

    clean: Tensor
    """(B, C, H, W) float32, guided."""
    unconditional: Tensor | None = None
    """The same for the negative prompt alone, where a sampler needs it (CFG++); None where it was left out."""
    conditional: Tensor | None = None
    """The same at a guidance scale of 1, where `unconditional` is there: what rescaling and thresholding measure by."""

    def each(self, fn: Callable[[Tensor], Tensor]) -> Prediction:
        """All parts that are there through `fn`, (B, C, H, W) -> (B', C', H', W')."""
        others = (self.unconditional, self.conditional)
        return Prediction(fn(self.clean), *(None if other is None else fn(other) for other in others))


Predict = Callable[[Tensor, At, Sequence[Conditioning]], list[Tensor]]
"""(latents (B, C, H, W), at, branches) -> each branch's clean prediction (B, C, H, W)."""

Denoise = Callable[[Tensor, At], Prediction]
"""(latents (B, C, H, W), at) -> Prediction."""


class Noise(Protocol):
    """Addressed noise: the same draw is the same tensor, whoever asks and whenever."""

    def __call__(self, draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        """(B, C, H, W) float32 of unit variance. Draw 0 is the start noise; samplers count theirs from 1.

        A Brownian source uses `sigma` and `sigma_next` and leaves `draw` aside.
        """


@dataclass(frozen=True)
class Step:
    """A finished step. `sampler(..., resume=step)` goes on after it with the same bits."""

    index: int
    """From 0."""
    latents: Tensor
    """(B, C, H, W) float32, at the next noise level, in the samplers' coordinates."""
    clean: Tensor
    """(B, C, H, W): the last clean prediction; a preview."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the method remembers: history of multistep methods, draws used. Tensors and plain values."""


class SamplerFunction(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        sigmas: Tensor,
        noise: Noise,
        resume: Step | None = None,
        **options: Any,
    ) -> Iterator[Step]: ...
