"""A benchmark from beginning to end: the machine's own rates, each work in turns, lines for people, JSON for programs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from danqing.checkpoints.save import save
from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.families import find_family
from danqing.library.folders import BUNDLED
from danqing.measure.contenders import Contender
from danqing.measure.groups import Bottleneck, Count, bottleneck
from danqing.measure.inputs import cost
from danqing.measure.machine import Machine, Rates, bandwidth, best_rates, this_machine
from danqing.measure.random_model import random_model
from danqing.measure.rounds import Timing, in_turns
from danqing.measure.works import Kind, Work
from danqing.runtime.devices import DTYPES, pick_device, pick_dtype
from danqing.version import __version__

Say = Callable[[str], None]
_STEP = 64
"""Sizes are multiples of it: what every contender paints without padding."""

_TRAINED = 16
"""Pictures of an update."""


@dataclass(frozen=True)
class Setting:
    """What holds for every work of a run."""

    device: str = "auto"
    dtypes: tuple[str, ...] = ("auto",)
    size: int | None = None
    """Pixels along each side; None is the family's own."""
    batches: tuple[int, ...] = ()
    """Pictures at once; none is one, and in training `_TRAINED`."""
    steps: int | None = None
    """Of a whole picture; None is the family's own."""
    rounds: int = 5


@dataclass(frozen=True)
class Result:
    """What came of one work."""

    work: Work
    cost: Count
    timings: dict[str, Timing]
    """By contender, Danqing's first."""
    groups: dict[str, float]
    """Danqing's seconds by group of operations: its median, shared out as under the profiler."""
    peak: float
    """FLOP/s: the machine's best in this precision."""
    next: Bottleneck | None

    def rate(self, name: str) -> float:
        """FLOP/s of a contender's median."""
        return self.cost.total / self.timings[name].median


def planned(asked: Sequence[tuple[Kind, str]], setting: Setting) -> list[Work]:
    """Every work, for each precision and batch. Raises DanqingError for what cannot be."""
    device = pick_device(setting.device)
    names = {value: name for name, value in DTYPES.items() if name in ("float32", "bfloat16", "float16")}
    dtypes = dict.fromkeys(names[pick_dtype(name, device)] for name in setting.dtypes)
    works = []
    for kind, name in asked:
        family = find_family(name)
        if family.variant != "base" or not family.text_encoders or family.size_ids == "refiner":
            raise DanqingError(f"benchmark: {name} does not paint from text alone; choose a base model, such as sd1")
        size = setting.size or family.defaults.width
        if size % _STEP or size <= 0:
            raise DanqingError(
                f"size: {size} pixels are no multiple of {_STEP}; choose {max(round(size / 64), 1) * 64}"
            )
        steps = setting.steps or family.defaults.steps
        works += [
            Work(kind, family.name, size, batch, steps, dtype, str(device))
            for dtype in dtypes
            for batch in dict.fromkeys(setting.batches or [_TRAINED if kind == "train" else 1])
        ]
    return works


def benchmark(
    works: Sequence[Work], contenders: Sequence[Contender], rounds: int, tell: Callable[[str], None], say: Say
) -> Iterator[Result]:
    """Each work's result as it comes; the first contender is Danqing, which can do them all. `tell` is told the machine's own rates first, `say` what is left out.

    Raises DanqingError where Danqing fails, or there is no room on the disk for random weights.
    """
    device = works[0].device
    copied = bandwidth(device)
    best = best_rates([work.dtype for work in works], device)
    tell(told_machine(this_machine(device), best, copied))
    said: set[str] = set()
    for work in works:
        here = []
        for contender in contenders:
            reason = contender.lacks(work)
            if reason is None:
                here.append(contender)
            elif reason not in said:
                said.add(reason)
                say(reason)
        with weights(work, single=any(contender.single_file for contender in here)) as paths:
            timings, groups = in_turns(work, here, paths, rounds, say)
        peak, needed = best[work.dtype].peak, cost(work)
        factor = timings[here[0].name].median / sum(groups.values())  # the profiler takes time of its own
        groups = {group: factor * seconds for group, seconds in groups.items()}
        yield Result(work, needed, timings, groups, peak, bottleneck(groups, needed, peak, copied))


@contextmanager
def weights(work: Work, single: bool) -> Iterator[dict[bool, Path]]:
    """Within, where a work's weights are: a folder, and where `single` a single file (True). Random ones are removed."""
    if work.family == BUNDLED.name:
        yield {False: BUNDLED.path}
        return
    with tempfile.TemporaryDirectory(prefix="danqing-benchmark-") as scratch:
        folder = Path(scratch)
        paths = {False: folder / work.family}
        if single:
            paths[True] = folder / f"{work.family}.safetensors"
        dtype = "float32" if work.kind == "train" else work.dtype
        # in a process of its own, whose memory is free again when the contenders need it
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(write_random, work.family, dtype, paths).result()
        yield paths


def write_random(family: str, dtype: str, paths: Mapping[bool, Path]) -> None:
    """The family's random model as a folder, and (True) as a single file."""
    model = random_model(find_family(family), DTYPES[dtype])
    for single, path in paths.items():
        save(model, path, layout="ldm" if single else "diffusers")


def told_machine(machine: Machine, best: dict[str, Rates], copied: float) -> str:
    """The machine, and what it does at its best."""
    lines = [
        f"{machine.name}, {machine.threads} threads, {machine.memory / 1e9:.0f} GB, torch {machine.torch}",
        *(
            f"at its best in {dtype}: {_rate(found.convolution)} in convolutions, {_rate(found.matmul)} in linear layers"
            for dtype, found in best.items()
        ),
        f"copies {copied / 1e9:.1f} GB/s, read and written together",
    ]
    return "\n".join(lines)


def told(result: Result) -> str:
    """A result as lines: the work, each contender, and what to mend next."""
    own = next(iter(result.timings))
    ours = [name for name in result.timings if name.split()[0] == own]
    rounds = len(result.timings[own].seconds)
    lines = [f"{result.work}, {_flops(result.cost.total)}, median of {rounds}"]
    for name, timing in result.timings.items():
        line = (
            f"  {name:<20} {timing.median:8.3f} s  ({min(timing.seconds):.3f} to {max(timing.seconds):.3f})"
            f"  {_rate(result.rate(name)):>13}, {result.rate(name) / result.peak:4.0%} of the best"
        )
        if timing.memory:
            line += f"  {timing.memory / 1e9:5.2f} GB" + (
                f" and {timing.mapped / 1e9:.2f} mapped" * bool(timing.mapped)
            )
        if result.work.kind == "picture":
            line += f"  {result.work.batch / timing.median:.3f} pictures/s"
        lines.append(line)
    medians = {name: timing.median for name, timing in result.timings.items()}
    pairs = [(mine, name) for mine in ours for name in medians if name not in ours]
    pairs += [(mine, own) for mine in ours[1:]]
    lines += [f"  {one} / {other}: {medians[one] / medians[other]:.3f}" for one, other in pairs]
    total = sum(result.groups.values())
    shares = sorted(result.groups.items(), key=lambda item: -item[1])
    lines.append("  " + ", ".join(f"{group} {seconds / total:.0%}" for group, seconds in shares))
    if result.next is not None:
        one = result.next
        lines.append(
            f"  next: {one.group}, {one.seconds:.3f} s where {one.bound:.3f} would do: {one.share:.0%} of the whole"
        )
    return "\n".join(lines)


def _flops(flops: float) -> str:
    return f"{flops / 1e12:,.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:,.1f} GFLOP"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:,.0f} GFLOP/s"


def record(results: Sequence[Result], rounds: int) -> dict[str, Any]:
    """All of it for programs: plain numbers in seconds, bytes, FLOPs."""
    return {
        "danqing": __version__,
        "machine": asdict(this_machine(results[0].work.device)),
        "rounds": rounds,
        "works": [_row(result) for result in results],
    }


def _row(result: Result) -> dict[str, Any]:
    own = next(iter(result.timings))
    return {
        "work": asdict(result.work),
        "flops": result.cost.total,
        "best_flops_per_second": result.peak,
        "contenders": {
            name: {
                **asdict(timing),
                "median": timing.median,
                "flops_per_second": result.rate(name),
                "share_of_best": result.rate(name) / result.peak,
                "ratio": result.timings[own].median / timing.median,
            }
            for name, timing in result.timings.items()
        },
        "groups": {
            group: {"seconds": seconds, "flops": result.cost.flops[group], "moved": result.cost.moved[group]}
            for group, seconds in result.groups.items()
        },
        "next": None if result.next is None else asdict(result.next),
    }


def write_json(results: Sequence[Result], rounds: int, path: Path) -> None:
    """`record` into a file. Raises DanqingError where it cannot be written."""
    text = json.dumps(record(results, rounds), ensure_ascii=False, indent=1) + "\n"
    with beside(path, len(text.encode())) as new:
        new.write_text(text, "utf-8")
