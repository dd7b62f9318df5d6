import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from danqing.errors import DanqingError
from danqing.families import FAMILIES
from danqing.models import bands
from danqing.models.autoencoder import Autoencoder
from danqing.models.controlnet import ControlNet, ControlNetConfig
from danqing.models.patches import Patches
from danqing.models.unet import UNet
from danqing.runtime.memory import (
    Plan,
    available,
    denoiser_activations,
    first_that_fits,
    out_of_memory,
    plans,
    predicted_peak,
    weight_bytes,
    with_retries,
)

SD1 = FAMILIES["sd1"]


class LiveBytes(TorchDispatchMode):
    """The most bytes that are alive at once, of tensors made while it is on."""

    def __init__(self, ignore: nn.Module) -> None:
        super().__init__()
        self.ignored = {p.untyped_storage()._cdata for p in ignore.parameters()}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.ignored and storage._cdata not in self.live:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def _counted(network: nn.Module, run: Callable[[], Any]) -> int:
    with torch.no_grad(), LiveBytes(network) as live:
        run()
    return live.peak


@pytest.fixture
def _flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device attention would spell out its scores, which no kernel that is used does."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: torch.empty_like(q))


@pytest.mark.usefixtures("_flash")
@pytest.mark.parametrize(
    ("name", "height", "width"), [("sd1", 64, 64), ("sd2", 96, 64), ("sdxl", 128, 96), ("sdxl-refiner", 128, 128)]
)
def test_the_denoisers_activations_are_what_a_run_of_the_full_network_holds(name: str, height: int, width: int) -> None:
    config = FAMILIES[name].denoiser
    with torch.device("meta"):
        net = UNet(config)
        x, t, context = torch.empty(1, 4, height, width), torch.empty(1), torch.empty(1, 77, config.context_width)
        added = {}
        if config.pooled_width:
            added = {"pooled": torch.empty(1, config.pooled_width), "time_ids": torch.empty(1, config.size_ids)}
        counted = _counted(net, lambda: net(x, t, context, **added))
    assert 0.93 < 4 * denoiser_activations(config, width, height) / counted < 1.1


@pytest.mark.usefixtures("_flash")
@pytest.mark.parametrize("count", [1, 2])
def test_controls_are_counted(count: int) -> None:
    config = SD1.denoiser
    with torch.device("meta"):
        net, control = UNet(config), ControlNet(ControlNetConfig(config))
        x, t, context = torch.empty(1, 4, 96, 64), torch.empty(1), torch.empty(1, 77, config.context_width)

        def run() -> None:
            hints = [control.hint(torch.empty(1, 3, 768, 512)) for _ in range(count)]
            skips: dict[str, torch.Tensor] = {}
            for hint in hints:
                for name, made in control(x, t, context, [hint]).items():
                    skips[name] = skips[name] + made if name in skips else made
                    del made
            middle = {"mid_block": skips.pop("mid_block")}
            net(x, t, context, patches=Patches(skips=skips, residuals=middle))

        counted = _counted(nn.ModuleList([net, control]), run)
    peak = predicted_peak(
        Plan(1, branches_apart=True),
        weights=0,
        denoiser=config,
        autoencoder=replace(SD1.autoencoder, channels=(1, 1, 1, 1)),  # so that the decode does not count
        width=512,
        height=768,
        itemsize=4,
        controls=count,
    )
    assert 0.93 < (peak - 96 * 2**20) / counted < 1.25


@pytest.mark.usefixtures("_flash")
@pytest.mark.parametrize("in_bands", [False, True])
def test_a_decode_is_what_a_run_of_the_full_autoencoder_holds(in_bands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_bands:
        monkeypatch.setattr(bands, "BAND", 1 << 40)
    with torch.device("meta"):
        net = Autoencoder(SD1.autoencoder)
        counted = _counted(net, lambda: net.decode(torch.empty(1, 4, 144, 96)))
    peak = predicted_peak(
        Plan(1, branches_apart=True),
        weights=0,
        denoiser=SD1.denoiser,
        autoencoder=SD1.autoencoder,
        width=768,
        height=1152,
        itemsize=4,
        in_bands=in_bands,
    )
    assert 0.95 < (peak - 96 * 2**20) / counted < 1.1


@pytest.mark.parametrize(("batch", "device"), [(1, "cpu"), (8, "cpu"), (1, "cuda"), (6, "cuda")])
def test_leaner_plans_take_no_more_memory(batch: int, device: str) -> None:
    ladder = plans(batch, device)
    assert ladder[0] == Plan(1 if device == "cpu" else batch)
    assert ladder[-1] == Plan(1, True, 64)
    exact = [plan for plan in ladder if plan.tile is None]
    assert list(ladder[: len(exact)]) == exact

    def peak(plan: Plan) -> int:
        return predicted_peak(
            plan,
            weights=10**9,
            denoiser=SD1.denoiser,
            autoencoder=SD1.autoencoder,
            width=1024,
            height=1024,
            itemsize=2,
        )

    for part in (ladder[: len(exact)], ladder[len(exact) :]):
        peaks = [peak(plan) for plan in part]
        assert peaks == sorted(peaks, reverse=True)
    assert peak(ladder[-1]) < peak(ladder[0])


def test_weights_are_counted_once() -> None:
    layer = nn.Linear(10, 10)
    both = nn.Sequential(layer, nn.Linear(10, 10))
    assert weight_bytes(layer) == 440
    assert weight_bytes(both, layer) == 880
    assert weight_bytes(layer.half()) == 220


def test_the_first_plan_that_fits_and_all_leaner_ones() -> None:
    ladder = plans(4, "cuda")
    said: list[str] = []

    def peak(plan: Plan) -> int:
        return plan.pictures_per_call * 2**30

    assert first_that_fits(ladder, peak, 8 * 2**30, said.append) == ladder
    assert first_that_fits(ladder, peak, None, said.append) == ladder
    assert said == []
    assert first_that_fits(ladder, peak, 3 * 2**30, said.append) == ladder[1:]
    assert said == ["memory: 4.0 GB would be needed and 3.0 GB are free, so 2 pictures at a time"]
    assert first_that_fits(ladder, peak, 2**29, said.append) == ladder[-1:]
    assert "even 1 picture at a time, prompts one after the other, decoded in tiles needs 1.0 GB" in said[1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_out_of_memory_goes_on_with_the_next_plan(error: Exception) -> None:
    tried: list[Plan] = []
    said: list[str] = []

    def run(plan: Plan) -> str:
        tried.append(plan)
        if len(tried) < 3:
            raise error
        return "picture"

    ladder = plans(4, "cuda")
    assert with_retries(ladder, run, said.append) == "picture"
    assert tuple(tried) == ladder[:3]
    assert said[0] == "out of memory with 4 pictures at a time; again with 2 pictures at a time"
    assert len(said) == 2

    def never(plan: Plan) -> str:
        raise error

    with pytest.raises(DanqingError, match="smaller size or batch"):
        with_retries(ladder[-2:], never, said.append)


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**58)
    assert out_of_memory(error.value)


def test_other_errors_are_not_retried() -> None:
    def run(plan: Plan) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        with_retries(plans(2, "cuda"), run, lambda line: None)


def test_the_failed_runs_tensors_are_gone_before_the_next() -> None:
    alive: list[StorageWeakRef] = []

    def run(plan: Plan) -> bool:
        if alive:
            return alive[0].expired()
        big = torch.empty(1000)
        alive.append(StorageWeakRef(big.untyped_storage()))
        raise MemoryError

    assert with_retries(plans(2, "cuda"), run, lambda line: None)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_free_memory_of_a_machine(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    assert available("cpu", proc, cgroup) is None
    _write(proc / "meminfo", "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable:    4000000 kB\n")
    assert available("cpu", proc, cgroup) == 4000000 * 1024
    _write(proc / "self" / "cgroup", "0::/user/job\n")
    _write(cgroup / "user" / "memory.max", "3000000000\n")
    _write(cgroup / "user" / "memory.current", "1000000000\n")
    _write(cgroup / "user" / "job" / "memory.max", "max\n")
    _write(cgroup / "user" / "job" / "memory.current", "500\n")
    assert available("cpu", proc, cgroup) == 2000000000
    _write(cgroup / "user" / "memory.stat", "anon 700000000\nactive_file 100000000\ninactive_file 200000000\n")
    assert available("cpu", proc, cgroup) == 2300000000


def test_the_free_memory_of_a_container_of_version_1(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    _write(proc / "meminfo", "MemAvailable:    4000000 kB\n")
    _write(proc / "self" / "cgroup", "5:devices:/\n4:cpu,memory:/job\n")
    _write(cgroup / "memory" / "job" / "memory.limit_in_bytes", "1500000000\n")
    _write(cgroup / "memory" / "job" / "memory.usage_in_bytes", "500000000\n")
    assert available("cpu", proc, cgroup) == 1000000000


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="Linux tells it there")
def test_this_machine_has_memory() -> None:
    free = available("cpu")
    assert free is not None
    assert 2**20 < free < 2**50
