"""The training loop that all stages share: updates, learning rates, averages, saved states, records, samples.

A stage is killed at any moment and started again: it goes on from its last saved state, and since what an update sees
is a function of the seed and its number alone, it ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.train.checkpointing import compute_twice
from danqing.train.ema import MovingAverage
from danqing.train.history import History
from danqing.train.muon import Muon
from danqing.train.recipe import Loop

STATES, RESULT, SAMPLES = "states", "result", "samples"
_STATE = "state.json"
FREE = ("steps", "decay_share", "save_minutes", "keep", "evaluate_every", "sample_every", "compile", "checkpointing")
"""Settings that may change between the runs of a stage."""


class Stage(Protocol):
    """What a stage brings to the loop."""

    name: str
    parts: Mapping[str, nn.Module]
    """The networks that are trained, by name."""
    learning_rates: Mapping[str, float]
    """Of each part."""
    averaged: tuple[str, ...]
    """The parts of whose weights a moving average is kept: with it they are evaluated, sampled and written."""

    def begin(self, accelerator: Accelerator, parts: Mapping[str, nn.Module]) -> None:
        """The networks as accelerate wrapped them; frozen ones and caches are put in place."""

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of the pictures that `Order.at(number)` gives, and their gradients; what it returns is recorded.

        `step` is the update's number; `number` counts its parts too, of which `accumulate` make an update. Of the
        pictures, those count that are this process's.
        """

    def evaluate(self) -> dict[str, float]:
        """Scores on held-out pictures; `loss` is the one to watch, and lower is better."""

    def sample(self) -> Image.Image | None:
        """A sheet to look at."""

    def write(self, folder: Path) -> None:
        """The stage's result into an empty folder."""


Show = Callable[[int, int, Mapping[str, float], float], None]
"""(updates done, updates in all, latest losses, pictures per second)."""


def _silent(done: int, total: int, losses: Mapping[str, float], speed: float) -> None:
    pass


def learning_rate_factor(step: int, settings: Loop) -> float:
    """What the learning rates are multiplied by at update `step`, counted from 0."""
    rise = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return rise
    if settings.schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    falling = max(1.0, settings.decay_share * settings.steps)
    return rise * min(1.0, (settings.steps - step) / falling)


def run(
    stage: Stage,
    settings: Loop,
    folder: Path,
    identity: Mapping[str, Any],
    *,
    show: Show = _silent,
    say: Callable[[str], None] = lambda line: None,
    stop_after: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train `stage` from its last saved state in `folder`, or from nothing, and write its result to `folder/result`.

    identity: what a state must have come from, to be gone on with: the recipe's parts that decide the weights.
    stop_after: seconds after which the state is saved and the run ends; `stop` is asked after each update whether it
    should end so. Returns whether the stage is finished.
    Raises DanqingError: the folder has another recipe's states, the disk is full (the states before are kept).
    """
    if (folder / RESULT).is_dir():
        say(f"{stage.name}: finished before; its result is in {folder / RESULT}")
        return True
    began = time.monotonic()
    accelerator = _accelerator(stage, settings)
    if not accelerator.is_main_process:
        show, say = _silent, lambda line: None
    torch.manual_seed(settings.seed)
    averages: dict[str, MovingAverage] = {}
    if settings.average:
        averages = {name: MovingAverage(stage.parts[name], settings.average) for name in stage.averaged}
    parts, optimizers = _prepare(stage, settings, accelerator)
    for name, average in averages.items():
        average.weights = {key: weight.to(accelerator.device) for key, weight in average.weights.items()}
        average.network = accelerator.unwrap_model(parts[name])
        accelerator.register_for_checkpointing(average)
    states = States(folder / STATES, identity, settings.keep)
    step, spent = states.load(accelerator)
    if step:
        say(f"{stage.name}: goes on from update {step} of {settings.steps}")
    stage.begin(accelerator, _compiled(parts, stage) if settings.compile else parts)
    history = History(folder, stage.name, settings, step, main=accelerator.is_main_process)
    saved, marked, pictures = time.monotonic(), time.monotonic(), 0
    while step < settings.steps:
        factor = learning_rate_factor(step, settings)
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rates[name] * factor
        losses = _update(stage, settings, accelerator, parts, optimizers, step)
        for average in averages.values():
            average.update(step)
        step += 1
        pictures += settings.batch
        last = step == settings.steps
        if step % 20 == 0 or last:
            values = {name: float(value) for name, value in losses.items()}
            _must_be_finite(accelerator, stage, step, folder, list(values.values()), f" ({values})")
            speed = pictures / max(time.monotonic() - marked, 1e-9)
            history.add(step, {**values, "learning_rate": factor, "pictures_per_second": speed})
            show(step, settings.steps, values, speed)
            marked, pictures = time.monotonic(), 0
        best = False
        if step % settings.evaluate_every == 0 or last:
            with _applied(averages):
                scores = stage.evaluate()
            if scores and accelerator.is_main_process:
                for line in history.judge(step, scores):
                    say(f"{stage.name}: {line}")
            best = history.best_step == step
            marked, pictures = time.monotonic(), 0
        if step % settings.sample_every == 0 or last:
            with _applied(averages):
                sheet = stage.sample()
            if sheet is not None and accelerator.is_main_process:
                with beside(folder / SAMPLES / f"{step:08d}.png", 0) as file:
                    sheet.save(file, "PNG")
                history.picture(step, sheet)
            marked, pictures = time.monotonic(), 0
        now = time.monotonic()
        late = now - saved > 60 * settings.save_minutes
        over = stop() or (stop_after is not None and now - began > stop_after)
        best, late, over = _any(accelerator, best, late, over)
        if best or late or over or last:
            weights = [p for net in parts.values() for p in net.parameters()]
            _must_be_finite(accelerator, stage, step, folder, weights)
            states.save(accelerator, step, spent + time.monotonic() - began, best)
            history.report(spent + time.monotonic() - began, identity.get("data", {}))
            saved, marked, pictures = time.monotonic(), time.monotonic(), 0
        if over and not last:
            say(f"{stage.name}: stopped at update {step} of {settings.steps}; the next run goes on from there")
            break
    if step == settings.steps and accelerator.is_main_process:
        with _applied(averages), beside(folder / RESULT, 0) as result:
            result.mkdir(parents=True)
            stage.write(result)
    accelerator.wait_for_everyone()
    history.close()
    accelerator.free_memory()
    return step == settings.steps


def _accelerator(stage: Stage, settings: Loop) -> Accelerator:
    """What one process, or all of them, run on. Raises DanqingError: the batch cannot be shared out."""
    AcceleratorState._reset_state()  # a stage before may have had another precision
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        cpu=not torch.cuda.is_available(),
    )
    shares = settings.accumulate * accelerator.num_processes
    if settings.batch % shares:
        raise DanqingError(
            f"{stage.name}.batch: {settings.batch} pictures cannot be shared by {settings.accumulate} parts "
            f"(accumulate) on {accelerator.num_processes} processes; give a multiple of {shares}"
        )
    return accelerator


def _compiled(parts: Mapping[str, nn.Module], stage: Stage) -> dict[str, nn.Module]:
    """The parts that make the result, compiled; an adversary is not, as its gradients' own gradients are wanted."""
    torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]  # losses are weighed by gradients
    return {name: torch.compile(net) if name in stage.averaged else net for name, net in parts.items()}  # type: ignore[misc]


def _update(
    stage: Stage,
    settings: Loop,
    accelerator: Accelerator,
    parts: Mapping[str, nn.Module],
    optimizers: Mapping[str, Any],
    step: int,
) -> dict[str, Tensor]:
    """One update of the weights, in as many parts as `accumulate` says; returns the parts' mean losses."""
    total: dict[str, Tensor] = {}
    for part in range(settings.accumulate):
        with accelerator.accumulate(*parts.values()):
            generator = torch.Generator().manual_seed(_mixed(settings.seed, step, part, accelerator.process_index))
            losses = stage.update(step * settings.accumulate + part, step, generator)
            if accelerator.sync_gradients:
                _move(accelerator, parts, optimizers, settings.clip_norm)
        total = {name: total.get(name, 0) + value / settings.accumulate for name, value in losses.items()}
    return total


def _move(accelerator: Accelerator, parts: Mapping[str, nn.Module], optimizers: Mapping[str, Any], norm: float) -> None:
    """Clip the gradients of each part and give them to its optimizer; a part that had no lesson stays as it is.

    With float16 the gradients come scaled up; all optimizers share the one scaler, which is told once an update.
    """
    scaler = accelerator.scaler
    if scaler is None:
        for name, net in parts.items():
            accelerator.clip_grad_norm_(net.parameters(), norm)
            optimizers[name].step()
            optimizers[name].zero_grad()
        return
    taught = {name: net for name, net in parts.items() if any(p.grad is not None for p in net.parameters())}
    for name, net in taught.items():
        optimizer = optimizers[name].optimizer
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), norm)
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()


def _any(accelerator: Accelerator, *wishes: bool) -> list[bool]:
    """What any process wishes: their clocks differ, and what all must do together, all must do."""
    if accelerator.num_processes == 1:
        return list(wishes)
    counts: Tensor = accelerator.reduce(torch.tensor(wishes, dtype=torch.int32, device=accelerator.device))
    return [bool(count) for count in counts.tolist()]


def _must_be_finite(
    accelerator: Accelerator,
    stage: Stage,
    step: int,
    folder: Path,
    values: Sequence[float | Tensor],
    told: str = "",
) -> None:
    """Raises DanqingError on all processes if any of the losses or weights of one is not finite."""
    wrong = not all(bool(torch.as_tensor(value).isfinite().all()) for value in values)
    if _any(accelerator, wrong)[0]:
        what = "a loss" if told else "a weight"
        raise DanqingError(
            f"{stage.name}: update {step}: {what} is not finite{told}; lower learning_rate, "
            f"then start again: the last state in {folder / STATES} is from before"
        )


def _prepare(
    stage: Stage, settings: Loop, accelerator: Accelerator
) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """The networks and their optimizers, as accelerate wraps them."""
    parts, optimizers = {}, {}
    for name, net in stage.parts.items():
        net.train().requires_grad_(True)
        if settings.checkpointing:
            compute_twice(net)
        if accelerator.device.type == "cpu":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flat = [p for p in net.parameters() if p.dim() < 2]
        deep = [p for p in net.parameters() if p.dim() >= 2]
        groups = [{"params": deep, "weight_decay": settings.weight_decay}, {"params": flat, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "muon":
            optimizer = Muon(groups, stage.learning_rates[name], betas=settings.betas)
        else:
            optimizer = torch.optim.AdamW(groups, stage.learning_rates[name], betas=settings.betas, fused=True)
        parts[name], optimizers[name] = accelerator.prepare(net, optimizer)
    return parts, optimizers


def _mixed(*numbers: int) -> int:
    """One seed of several numbers (splitmix64's steps)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value % 2**63


class _applied:
    """Within, every network has its average's weights."""

    def __init__(self, averages: Mapping[str, MovingAverage]) -> None:
        self.contexts = [average.applied() for average in averages.values()]

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *raised: Any) -> None:
        for context in self.contexts:
            context.__exit__(*raised)


class States:
    """Saved states: a folder each, complete or not there. The last few are kept, and the best on held-out pictures.

    Several machines share the folder.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity, default=str))
        self.keep = keep

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / _STATE).is_file())

    def load(self, accelerator: Accelerator) -> tuple[int, float]:
        """(updates done, seconds spent), from the last state; (0, 0) where there is none.

        Raises DanqingError: another recipe's state (the key is named), a state that cannot be read.
        """
        if accelerator.is_main_process:
            for place in (self.folder, self.folder.parent, self.folder.parent / SAMPLES):
                for part in place.glob(".*.part"):  # of a run that was killed while it saved
                    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        states = self.all()
        if not states:
            return 0, 0.0
        try:
            about = json.loads((states[-1] / _STATE).read_text("utf-8"))
            other = _difference(about["identity"], self.identity)
            if other:
                raise DanqingError(
                    f"{states[-1]}: is of another recipe: {other}; change the recipe back, or remove "
                    f"{self.folder.parent}"
                )
            accelerator.load_state(str(states[-1]))
            return int(about["step"]), float(about["seconds"])
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DanqingError(
                f"{states[-1]}: cannot be read ({reason}); remove it, and the state before it is gone on from"
            ) from error

    def save(self, accelerator: Accelerator, step: int, seconds: float, best: bool = False) -> None:
        """Write the state, then forget those that are too many. Raises DanqingError: the disk is full."""
        target = self.folder / f"step-{step:08d}"
        about = {"step": step, "seconds": seconds, "best": best, "identity": self.identity}
        needed = max((_size(path) for path in self.all()), default=0)
        if not accelerator.is_main_process:
            accelerator.save_state(broadcast_object_list([""])[0])
            accelerator.wait_for_everyone()
            return
        with beside(target, needed) as new:
            broadcast_object_list([str(new)])
            accelerator.save_state(str(new))
            accelerator.wait_for_everyone()
            (new / _STATE).write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
        self._forget()

    def _forget(self) -> None:
        states = self.all()
        best = [path for path in states if json.loads((path / _STATE).read_text("utf-8"))["best"]]
        for path in states[: -self.keep]:
            if path not in best[-1:]:
                gone = path.rename(path.with_name(f".{path.name}.part"))  # never a state without some of its files
                shutil.rmtree(gone, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _difference(before: Any, now: Any, place: str = "") -> str | None:
    """The first key in which two recipes differ, with both values; keys that only one of them knows say nothing."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before} & {*now}):
            found = _difference(before[key], now[key], f"{place}.{key}" if place else key)
            if found:
                return found
        return None
    return None if before == now else f"{place} was {before!r} and is {now!r}"
