"""How much memory there is, how much a run will take, and how to run with less."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from danqing.errors import DanqingError
from danqing.runtime.allocator import give_back
from danqing.runtime.stream import Streamed

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """How a batch is cut up. Only `tile` can be seen in the picture; the others change its last bits at most."""

    pictures_per_call: int
    """Pictures that share a call of the denoiser."""
    branches_apart: bool = False
    """The positive and the negative prompt in a call each."""
    tile: int | None = None
    """The autoencoder decodes tiles of so many latent cells; None is a whole picture at a time."""

    def __str__(self) -> str:
        parts = [f"{self.pictures_per_call} picture{'s' * (self.pictures_per_call > 1)} at a time"]
        parts += ["prompts one after the other"] * self.branches_apart
        parts += ["decoded in tiles"] * (self.tile is not None)
        return ", ".join(parts)


TILE = 64
"""Latent cells: the size of a tiled decode's tiles."""


def plans(batch: int, device: torch.device | str) -> tuple[Plan, ...]:
    """From the fastest to the leanest; those that cannot be seen in the picture before those that decode in tiles.

    On a CPU a picture is a call of its own from the start, which keeps its bits independent of its batch.
    """
    size = 1 if torch.device(device).type == "cpu" else batch
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    ladder = [Plan(n) for n in sizes] + [Plan(1, branches_apart=True)]
    tiled = [Plan(p.pictures_per_call, p.branches_apart, TILE) for p in ladder]
    return (*ladder, *tiled)


class DenoiserShape(Protocol):
    """What a U-Net's configuration says of its sizes."""

    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def down_depth(self) -> tuple[tuple[int, ...], ...]: ...


class AutoencoderShape(Protocol):
    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def downscale(self) -> int: ...


_TRANSFORMER, _RESIDUAL, _DECODER, _IN_BANDS = 21.2, 11.5, 6.1, 3.0
"""Values that live at once at a network's peak, in units of its finest block's own output: in a level with
transformers (the gated feed-forward holds 16), in one without, and in the decoder's last level, as a whole and in bands
of rows (`models.bands`). Counted over a run of the full-size networks; tests/runtime/test_memory.py counts them again."""
_SLACK = 96 * 2**20
"""What kernels keep for themselves, and small things."""


def predicted_peak(
    plan: Plan,
    *,
    weights: int,
    denoiser: DenoiserShape,
    autoencoder: AutoencoderShape,
    width: int,
    height: int,
    itemsize: int,
    decode_itemsize: int | None = None,
    branches: int = 2,
    window: tuple[int, int] | None = None,
    controls: int = 0,
    in_bands: bool = False,
) -> int:
    """Bytes that painting takes at its peak: weights, and the larger of a denoiser's call and a decode.

    `width` and `height` in pixels; `itemsize` is a value's bytes (4 for float32, 2 for half precision), for the
    autoencoder `decode_itemsize` where it differs; `branches` are the prompts evaluated per picture. `window` (width,
    height) in latent cells is the most that a call of the denoiser sees of a picture. `controls` are the ControlNets and
    T2I-Adapters: what they add to the skip connections waits for the denoiser, and each keeps its hint.
    `in_bands` is how a CPU decodes.
    """
    scale = autoencoder.downscale
    columns, rows = math.ceil(width / scale), math.ceil(height / scale)
    batch = plan.pictures_per_call * (1 if plan.branches_apart else branches)
    seen = (columns, rows) if window is None else (min(columns, window[0]), min(rows, window[1]))
    values = denoiser_activations(denoiser, *seen) + (_skips(denoiser, *seen) if controls else 0)
    hints = controls * denoiser.channels[0] * columns * rows
    call = (batch * values + hints) * itemsize
    if plan.tile is not None:
        columns, rows = min(columns, plan.tile), min(rows, plan.tile)
    pixels = columns * rows * scale * scale
    decode = round((_IN_BANDS if in_bands else _DECODER) * autoencoder.channels[0] * pixels) * (
        decode_itemsize or itemsize
    )
    if plan.tile is not None:
        decode += 4 * width * height * 4  # the canvas and its weights are float32
    return weights + max(call, decode) + _SLACK


def denoiser_activations(config: DenoiserShape, width: int, height: int) -> int:
    """Values that live at once in a call of one row; sizes in latent cells. The skip connections, and the widest level."""
    widest = max(
        size * (_TRANSFORMER if any(depths) else _RESIDUAL)
        for size, depths in zip(_level_sizes(config, width, height), config.down_depth)
    )
    return round(_skips(config, width, height) + widest)


def _skips(config: DenoiserShape, width: int, height: int) -> int:
    """Values of one row's skip connections."""
    sizes = _level_sizes(config, width, height)
    own = sum(len(depths) * size for size, depths in zip(sizes, config.down_depth))
    return config.channels[0] * width * height + own + sum(size // 4 for size in sizes[:-1])


def _level_sizes(config: DenoiserShape, width: int, height: int) -> list[int]:
    """Values of a block's output, by level."""
    return [
        channels * math.ceil(width / 2**level) * math.ceil(height / 2**level)
        for level, channels in enumerate(config.channels)
    ]


def left(memory: int, device: torch.device | str, proc: Path = Path("/proc")) -> int:
    """What is left of `memory` bytes that painting may take: less what torch has on a GPU, or on the CPU what the
    process has of its own (files that are mapped are not)."""
    device = torch.device(device)
    if device.type == "cuda":
        used = int(torch.cuda.memory_allocated(device))
    elif device.type == "mps":
        used = int(torch.mps.current_allocated_memory())
    else:
        give_back()
        used = _status(proc, "RssAnon")
    return max(memory - used, 0)


def _status(proc: Path, name: str) -> int:
    """Bytes that the kernel counts for this process under a name; 0 where it tells nothing."""
    for line in _text(proc / "self" / "status").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def weight_bytes(*networks: nn.Module) -> int:
    """Bytes of the networks' parameters and buffers, shared ones once; streamed ones take none."""
    weights = (t for net in networks for t in (*net.parameters(), *net.buffers()) if not isinstance(t, Streamed))
    tensors = {t.data_ptr() or id(t): t for t in weights}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def first_that_fits(
    ladder: Sequence[Plan], peak: Callable[[Plan], int], free: int | None, say: Callable[[str], None]
) -> tuple[Plan, ...]:
    """The ladder from the first plan whose `peak` is within `free` bytes (unknown: from the start); at least the last.

    One line is said where that is not the first, and where not even the last fits.
    """
    if free is None:
        return tuple(ladder)
    for index, plan in enumerate(ladder):
        if peak(plan) <= free:
            if index:
                need, have = _gigabytes(peak(ladder[0])), _gigabytes(free)
                say(f"memory: {need} would be needed and {have} are free, so {plan}")
            return tuple(ladder[index:])
    say(f"memory: even {ladder[-1]} needs {_gigabytes(peak(ladder[-1]))}, and {_gigabytes(free)} are free; trying")
    return tuple(ladder[-1:])


def with_retries(ladder: Sequence[Plan], run: Callable[[Plan], Result], say: Callable[[str], None]) -> Result:
    """`run(plan)` with the first plan, and after each failure for want of memory with the next, which is said.

    Raises DanqingError when the last one fails so.
    """
    while True:
        try:
            return run(ladder[0])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # after the except clause: the error holds the failed run's tensors
        ladder = leaner(ladder, say)


def leaner(ladder: Sequence[Plan], say: Callable[[str], None]) -> Sequence[Plan]:
    """The ladder without the plan that failed, and memory tidied up. Raises DanqingError where none is left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(ladder) < 2:
        raise DanqingError(
            "out of memory even with the leanest plan; choose a smaller size or batch, or close programs"
        )
    say(f"out of memory with {ladder[0]}; again with {ladder[1]}")
    return ladder[1:]


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory did not suffice: each device and system has its own words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def available(
    device: torch.device | str, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can still be had on `device`; None where that cannot be known.

    On Linux what the kernel deems available, within the limits of the container; on CUDA what the driver has free
    and what torch keeps but does not use.
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    rooms = [room for room in (_kernel_room(proc), *_cgroup_rooms(proc, cgroup)) if room is not None]
    return min(rooms, default=None)


def _kernel_room(proc: Path) -> int | None:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_rooms(proc: Path, root: Path) -> list[int]:
    """What each limit above this process leaves: version 2's memory.max, version 1's memory.limit_in_bytes."""
    rooms = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            most, now = _text(place / limit).strip(), _text(place / used).strip()
            if most.isdigit() and now.isdigit():
                rooms.append(int(most) - int(now) + _cache(place))
    return rooms


def _cache(place: Path) -> int:
    """Bytes of files that a cgroup holds in memory and gives back when asked, memory-mapped weights among them."""
    values = dict(line.split() for line in _text(place / "memory.stat").splitlines() if line.count(" ") == 1)
    return int(values.get("inactive_file", 0)) + int(values.get("active_file", 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
