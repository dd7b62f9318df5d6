"""Changes to a network's weights that leave the network as it is: patches, and twins that carry them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.runtime.eight_bits import whole
from danqing.runtime.packed import keep_alike
from danqing.runtime.stream import Streamed

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class WeightPatch:
    """A change to one parameter of one network."""

    network: str
    """`unet`, `text_encoder`, `text_encoder_2`: as a checkpoint's components are named."""
    layer: str
    """The parameter's canonical name: `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`."""
    change: Callable[[Tensor, float], Tensor]
    """(weight in float32, strength) -> the new weight, of the same shape; the argument is left as it is."""
    part: slice | None = None
    """Rows of a fused weight; None is all of it."""
    norm: Callable[[], Tensor] | None = None
    """The norm of what it adds at strength 1, where that is known without making it; at s it is |s| times as much."""


def patched(weight: Tensor, changes: Sequence[tuple[WeightPatch, float]]) -> Tensor:
    """`weight` after every (patch, strength) in order, reckoned in float32 and rounded to its own type once.

    The result has the dtype, device and strides of `weight`, which is left as it is. A strength of 0 changes nothing;
    where nothing changes the result may share the memory of `weight`.
    Raises ValueError if a patch gives another shape.
    """
    weight = whole(weight.detach())
    new = weight.float()
    for patch, strength in changes:
        if strength == 0:
            continue
        rows = new if patch.part is None else new[patch.part]
        result = patch.change(rows, strength)
        if result.shape != rows.shape:
            raise ValueError(f"{patch.layer}: a patch gives {list(result.shape)} for {list(rows.shape)}")
        if patch.part is None:
            new = result
        else:
            new = new.clone()
            new[patch.part] = result
    if new.dtype == weight.dtype and new.stride() == weight.stride():
        return new
    return torch.empty_like(weight).copy_(new)


def patched_anew(weight: Streamed, changes: Sequence[tuple[WeightPatch, float]]) -> Streamed:
    """`patched` of a weight that is not there: it is patched whenever it comes."""

    def fill(flat: Tensor, part: int) -> None:
        base = torch.empty(weight.numel(), dtype=weight.dtype)
        weight.fill(base, part)
        flat.copy_(patched(base.view(weight.shape), changes).reshape(-1))

    return Streamed.of(fill, weight.shape, weight.dtype, weight.device)


def twin(module: Network, weights: Mapping[str, Tensor]) -> Network:
    """The same tree of modules, with the parameters named in `weights` replaced by those tensors.

    All other parameters and buffers are shared; the original is untouched, so that dropping the twin undoes it. The
    tensors should have the dtype, device and strides of what they replace (`patched` gives such); their shape must be
    the same. Raises ValueError for a name that is no parameter, or for another shape.
    """
    left = dict(weights)
    memo: dict[int, nn.Module] = {}

    def copied(node: nn.Module, prefix: str) -> nn.Module:
        other = memo.get(id(node))
        if other is None:
            other = memo[id(node)] = copy.copy(node)
            other._parameters, other._buffers = dict(node._parameters), dict(node._buffers)
            other._modules = {
                name: None if child is None else copied(child, f"{prefix}{name}.")
                for name, child in node._modules.items()
            }
        for name, parameter in node._parameters.items():
            tensor = left.pop(f"{prefix}{name}", None)
            if tensor is None:
                continue
            if parameter is None or parameter.shape != tensor.shape:
                raise ValueError(f"{prefix}{name}: no parameter of shape {list(tensor.shape)}")
            weight = tensor if isinstance(tensor, Streamed) else nn.Parameter(tensor, parameter.requires_grad)
            keep_alike(weight, parameter)
            other._parameters[name] = weight
        return other

    result = copied(module, "")
    if left:
        raise ValueError(f"{next(iter(left))}: no such parameter")
    return result  # type: ignore[return-value]


class ByStep(nn.Module):
    """Networks of which one paints each step: `sampling.predict` asks for it by `at`."""

    def __init__(self, networks: Sequence[nn.Module], order: Sequence[int]) -> None:
        """`order`: the number of the network at each step; later steps have the last one's."""
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.order = tuple(order)

    def at(self, step: float) -> nn.Module:
        """The network of a step; a step's inner evaluations have its own."""
        return self.networks[self.order[min(max(int(step), 0), len(self.order) - 1)]]


ASKED: ContextVar[int] = ContextVar("ASKED", default=0)
"""The number of the network of a `Blend` that is being asked: what a patch has seen in one of them is not the
others'."""


class Blend(nn.Module):
    """Networks that answer together: the weighted sum of what they say to the same question. `ASKED` tells which it
    is."""

    shares: Tensor

    def __init__(self, networks: Sequence[nn.Module], shares: Tensor) -> None:
        """`shares` (n, h, w) sum to 1 at each place; they are stretched to what the networks answer (B, C, H, W)."""
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the networks'."""
        shares = F.interpolate(self.shares[None], size=latents.shape[-2:], mode="area")[0].to(latents.dtype)
        answers = []
        before = ASKED.get()
        try:
            for number, network in enumerate(self.networks):
                ASKED.set(number)
                answers.append(network(latents, *args, **kwargs))
        finally:
            ASKED.set(before)
        return torch.stack([answer * share for answer, share in zip(answers, shares)]).sum(0)
