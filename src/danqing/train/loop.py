"""The training loop that all stages share: updates, learning rates, averages, saved states, records, samples.

A stage is killed at any moment and started again: it goes on from its last saved state, and since what an update sees
is a function of the seed and its number alone, it ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.train.ema import MovingAverage
from danqing.train.history import History
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
        """Losses of batch `number` and their gradients; what it returns is recorded. `step` is the update's number."""

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
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        cpu=not torch.cuda.is_available(),
    )
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
    states = States(folder / STATES, identity, settings.keep, say)
    step, spent = states.load(accelerator)
    if step:
        say(f"{stage.name}: goes on from update {step} of {settings.steps}")
    stage.begin(accelerator, {name: torch.compile(net) if settings.compile else net for name, net in parts.items()})  # type: ignore[misc]
    history = History(folder, step, main=accelerator.is_main_process)
    saved, marked, pictures = time.monotonic(), time.monotonic(), 0

    def averaged() -> Any:
        return _applied(averages)

    while step < settings.steps:
        factor = learning_rate_factor(step, settings)
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rates[name] * factor
        losses: dict[str, Tensor] = {}
        for micro in range(settings.accumulate):
            with accelerator.accumulate(*parts.values()):
                generator = torch.Generator().manual_seed(_mixed(settings.seed, step, micro, accelerator.process_index))
                losses = stage.update(step * settings.accumulate + micro, step, generator)
                if accelerator.sync_gradients:
                    for net in parts.values():
                        accelerator.clip_grad_norm_(net.parameters(), settings.clip_norm)
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
        for average in averages.values():
            average.update(step)
        step += 1
        pictures += settings.batch
        now = time.monotonic()
        if step % 20 == 0 or step == settings.steps:
            values = {name: float(value) for name, value in losses.items()}
            if not all(math.isfinite(value) for value in values.values()):
                raise DanqingError(
                    f"{stage.name}: update {step}: a loss is not finite ({values}); lower learning_rate, "
                    f"then start again: the last state in {folder / STATES} is from before"
                )
            speed = pictures / max(now - marked, 1e-9)
            history.add(step, {**values, "learning_rate": factor, "pictures_per_second": speed})
            show(step, settings.steps, values, speed)
            marked, pictures = now, 0
        last = step == settings.steps
        if step % settings.evaluate_every == 0 or last:
            with averaged():
                scores = stage.evaluate()
            if accelerator.is_main_process:
                for line in history.judge(step, scores):
                    say(f"{stage.name}: {line}")
            if history.best_step == step and not last:
                states.save(accelerator, step, spent + time.monotonic() - began, best=True)
                saved = time.monotonic()
            marked = time.monotonic()
        if step % settings.sample_every == 0 or last:
            with averaged():
                sheet = stage.sample()
            if sheet is not None and accelerator.is_main_process:
                (folder / SAMPLES).mkdir(parents=True, exist_ok=True)
                sheet.save(folder / SAMPLES / f"{step:08d}.png")
                history.picture(step, sheet)
            marked = time.monotonic()
        over = stop() or (stop_after is not None and time.monotonic() - began > stop_after)
        if time.monotonic() - saved > 60 * settings.save_minutes or over or last:
            states.save(accelerator, step, spent + time.monotonic() - began)
            history.report(stage.name, settings.steps)
            saved = marked = time.monotonic()
        if over and not last:
            say(f"{stage.name}: stopped at update {step} of {settings.steps}; the next run goes on from there")
            return False
    if accelerator.is_main_process:
        with averaged(), beside(folder / RESULT, 0) as result:
            result.mkdir(parents=True)
            stage.write(result)
    accelerator.wait_for_everyone()
    history.close()
    accelerator.free_memory()
    return True


def _prepare(
    stage: Stage, settings: Loop, accelerator: Accelerator
) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """The networks and their optimizers, as accelerate wraps them."""
    parts, optimizers = {}, {}
    for name, net in stage.parts.items():
        net.train().requires_grad_(True)
        if accelerator.device.type == "cpu":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flat = [p for p in net.parameters() if p.dim() < 2]
        deep = [p for p in net.parameters() if p.dim() >= 2]
        groups = [{"params": deep, "weight_decay": settings.weight_decay}, {"params": flat, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, stage.learning_rates[name], betas=settings.betas, eps=1e-8, fused=True)
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
    """Saved states: a folder each, complete or not there. The last few are kept, and the best on held-out pictures."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity, default=str))
        self.keep = keep
        self.say = say

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / _STATE).is_file())

    def load(self, accelerator: Accelerator) -> tuple[int, float]:
        """(updates done, seconds spent), from the last state; (0, 0) where there is none."""
        for part in self.folder.glob(".*.part"):  # of a run that was killed while it saved
            shutil.rmtree(part, ignore_errors=True)
        states = self.all()
        if not states:
            return 0, 0.0
        about = json.loads((states[-1] / _STATE).read_text("utf-8"))
        other = _difference(about["identity"], self.identity)
        if other:
            raise DanqingError(
                f"{states[-1]}: is of another recipe: {other}; change the recipe back, or remove {self.folder.parent}"
            )
        accelerator.load_state(str(states[-1]))
        return int(about["step"]), float(about["seconds"])

    def save(self, accelerator: Accelerator, step: int, seconds: float, best: bool = False) -> None:
        """Write the state, then forget those that are too many."""
        accelerator.wait_for_everyone()
        target = self.folder / f"step-{step:08d}"
        about = {"step": step, "seconds": seconds, "best": best, "identity": self.identity}
        if target.is_dir():
            if best:
                (target / _STATE).write_text(json.dumps(about, indent=1), "utf-8")
            return
        needed = max((_size(path) for path in self.all()), default=0)
        with beside(target, needed) as new:
            accelerator.save_state(str(new))
            (new / _STATE).write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
        if accelerator.is_main_process:
            self._forget()

    def _forget(self) -> None:
        states = self.all()
        best = [path for path in states if json.loads((path / _STATE).read_text("utf-8"))["best"]]
        for path in states[: -self.keep]:
            if path not in best[-1:]:
                shutil.rmtree(path, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _difference(before: Any, now: Any, place: str = "") -> str | None:
    """The first key in which two recipes differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            found = _difference(before.get(key), now.get(key), f"{place}.{key}" if place else key)
            if found:
                return found
        return None
    return None if before == now else f"{place} was {before!r} and is {now!r}"
