"""What runs a model's network besides torch's eager mode: `compile` (torch.compile) and `openvino`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Engine = Literal["eager", "compile", "openvino", "auto"]
Quantize = Literal["none", "int8-weights", "int8", "fp8"]
Inputs = Mapping[str, Tensor]
"""A network's arguments by name; those that it is not given are left out."""
Run = Callable[[Inputs], Tensor]
Say = Callable[[str], None]


@dataclass(eq=False)
class Runner:
    """One network, run by other means than torch's eager mode wherever it can be.

    What is built for one shape of inputs is kept for the next call.
    """

    name: str
    """As pictures' records name it: `openvino int8`."""
    network: nn.Module
    build: Callable[[Inputs, Say], Run] | None
    """What answers inputs of these shapes; raises where there can be none. None: the network itself, whose weights are
    rounded, so that there is nothing to build and nothing to tell."""
    pays: Callable[[int], bool] = lambda calls: True
    """Whether that many calls of the network are worth the building."""
    ready: dict[tuple[object, ...], Run | None] = field(default_factory=dict)

    def answer(self, network: nn.Module, inputs: Inputs, say: Say, patched: bool = False) -> Tensor | None:
        """What `network` answers; None where the plain network is to be asked, and `say` is told why.

        `patched`: something steers the network's insides.
        """
        build = self.build
        if build is None:
            return None
        if patched:
            say(f"{self.name}: what steers the network's insides takes torch's eager mode")
            return None
        if network is not self.network:
            say(f"{self.name}: a LoRA or tiling changes the network, which therefore runs in torch's eager mode")
            return None
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs.values()):
            say(f"{self.name}: guidance asks for gradients, which only torch's eager mode gives")
            return None
        key = tuple((name, tensor.shape) for name, tensor in inputs.items())
        if key not in self.ready:
            self.ready[key] = self._built(build, inputs, say)
        run = self.ready[key]
        return None if run is None else run(inputs)

    def _built(self, build: Callable[[Inputs, Say], Run], inputs: Inputs, say: Say) -> Run | None:
        try:
            return build(inputs, say)
        except Exception as error:  # compilers fail in their own ways, and the plain network serves
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            say(f"{self.name}: could not be prepared, so torch's eager mode runs: {line}")
            return None
