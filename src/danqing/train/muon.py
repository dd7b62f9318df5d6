"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

The momentum of a weight matrix is replaced by the nearest half-orthogonal matrix, so that every direction of its rows
and columns learns at one pace; Adam moves mostly along the few that have large gradients. Vectors go on by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose five steps bring singular values near 1 (the same source)."""


class Muon(torch.optim.Optimizer):
    """Matrices and convolutions (as matrices of output channels by everything else) by Muon, vectors by AdamW.

    One learning rate serves both: a matrix's step is scaled so that its root mean square is Adam's usual 0.2 times the
    learning rate (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    move = _matrix if weight.dim() >= 2 else _vector
                    move(weight, weight.grad, self.state[weight], group)
        return loss


def _matrix(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
    ahead = gradient.lerp(average, group["momentum"])  # Nesterov's
    step = orthogonal(ahead.flatten(1)).view(ahead.shape)
    rows, columns = ahead.flatten(1).shape
    weight.add_(step, alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)


def _vector(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """AdamW's step (Kingma and Ba 2015, algorithm 1)."""
    if not state:
        state.update(step=0, first=torch.zeros_like(gradient), second=torch.zeros_like(gradient))
    state["step"] += 1
    one, two = group["betas"]
    state["first"].lerp_(gradient, 1 - one)
    state["second"].lerp_(gradient.square(), 1 - two)
    first = state["first"] / (1 - one ** state["step"])
    second = state["second"] / (1 - two ** state["step"])
    weight.add_(first / (second.sqrt() + group["eps"]), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors whose singular values are all about 1 (0.7 to 1.2), in bfloat16's bits."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    x = x.T if tall else x
    for _ in range(5):
        squared = x @ x.T
        x = a * x + (b * squared + c * squared @ squared) @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)
