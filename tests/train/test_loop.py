"""The loop: exact resumption, saved states, learning rates, parts of a batch."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from danqing.errors import DanqingError
from danqing.train.checkpointing import compute_twice
from danqing.train.loop import _move, learning_rate_factor, run
from danqing.train.pictures import Order
from danqing.train.recipe import Loop, Recipe

from .conftest import dataset, tiny_recipe, train_stage

STAGES = ("clip", "autoencoder", "diffusion")


def place(name: str, trained: Path, folder: Path) -> Path:
    """A recipe's folder that has what the stage builds on."""
    folder.mkdir()
    for before in STAGES[: STAGES.index(name)]:
        shutil.copytree(trained / before / "result", folder / before / "result")
    return folder


def weights(folder: Path) -> dict[str, Any]:
    """Everything that the newest state holds: networks, optimizers, averages."""
    newest = sorted(folder.glob("states/step-*"))[-1]
    found: dict[str, Any] = {}
    for file in sorted(newest.iterdir()):
        if file.suffix == ".safetensors":
            found |= {f"{file.name}/{key}": value for key, value in load_file(file).items()}
        elif file.name.startswith(("custom", "optimizer")):
            found |= flat(torch.load(file, weights_only=False), file.name)
    return found


def flat(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{place}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{place}/{i}").items()}
    return {place: value}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert set(a) == set(b)
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "adamw") for name in STAGES), ("autoencoder", "muon"), ("diffusion", "muon")]
)
def test_stopped_and_resumed_is_the_same_bits(
    name: str, optimizer: str, recipe: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    whole, parts = (place(name, trained, tmp_path / kind) for kind in ("whole", "parts"))
    settings = recipe(**{name: {"precision": "bf16", "optimizer": optimizer}})
    assert train_stage(name, settings, whole)
    runs = 0
    while not train_stage(name, settings, parts, stop_after=0.0):
        runs += 1
        (parts / name / "states" / ".step-00000099.abcd.part").mkdir()  # a run that was killed while it saved
        (parts / name / "states" / ".step-00000099.abcd.part" / "model.safetensors").write_bytes(b"half")
        (parts / name / ".result.abcd.part").mkdir()
    assert runs == 5
    assert len(weights(whole / name)) > 10
    assert_same(weights(whole / name), weights(parts / name))
    for file in (whole / name / "result").rglob("*.safetensors"):
        assert file.read_bytes() == (parts / name / "result" / file.relative_to(whole / name / "result")).read_bytes()
    assert not list((parts / name).rglob("*.part"))


def in_child(work: Callable[[], object]) -> int:
    """A process of its own that does the work; its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_it_saves(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    """kill -9 within the writing of a state, at several updates; the weights become those of an unkilled run."""
    name = "autoencoder"
    whole, parts = (place(name, trained, tmp_path / kind) for kind in ("whole", "parts"))
    settings = recipe(autoencoder={"save_minutes": 1e-9, "keep": 1})
    assert train_stage(name, settings, whole)
    kills = 0
    for step in (1, 3, 4):
        child = in_child(lambda: train_stage(name, settings, parts))
        states, end = parts / name / "states", time.monotonic() + 60
        while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
            if any(states.glob(f".step-{step:08d}*.part/*")):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                break
    assert kills == 3
    assert list(states.glob(".step-*.part")), "the kill came too late to leave anything"
    assert train_stage(name, settings, parts)
    assert_same(weights(whole / name), weights(parts / name))
    assert not list((parts / name).rglob("*.part"))


def test_full_disk_keeps_the_states_before(
    recipe: Callable[..., Recipe], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = place("clip", trained, tmp_path / "runs")
    assert not train_stage("clip", recipe(), runs, stop_after=0.0)
    before = weights(runs / "clip")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))  # type: ignore[attr-defined]
        with pytest.raises(DanqingError, match=r"step-00000002: could not be written: the disk is full") as caught:
            train_stage("clip", recipe(), runs, stop_after=0.0)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (runs / "clip" / "states").iterdir()] == ["step-00000001"]
    assert_same(before, weights(runs / "clip"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("room", [30_000, 90_000], ids=["weights", "optimizer"])
def test_a_write_that_fails_is_one_line(
    recipe: Callable[..., Recipe], trained: Path, tmp_path: Path, room: int
) -> None:
    """Files may not grow beyond `room` bytes, as if the disk were full within one of them."""
    runs = place("autoencoder", trained, tmp_path / "runs")
    told = tmp_path / "told"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            train_stage("autoencoder", recipe(), runs, stop_after=0.0)
        except DanqingError as error:
            told.write_text(str(error), "utf-8")

    os.waitpid(in_child(work), 0)
    line = told.read_text("utf-8")
    assert "step-00000001: could not be written" in line
    assert "arge" in line, "the system's reason: File too large"
    assert "\n" not in line
    assert not list((runs / "autoencoder" / "states").iterdir())


def test_another_recipes_state(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    runs = place("clip", trained, tmp_path / "runs")
    assert not train_stage("clip", recipe(), runs, stop_after=0.0)
    for section, key, line in [
        ({"clip": {"learning_rate": 2e-3}}, "clip.learning_rate", "was 0.001 and is 0.002"),
        ({"clip": {"augment": {"flip": 0.25}}}, "clip.augment.colour", "was 0.1 and is 0.0"),
        ({"clip": {"text": {"vocabulary": 2048, "width": 16, "layers": 1, "heads": 2}}}, "clip.text.vocabulary", "was"),
        ({"clip": {"average": None}}, "clip.average", "was"),
        ({"data": {"size": 48}}, "data.size", "was 32 and is 48"),
        ({"data": {"folder": dataset(tmp_path / "other", held_out=4)}}, "data.pictures", "was '13 and 3 held out"),
    ]:
        with pytest.raises(DanqingError, match=rf"step-00000001: is of another recipe: {key} {line}") as caught:
            train_stage("clip", recipe(**section), runs)
        assert "\n" not in str(caught.value)
    free = {
        "steps": 7, "decay_share": 0.5, "save_minutes": 1.0, "keep": 3, "evaluate_every": 5, "sample_every": 7,
        "checkpointing": True,
    }  # fmt: skip
    assert train_stage("clip", recipe(clip=free), runs)


def test_a_damaged_state_is_one_line(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    runs = place("clip", trained, tmp_path / "runs")
    for _ in range(2):
        assert not train_stage("clip", recipe(), runs, stop_after=0.0)
    state = runs / "clip" / "states" / "step-00000002"
    for file in ("model.safetensors", "state.json"):
        (state / file).write_bytes((state / file).read_bytes()[:40])
        with pytest.raises(DanqingError, match=r"step-00000002: cannot be read .*remove it") as caught:
            train_stage("clip", recipe(), runs)
        assert "\n" not in str(caught.value)
    shutil.rmtree(state)
    assert train_stage("clip", recipe(), runs)


def test_last_states_and_the_best_are_kept(
    recipe: Callable[..., Recipe], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0])
    monkeypatch.setattr("danqing.train.clip.ClipStage.evaluate", lambda stage: {"loss": next(scores)})
    runs = place("clip", trained, tmp_path / "runs")
    settings = recipe(clip={"evaluate_every": 1, "save_minutes": 1e-9, "keep": 2})
    assert train_stage("clip", settings, runs)
    states = sorted((runs / "clip" / "states").iterdir())
    assert [path.name for path in states] == ["step-00000002", "step-00000005", "step-00000006"]
    assert [json.loads((path / "state.json").read_text())["best"] for path in states] == [True, False, False]


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(
    recipe: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    runs = place("clip", trained, tmp_path / "runs")
    settings = recipe(clip={"learning_rate": 1e30, "warmup": 0, "save_minutes": 1e-9, "clip_norm": 1e30})
    with pytest.raises(DanqingError, match=r"clip: update \d+: a (weight|loss) is not finite.*lower learning_rate"):
        train_stage("clip", settings, runs)
    for state in (runs / "clip" / "states").glob("*"):
        assert all(value.isfinite().all() for value in load_file(state / "model.safetensors").values())


def test_a_finished_stage_is_left_alone(recipe: Callable[..., Recipe], trained: Path) -> None:
    lines: list[str] = []
    assert train_stage("clip", recipe(), trained, say=lines.append)
    assert len(lines) == 1
    assert "finished before" in lines[0]


def test_stages_of_different_precision_in_one_process(
    recipe: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    settings = recipe(clip={"precision": "bf16", "steps": 1}, autoencoder={"precision": "no", "steps": 1})
    for name in ("clip", "autoencoder"):
        assert train_stage(name, settings, tmp_path / "runs")


def test_without_held_out_pictures(trained: Path, tmp_path: Path) -> None:
    """A folder of one's own need not have any."""
    folder = dataset(tmp_path / "pictures", held_out=0)
    for name in STAGES:
        assert train_stage(name, tiny_recipe(folder, **{n: {"steps": 2} for n in STAGES}), tmp_path / "runs")


class Line(torch.nn.Module):
    """y = w x, for sums that can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


class LineStage:
    """The mean over pictures of a squared error, of which parts of a batch have means of their own."""

    name = "line"
    averaged = ("line",)
    learning_rates: ClassVar[dict[str, float]] = {"line": 0.1}

    def __init__(self, settings: Loop) -> None:
        self.parts = {"line": Line()}
        self.order = Order([(1, 1)] * 10, settings.batch, settings.seed, settings.accumulate)
        self.x = torch.arange(30).view(10, 3) / 10
        self.shown: list[list[int]] = []

    def begin(self, accelerator: Any, parts: Any) -> None:
        self.accelerator, self.forward = accelerator, parts["line"]

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = self.order.at(number)
        self.shown.append(rows)
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        loss = (self.forward(self.x[rows]) - self.x[rows].sum(1, keepdim=True)).square().mean()
        self.accelerator.backward(loss)
        return {"loss": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        return {"loss": float(self.parts["line"](self.x).detach().square().mean())}

    def sample(self) -> None:
        return None

    def write(self, folder: Path) -> None:
        torch.save(self.parts["line"].state_dict(), folder / "line.pt")


def test_parts_of_a_batch_make_the_same_update(tmp_path: Path) -> None:
    results, shown, losses = [], [], []
    for accumulate in (1, 2, 4):
        settings = Loop(steps=5, batch=4, accumulate=accumulate, precision="no", warmup=0, average=None)
        stage, folder = LineStage(settings), tmp_path / str(accumulate)
        assert run(stage, settings, folder, {}, show=lambda done, total, values, speed: losses.append(values["loss"]))
        results.append(torch.load(folder / "result" / "line.pt")["w"])
        shown.append(stage.shown)
        assert [len(rows) for rows in stage.shown] == [4 // accumulate] * (5 * accumulate)
    for parts, rows in zip((2, 4), shown[1:]):
        batches = [sorted(chain(*rows[i : i + parts])) for i in range(0, len(rows), parts)]
        assert batches == [sorted(batch) for batch in shown[0]]
    assert not torch.equal(results[0], torch.ones(3, 2))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-6)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    settings = Loop(steps=1, batch=4, accumulate=3, precision="no")
    with pytest.raises(DanqingError, match=r"line.batch: 4 pictures cannot be shared by 3 parts.*multiple of 3"):
        run(LineStage(settings), settings, tmp_path, {})


@pytest.mark.parametrize("name", STAGES)
def test_checkpointing_changes_memory_only(
    name: str, recipe: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    """The same weights, and forward is called twice as often in training."""
    made = {}
    for on in (False, True):
        runs = place(name, trained, tmp_path / str(on))
        assert train_stage(name, recipe(**{name: {"checkpointing": on, "steps": 4}}), runs)
        made[on] = weights(runs / name)
    assert set(made[True]) == set(made[False])
    for key, value in made[False].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, made[True][key], rtol=1e-4, atol=1e-6)


def test_checkpointed_blocks_are_computed_twice() -> None:
    calls = []

    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return x.sin()

    network = torch.nn.Module()
    network.blocks = torch.nn.ModuleList([Block(), Block()])
    x = torch.ones(3, requires_grad=True)
    compute_twice(network)
    y = x
    for block in network.blocks:
        y = block(y)
    assert len(calls) == 2
    y.sum().backward()
    assert len(calls) == 4
    torch.testing.assert_close(x.grad, x.sin().cos() * x.cos())
    with torch.no_grad():
        for block in network.blocks:
            y = block(y)
    assert len(calls) == 6


def test_gradients_are_clipped_and_scaled_gradients_unscaled() -> None:
    """As with float16, where one scaler serves two optimizers, of which one had no lesson."""
    nets = {"taught": Line(), "idle": Line()}
    optimizers = {
        name: SimpleNamespace(optimizer=torch.optim.SGD(net.parameters(), lr=1.0)) for name, net in nets.items()
    }
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.ones(1, 3)
    scaler.scale(nets["taught"](x).sum()).backward()
    _move(SimpleNamespace(scaler=scaler), nets, optimizers, norm=0.5)
    moved = 1 - nets["taught"].w  # the gradient is all ones, of norm sqrt(6)
    torch.testing.assert_close(moved.detach(), torch.full((3, 2), 0.5 / 6**0.5))
    torch.testing.assert_close(nets["idle"].w.detach(), torch.ones(3, 2))
    assert nets["taught"].w.grad is None


def test_learning_rates() -> None:
    def factors(**settings: Any) -> list[float]:
        loop = Loop(steps=100, **settings)
        return [learning_rate_factor(step, loop) for step in range(100)]

    level = factors(schedule="constant", warmup=10)
    assert level[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert level[9:] == [1.0] * 91
    cosine = factors(schedule="cosine", warmup=0)
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[99] == pytest.approx(math.sin(math.pi / 200) ** 2)
    decay = factors(schedule="decay", warmup=0, decay_share=0.2)
    assert decay[:81] == [1.0] * 81
    assert decay[81:] == pytest.approx([n / 20 for n in range(19, 0, -1)])
    assert min(factors(schedule="decay", warmup=0, decay_share=0.0)) == 1.0
