"""Runs that keep something from step to step, when they go on after a crash or a shortage of memory.

What a cache holds follows from what the network was asked before. After a crash the first steps' predictions are known
without asking it, and with another memory plan there are new caches; so a run notes those questions that the next answer
rests on, which are small, and those that a cache has not seen are asked again before.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from danqing.families import At
from danqing.sampling.types import Denoise, Prediction

Rests = Callable[[At, At], bool]
"""(before, now): whether what is kept now may be from there."""


class Retrace:
    """The questions of one run that its caches rest on."""

    def __init__(self, rests: Rests) -> None:
        self._rests = rests
        self._noted: dict[float, tuple[Tensor, At]] = {}

    def noting(self, denoise: Denoise) -> Denoise:
        """`denoise`, whose questions are noted: about whatever may answer without the network."""

        def noted(latents: Tensor, at: At) -> Prediction:
            kept = {step: each for step, each in self._noted.items() if self._rests(each[1], at)}
            self._noted = {**kept, at.step: (latents.clone(), at)}
            return denoise(latents, at)

        return noted

    def asking(self, denoise: Denoise) -> Denoise:
        """`denoise`, of new caches, which is first asked what was noted before and it has not heard yet."""
        heard: set[float] = set()

        def asked(latents: Tensor, at: At) -> Prediction:
            for step, (before, past) in list(self._noted.items()):
                if step < at.step and step not in heard and self._rests(past, at):
                    denoise(before, past)
                    heard.add(step)
            heard.add(at.step)
            return denoise(latents, at)

        return asked
