"""Weights that come when their layer is called, and go when it is done: a network larger than the memory it may take.

While one part of the network computes, a thread of its own makes the next one's weights ready: it reads them from the
mapped file, converts them, and where the network runs on a GPU sends them there on a stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from danqing.runtime.conversion import PART, Block, convert

UNIT = 50_000_000
"""Values: parts of a network come as a whole where they are no larger. The largest residual block of SDXL just is."""
SMALL = 1 << 19
"""Values: parts up to this size stay. What is used otherwise than by calling its module (a table of positions) is small."""
SLOTS = 2
"""Parts that are there at once: one computes, the next one's weights come."""

_PIECE = (1 << 15) - 64
"""Values that are converted at a time beside a network on the CPU: fewer than torch would share out among its threads,
which are the network's."""

Fill = Callable[[Tensor, int], None]
"""Writes a weight into a flat CPU tensor of its parameter's type, so many values at a time."""


class Streamed(nn.Parameter):
    """A weight that is not there but while its layer computes: else every value of it is NaN, and takes no memory."""

    fill: Fill
    absent: Tensor

    @staticmethod
    def of(fill: Fill, shape: torch.Size, dtype: torch.dtype, device: torch.device | str) -> Streamed:
        absent = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)
        weight = Streamed(absent, requires_grad=False)
        weight.fill, weight.absent = fill, absent
        return weight


def whole(weight: Tensor) -> Tensor:
    """The weight's values, on its device: a streamed one is read for it."""
    if not isinstance(weight, Streamed):
        return weight
    flat = torch.empty(weight.numel(), dtype=weight.dtype)
    weight.fill(flat, PART)
    return flat.view(weight.shape).to(weight.device)


def is_streamed(network: nn.Module) -> bool:
    """Whether any of its weights come and go."""
    return any(isinstance(weight, Streamed) for weight in network.parameters())


def units(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts whose weights come and go together, with their names: the largest within `UNIT` that are called."""
    for name, child in network.named_children():
        size = sum(weight.numel() for weight in child.parameters())
        called = type(child).forward is not nn.Module.forward
        leaf = next(child.children(), None) is None
        if size > SMALL and called and (size <= UNIT or leaf):
            yield f"{prefix}{name}", child
        else:
            yield from units(child, f"{prefix}{name}.")


def slot_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that the weights that come and go take while a network of `dtype` runs."""
    sizes = (sum(weight.numel() for weight in unit.parameters()) for _, unit in units(network))
    return SLOTS * max(sizes, default=0) * dtype.itemsize


@dataclass(eq=False)
class _Slot:
    """Room for one part's weights on the device, and where they are made ready."""

    room: Tensor
    host: Tensor
    """The room itself on a CPU; else memory that the GPU can fetch from."""
    came: torch.cuda.Event | None = None
    """When the last copy from `host` has ended."""
    used: torch.cuda.Event | None = None
    """When the device has done with what is in `room`."""
    weights: list[tuple[Streamed, Tensor]] = field(default_factory=list)


def stream(network: nn.Module, device: torch.device | str, staged: bool | None = None) -> None:
    """Let the `Streamed` weights of a network come and go with its `units`; the network runs in one thread at a time.

    Twins of it that share its modules' hooks (`models.weights.twin`, `numerics.converted`) stream likewise. `staged`
    makes weights ready elsewhere than where they are used: unless given, on every device but a CPU.
    """
    streamed = [unit for _, unit in units(network) if is_streamed(unit)]
    size = max((_bytes(unit) for unit in streamed), default=0)
    device = torch.device(device)
    ring = _Ring(size, device, device.type != "cpu" if staged is None else staged)
    for unit in streamed:
        unit.register_forward_pre_hook(ring.enter)
        unit.register_forward_hook(ring.leave, always_call=True)
    network.register_forward_hook(ring.rest, always_call=True)


def _bytes(unit: nn.Module) -> int:
    """Bytes of a part's weights, each at an address that suits every kernel."""
    return sum(Block.aligned(weight.numel() * weight.element_size()) for weight in unit.parameters())


class _Ring:
    """The slots of a network, and who goes into them next: whoever did so the last time."""

    def __init__(self, size: int, device: torch.device, staged: bool) -> None:
        self.size, self.device, self.staged = size, device, staged
        self.free: list[_Slot] = []
        self.made = 0
        self.held: dict[nn.Module, _Slot] = {}
        self.ahead: tuple[nn.Module, Future[_Slot]] | None = None
        self.following: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
        self.last: nn.Module | None = None
        self.worker: ThreadPoolExecutor | None = None
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> _Ring:
        return self  # a copy of a network has its hooks

    def enter(self, unit: nn.Module, args: Any) -> None:
        """Before a part computes: its weights are put in place, and the next one's sent for."""
        if self.last is not None:
            self.following[self.last] = ref(unit)
        self.last = unit
        slot = self._awaited(unit) or self._filled(unit, self._slot())
        if slot.came is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.came)
        for weight, values in slot.weights:
            weight.data = values
        self.held[unit] = slot
        expected = self.following.get(unit)
        following = expected() if expected is not None else None
        if following is not None and following not in self.held and self.made - len(self.free) < SLOTS:
            self.worker = self.worker or ThreadPoolExecutor(1, "danqing-weights")
            self.ahead = following, self.worker.submit(self._filled, following, self._slot())

    def leave(self, unit: nn.Module, args: Any, output: Any) -> None:
        """After a part has computed: its weights go."""
        slot = self.held.pop(unit, None)
        if slot is not None:
            for weight, _ in slot.weights:
                weight.data = weight.absent
            if slot.used is not None:
                slot.used.record(torch.cuda.current_stream(self.device))
            self.free.append(slot)

    def rest(self, network: nn.Module, args: Any, output: Any) -> None:
        """After the network: the slots go, too."""
        self._awaited(None)
        self.free, self.made, self.last = [], len(self.held), None

    def _awaited(self, unit: nn.Module | None) -> _Slot | None:
        """The slot that was sent for, if it is this part's; another's is free again."""
        if self.ahead is None:
            return None
        (expected, future), self.ahead = self.ahead, None
        slot = future.result()
        if expected is unit:
            return slot
        self.free.append(slot)
        return None

    def _slot(self) -> _Slot:
        if self.free:
            return self.free.pop()
        self.made += 1
        room = torch.empty(self.size, dtype=torch.uint8, device=self.device)
        cuda = self.device.type == "cuda"
        host = torch.empty(self.size, dtype=torch.uint8, pin_memory=cuda) if self.staged else room
        came, used = (torch.cuda.Event() if cuda else None for _ in range(2))  # type: ignore[no-untyped-call]
        return _Slot(room, host, came, used)

    @torch.no_grad()
    def _filled(self, unit: nn.Module, slot: _Slot) -> _Slot:
        """`slot` with the part's weights, in whatever thread this is."""
        if slot.came is not None:
            slot.came.synchronize()
        slot.weights, at = [], 0
        for weight in unit.parameters():
            if isinstance(weight, Streamed):
                end = at + weight.numel() * weight.element_size()
                weight.fill(slot.host[at:end].view(weight.dtype), PART if self.staged else _PIECE)
                slot.weights.append((weight, slot.room[at:end].view(weight.dtype).view(weight.shape)))
                at = Block.aligned(end)
        if self.copies is not None and slot.came is not None and slot.used is not None:
            with torch.cuda.stream(self.copies):
                self.copies.wait_event(slot.used)
                slot.room[:at].copy_(slot.host[:at], non_blocking=True)
                slot.came.record(self.copies)
        elif self.staged:
            slot.room[:at].copy_(slot.host[:at])
        return slot


def filler(load: Callable[[], Tensor], release: Callable[[], None] = lambda: None) -> Fill:
    """A `Fill` by a function that reads the weight, of any type, and one that lets go of what was read."""

    def fill(flat: Tensor, part: int) -> None:
        convert(load().reshape(-1), flat, part)
        release()

    return fill
