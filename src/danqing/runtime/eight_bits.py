"""Linear layers held, or multiplied as well, in eight bits, by torchao (the extra `[torchao]`).

Convolutions stay as they are, and so do the layers of the step's embedding, which all others depend on.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from danqing.errors import DanqingError

CONFIGS = {
    "int8-weights": ("Int8WeightOnlyConfig", {"version": 2}),
    "int8": ("Int8DynamicActivationInt8WeightConfig", {"version": 2}),
    "fp8": ("Float8DynamicActivationFloat8WeightConfig", {}),
}
"""torchao's names. `int8-weights` rounds weights, with a scale for each row of outputs, and multiplies in the activations'
own precision: what is saved is memory, and the time to read it. The others round activations too, by their greatest in
each call, and multiply in eight bits."""
FP8_FROM = (8, 9)
"""CUDA's compute capability (Ada, Hopper)."""


def round_linears(network: nn.Module, how: str) -> None:
    """Round the linear layers of `network`, in place: `how` is a key of `CONFIGS`.

    Raises DanqingError where torchao is missing, or the device does not multiply so.
    """
    device = next(network.parameters()).device
    if how == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_FROM):
        raise DanqingError(
            "quantize: fp8 is for GPUs that multiply in it (RTX 40, H100 and later); choose int8-weights"
        )
    try:
        torchao = _torchao()
    except ImportError:
        raise DanqingError(f"quantize: {how} by torch needs the extra [torchao]; install danqing[torchao]") from None
    name, options = CONFIGS[how]
    torchao.quantize_(network, getattr(torchao, name)(**options), filter_fn=_is_rounded)
    network.requires_grad_(False)


def _torchao() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of libraries for GPUs that are not here
    try:
        return import_module("torchao.quantization")
    finally:
        logging.disable(before)


def _is_rounded(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "time_emb" not in name and "add_embedding" not in name


def whole(weight: Tensor) -> Tensor:
    """A weight in its own precision, whatever it is held in."""
    return weight.dequantize() if is_traceable_wrapper_subclass(weight) else weight
