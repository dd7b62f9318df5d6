"""A step of classifier-free guidance (one picture, two prompts) at full size and random weights by each engine, beside diffusers'
U-Net in OpenVINO; and how far the bundled model's pictures in eight bits are from those in bfloat16.

The engines take turns in one process; with --apart each is a process of its own, and these take turns. What is converted
is kept in --folder. Medians are printed, and the ratio to the peer (below 1 is faster).

    python benchmarks/engines.py step --family sd1 --dtype bf16 --engines eager openvino int8-weights int8 --runs 5
    python benchmarks/engines.py pictures --quantize int8 --count 48
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from step import fill

import danqing
from danqing.checkpoints.sidecars import unet_json
from danqing.families import FAMILIES
from danqing.measure.inputs import inputs
from danqing.models.unet import UNet
from danqing.runtime import compiled, openvino
from danqing.runtime.blank import without_weights
from danqing.runtime.devices import DTYPES
from danqing.runtime.engines import Inputs, Run
from danqing.runtime.packed import keep_packed

ENGINES = ("peer", "eager", "compile", "openvino", "int8-weights", "int8")
THINGS = ("a red apple", "a blue fish", "a castle", "an old man", "a cat", "a yellow flower", "a house", "a city")
WAYS = ("{}", "{} at night", "{} in the snow", "an oil painting of {}", "{}, watercolour", "a small picture of {}")


def peer(network: torch.nn.Module, given: Inputs, folder: Path) -> Run:
    """diffusers' U-Net as OpenVINO converts it, for these shapes."""
    ov = openvino.package()
    kept = folder / "peer" / "model.xml"

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, latents: Any, timestep: Any, context: Any, pooled: Any = None, time_ids: Any = None) -> Any:
            told = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
            return self.network(latents, timestep, context, added_cond_kwargs=told, return_dict=False)[0]

    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        network.float()
        example = {name: tensor.float() for name, tensor in given.items()}
        ov.save_model(ov.convert_model(Plain(), example_input=example), kept, compress_to_fp16=True)
    return openvino.compile_for(kept, given, given["latents"].dtype)


def runs(
    family: str, dtype: torch.dtype, size: int, engines: Sequence[str], folder: Path
) -> dict[str, Callable[[], Any]]:
    """What answers one step, by engine."""
    row = FAMILIES[family]
    with without_weights():
        ours, theirs = UNet(row.denoiser), UNet2DConditionModel.from_config(unet_json(row.denoiser, size // 8))
    fill(ours, theirs, dtype)
    keep_packed(ours)
    asked = inputs(row, 2, size, dtype)
    given = {"latents": asked.latents[:1], "timestep": asked.timestep, "context": asked.context, **asked.told}
    doubled = given | {"latents": given["latents"].repeat(2, 1, 1, 1)}  # as others give their networks both prompts
    multiple = 2 ** (len(ours.config.channels) - 1)
    made: dict[str, Callable[[], Any]] = {}
    reference = torch.empty(0)
    for engine in engines:
        start = time.perf_counter()
        run: Run
        if engine == "peer":
            run = peer(theirs, doubled, folder)
        elif engine == "eager":
            run = lambda told: ours(**told)  # noqa: E731
        elif engine == "compile":
            run = compiled.build(ours, folder / "compile", asked.latents.device, given, print)
        else:
            bits = "none" if engine == "openvino" else engine
            run = openvino.build(ours, folder, bits, multiple, lambda: [given], given, print)
        made[engine] = partial(run, doubled if engine == "peer" else given)
        first = made[engine]().float()
        print(f"{engine}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        reference = first if len(made) == 1 else reference
        print(f"  differs from {next(iter(made))} by {float((first - reference).norm() / reference.norm()):.1e}")
    return made


def in_turns(made: dict[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Seconds of each call."""
    times: dict[str, list[float]] = {engine: [] for engine in made}
    for _ in range(count):
        for engine, call in made.items():
            start = time.perf_counter()
            call()
            times[engine].append(time.perf_counter() - start)
    return times


def apart(options: argparse.Namespace) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {engine: [] for engine in options.engines}
    own = ["--family", options.family, "--dtype", options.dtype, "--folder", str(options.folder), "--runs", "2"]
    for _ in range(math.ceil(options.runs / 2)):
        for engine in options.engines:
            command = [sys.executable, __file__, "step", *own, "--engines", engine, "--json"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            times[engine] += json.loads(out.splitlines()[-1])[engine]
    return times


@torch.no_grad()
def step(options: argparse.Namespace) -> None:
    size = options.size or FAMILIES[options.family].defaults.width
    folder = options.folder / f"{options.family}-{options.dtype}"
    if options.apart:
        times = apart(options)
    else:
        times = in_turns(runs(options.family, DTYPES[options.dtype], size, options.engines, folder), options.runs)
    if options.json:
        print(json.dumps(times))
        return
    base = statistics.median(times[options.engines[0]])
    print(
        f"{options.family} {options.dtype} {size}x{size}, {torch.get_num_threads()} threads, median of {options.runs}:"
    )
    for engine, each in times.items():
        middle = statistics.median(each)
        spread = max(each) - min(each)
        print(f"  {engine:13} {middle:.2f} s (spread {spread:.2f}), {middle / base:.2f} of {options.engines[0]}")


def pictures(options: argparse.Namespace) -> None:
    """PSNR of eight bits to bfloat16, over pictures from the same seeds."""
    plain = danqing.load(device="cpu", dtype="bfloat16", engine="eager")
    other = danqing.load(device="cpu", dtype="bfloat16", engine="openvino", quantize=options.quantize)
    prompts = [way.format(thing) for way in WAYS for thing in THINGS][: options.count]
    found = []
    for seed, prompt in enumerate(prompts):
        one, two = (
            np.asarray(danqing.paint(prompt, model, seed=seed, steps=options.steps)[0].image, dtype=np.float64)
            for model in (plain, other)
        )
        found.append(10 * math.log10(255**2 / max(float(((one - two) ** 2).mean()), 1e-9)))
        print(f"{found[-1]:5.1f} dB  {prompt}", flush=True)
    print(
        f"{options.quantize}, {len(found)} pictures of {options.steps} steps: mean {statistics.mean(found):.1f} dB, "
        f"median {statistics.median(found):.1f} dB, least {min(found):.1f} dB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    timed = parts.add_parser("step")
    timed.add_argument("--family", choices=list(FAMILIES), default="sd1")
    timed.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    timed.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    timed.add_argument("--runs", type=int, default=5)
    timed.add_argument("--size", type=int, help="pixels along each side; the family's default unless given")
    timed.add_argument("--folder", type=Path, default=Path("engines-kept"))
    timed.add_argument("--apart", action="store_true", help="a process for each engine, in turns")
    timed.add_argument("--json", action="store_true")
    timed.set_defaults(run=step)
    painted = parts.add_parser("pictures")
    painted.add_argument("--quantize", choices=["none", "int8-weights", "int8"], default="int8")
    painted.add_argument("--count", type=int, default=48)
    painted.add_argument("--steps", type=int, default=20)
    painted.set_defaults(run=pictures)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
