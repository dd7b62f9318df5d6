"""Where a network's time goes and where it must: operations in five groups, their FLOPs, and the least they move."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

REST = "the rest"
_PATTERNS = {
    # the first that is found in an operation's name; kernels that a compiler made are named after what they hold
    "attention": r"attention|softmax|bmm|flash|sdp",
    "normalisation": r"norm",
    "convolution": r"conv(?!ert)",
    "linear": r"linear|addmm|\bmm\b|mmbackward|gemm",
}
GROUPS = ("convolution", "attention", "linear", "normalisation", REST)


def group_of(operation: str) -> str | None:
    """The group of an operation by its name; None where the name tells of none."""
    for group, pattern in _PATTERNS.items():
        if re.search(pattern, operation, re.IGNORECASE):
            return group
    return None


@dataclass(frozen=True)
class Count:
    """What a run takes, whoever runs it."""

    flops: Mapping[str, int]
    """By group: two for each multiplication with its addition."""
    moved: Mapping[str, int]
    """By group: bytes that its operations read and write, each tensor once for each operation."""

    @property
    def total(self) -> int:
        return sum(self.flops.values())


def count(run: Callable[[], Any]) -> Count:
    """What `run`, all of whose tensors are on the meta device, takes. Exact, and nothing is computed."""
    flops, traffic = FlopCounterMode(display=False), _Traffic()
    with _Attending(traffic), traffic, flops:
        run()
    totals = dict.fromkeys(GROUPS, 0)
    for operation, number in flops.get_flop_counts().get("Global", {}).items():
        totals[group_of(str(operation)) or REST] += number
    return Count(totals, traffic.moved)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = dict.fromkeys(GROUPS, 0)
        self.within: str | None = None
        """The group that all counts to for now."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            tensors = {id(t): t for t in _tensors((args, kwargs, out))}
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            self.moved[self.within or group_of(str(func)) or REST] += size
        return out


class _Attending(TorchFunctionMode):
    """On the meta device attention falls apart into operations that no longer tell what they are of."""

    def __init__(self, traffic: _Traffic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = traffic

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.traffic.within = "attention" if func is F.scaled_dot_product_attention else None
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.traffic.within = None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (tuple, list)) else []


def spent(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of one `run` by group, as torch's profiler sees it on this device.

    What is within an operation of a group is the group's: a copy within a convolution, a product within attention.
    Where the device works behind the program's back, its own time counts.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = device.startswith("cuda")
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities):
        pass  # the profiler's own beginning takes its time
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if cuda:
            torch.cuda.synchronize()
    seconds = dict.fromkeys(GROUPS, 0.0)
    for event in profile.events() or ():
        if event.device_type.name != "CPU":
            continue
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        place, group = event, None
        while place is not None:
            place, group = place.cpu_parent, group_of(place.name) or group
        seconds[group or REST] += own / 1e6
    return seconds


@dataclass(frozen=True)
class Bottleneck:
    """The group that would gain most: whose time is furthest above what the machine's own rates allow."""

    group: str
    seconds: float
    bound: float
    share: float
    """Of all the time: what would be saved at its bound."""


def bottleneck(seconds: Mapping[str, float], count: Count, peak: float, bandwidth: float) -> Bottleneck | None:
    """What to mend next, from seconds by group; None where all are at their bounds.

    A group's bound is its FLOPs at `peak` FLOP/s; that of normalisation and the rest, which multiply little, the bytes
    that they move at `bandwidth` bytes per second.
    """
    total = sum(seconds.values())
    found = []
    for group, time in seconds.items():
        flops = count.flops[group] / peak
        bound = flops if group in ("convolution", "attention", "linear") else max(flops, count.moved[group] / bandwidth)
        if time > bound:
            found.append(Bottleneck(group, time, bound, (time - bound) / total))
    return max(found, key=lambda one: one.share, default=None)
