"""What this machine is, and the best that it does: the rates that figures are held against."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.runtime.devices import DTYPES

_CONVOLUTIONS = ((320, 64), (640, 64), (640, 32), (1280, 32), (1280, 16))
"""(channels, side) of convolutions of a batch of two, as U-Nets have them."""
_PRODUCTS = ((8192, 320, 2560), (2048, 1280, 1280), (4096, 2048, 2048))
"""(rows, columns in, columns out) of linear layers."""
_COPIED = 1 << 28
"""Bytes: more than caches hold."""
_GPU = 8
"""How many times as many pictures and rows fill a GPU."""
_ROUNDS = 5


@dataclass(frozen=True)
class Machine:
    """Where figures come from."""

    name: str
    threads: int
    memory: int
    """Bytes: of the device, or of the machine."""
    system: str
    python: str
    torch: str


@dataclass(frozen=True)
class Rates:
    """The best that was measured, per second."""

    convolution: float
    """FLOP/s."""
    matmul: float
    """FLOP/s."""

    @property
    def peak(self) -> float:
        return max(self.convolution, self.matmul)


def this_machine(device: str) -> Machine:
    """The machine as figures name it."""
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        name, memory = found.name, found.total_memory
    else:
        name, memory = _processor(), _memory()
    return Machine(
        name=name,
        threads=torch.get_num_threads(),
        memory=memory,
        system=platform.platform(terse=True),
        python=platform.python_version(),
        torch=torch.__version__,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 0


def clock(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds that `call` takes, by the device's own clock where it works behind the program's back; and what it returns."""
    if not device.startswith("cuda"):
        begin = time.perf_counter()
        result = call()
        return time.perf_counter() - begin, result
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000, result


@torch.no_grad()
def rates(dtype: str, device: str) -> Rates:
    """The best convolution and linear layer of the sizes that U-Nets have."""
    precision = DTYPES[dtype]
    more = _GPU if device.startswith("cuda") else 1

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=precision)

    def best(call: Callable[[], Any], flops: float) -> float:
        call()
        return flops / statistics.median(clock(call, device)[0] for _ in range(_ROUNDS))

    convolutions, products = [], []
    for channels, side in _CONVOLUTIONS:
        x = random(2 * more, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = random(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * side**2 * len(x)
        convolutions.append(best(lambda: F.conv2d(x, weight, padding=1), flops))  # noqa: B023
    for rows, width, out in _PRODUCTS:
        rows *= more
        tokens, matrix = random(rows, width), random(out, width)
        products.append(best(lambda: F.linear(tokens, matrix), 2 * rows * width * out))  # noqa: B023
    return Rates(max(convolutions), max(products))


def bandwidth(device: str, size: int = _COPIED) -> float:
    """Bytes per second, read and written together, of copying `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / statistics.median(clock(lambda: target.copy_(source), device)[0] for _ in range(_ROUNDS))


def best_rates(dtypes: Sequence[str], device: str) -> dict[str, Rates]:
    """`rates` of each precision."""
    return {dtype: rates(dtype, device) for dtype in dict.fromkeys(dtypes)}


def device_memory(device: str) -> int:
    """Bytes of a GPU's memory that this process held at most; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
