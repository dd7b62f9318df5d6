"""Text to image: a request becomes pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from danqing.families import Model
from danqing.pipeline.picture import Picture
from danqing.requests import TextToImage

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Progress:
    """A finished step of a batch; with its last step come the batch's pictures."""

    batch: int
    """From 0."""
    batches: int
    step: int
    """Steps done in this batch, from 1."""
    steps: int
    latents: Tensor
    """(B, C, H, W) in the samplers' coordinates."""
    clean: Tensor
    """(B, C, H, W): what the model takes the pictures to be by now."""
    pictures: tuple[Picture, ...] = ()


def paint(request: TextToImage | str, model: Model | None = None, **options: Any) -> list[Picture]:
    """Paint pictures and return them. Takes what `stream` takes."""
    return [picture for event in stream(request, model, **options) for picture in event.pictures]
