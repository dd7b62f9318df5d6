"""The moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danqing.train.recipe import Average


def power(length: float) -> float:
    """The exponent gamma of a power-function average whose relative standard deviation is `length`.

    Karras et al. 2024, section 3 and appendix C.2: length = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
    Solved by halving: `length` falls from 0.2887 at gamma = 0 as gamma grows.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5 > length else (low, middle)
        )
    return low


class MovingAverage:
    """float32 copies of a network's parameters that follow them; buffers are taken as they are.

    `state_dict` and `load_state_dict` make it part of a saved state.
    """

    def __init__(self, network: nn.Module, settings: Average) -> None:
        self.network = network
        self.settings = settings
        self.gamma = power(settings.length) if settings.kind == "power" else 0.0
        self.weights = {name: p.detach().clone().float() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update `step` of the network, counted from 0."""
        keep = (1 - 1 / (step + 1)) ** (self.gamma + 1) if self.settings.kind == "power" else self.settings.decay
        keep = min(keep, (1 + step) / (10 + step)) if self.settings.kind == "constant" else keep
        parameters = [p.detach().float() for _, p in self.network.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), parameters, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network has the average's weights."""
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._give(self.weights)
        try:
            yield
        finally:
            self._give(own)

    @torch.no_grad()
    def _give(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state[name])
