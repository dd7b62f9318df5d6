"""What is timed, as data; no torch here, so that a wrong option is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from danqing.errors import DanqingError
from danqing.vocabulary import choose

Kind = Literal["step", "decode", "picture", "train"]
"""A denoising step under classifier-free guidance; latents to pixels; a whole picture; one update of training."""
KINDS: tuple[Kind, ...] = get_args(Kind)

_USUAL = {"step": "sd1", "decode": "sd1", "picture": "danqing", "train": "danqing"}
"""The family of a kind that is named alone. `danqing` is the bundled model; others are painted with random weights."""
DEFAULT: tuple[str, ...] = ("step", "decode", "picture", "train")
ON_CUDA: tuple[str, ...] = ("picture:sd1", "picture:sdxl")
QUICK: tuple[str, ...] = ("step:danqing", "decode:danqing", "picture:danqing")


@dataclass(frozen=True)
class Work:
    """One thing to time, alike for all who take part."""

    kind: Kind
    family: str
    size: int
    """Pixels along each side."""
    batch: int
    """Pictures at once; a guided step has twice as many rows."""
    steps: int
    """Of a whole picture."""
    dtype: str
    """`float32`, `bfloat16`, `float16`. Training keeps float32 weights and multiplies in this one."""
    device: str

    def __str__(self) -> str:
        steps = f", {self.steps} steps" if self.kind == "picture" else ""
        batch = f", batch {self.batch}" if self.batch > 1 or self.kind == "train" else ""
        return f"{self.kind} {self.family} {self.size}x{self.size} {self.dtype}{batch}{steps}"


def read_works(names: Sequence[str], families: Sequence[str]) -> list[tuple[Kind, str]]:
    """`step` or `step:sdxl` as (kind, family). Raises DanqingError with the nearest name for an unknown one."""
    found = []
    for name in names:
        kind, colon, family = name.partition(":")
        kind = choose("benchmark", kind, list(KINDS))
        if colon and not family:
            raise DanqingError(f"benchmark: '{name}' names no model after the colon; {kind}:sd1 would")
        found.append((kind, choose("benchmark", family, list(families)) if family else _USUAL[kind]))
    return found
