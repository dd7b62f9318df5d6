"""Networks by torch.compile, whose kernels are kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from danqing.runtime.engines import Inputs, Run, Say


def compiler(network: nn.Module, cache: Path, dynamic: bool) -> Run:
    """`network`, compiled when it is first called. Raises as torch.compile does; on a CPU that takes a C++ compiler.

    On a CPU weights are frozen into the kernels' own layouts. With `dynamic`, other sizes need no new kernels.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))  # torch has no argument for it
    compiled = torch.compile(network, dynamic=dynamic or None, options={"freezing": not dynamic})

    def run(inputs: Inputs) -> Tensor:
        answer: Tensor = compiled(**inputs)
        return answer

    return run


def build(network: nn.Module, cache: Path, device: torch.device, inputs: Inputs, say: Say) -> Run:
    """What `engines.Runner.build` is for torch.compile; the first call is made here, as it is what compiles."""
    say("compile: the network is compiled, which takes a minute or more once")
    run = compiler(network, cache, device.type != "cpu")
    run(inputs)
    return run
