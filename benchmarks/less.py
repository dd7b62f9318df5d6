"""What doing less saves and what it costs, by the bundled model: seconds, work, distance from the exact picture, the judge.

    python benchmarks/less.py --pairs 100                          # damage and work: any machine, however busy
    python benchmarks/less.py --pairs 0 --rounds 5                 # seconds: a quiet machine
    python benchmarks/less.py --pairs 0 --rounds 1 --family sd1    # the same of a full-size U-Net of random weights
    python benchmarks/less.py --pairs 0 --work sd1                 # its work, by shapes alone: seconds on any machine

Work is the U-Net's floating-point operations over a painting of one picture; processor seconds are a picture's in a
batch of 16, text and decoding included. PSNR is to the picture that the same prompt
and seed give without (median and tenth percentile); the judge says of how many the concept asked for is its first, or
among its first five, and in brackets what holds 95% of the bootstrap resamples of the ratio to the exact pictures'.
Prompts are of the list that nothing was trained on, so no data is needed. Rounds go through all ways in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import danqing
from danqing.adapters.step_cache import step_cache_source, windows
from danqing.adapters.tgate import gate_step, tgate_source
from danqing.evaluate.bundled import HELD_OUT, JUDGE, Pair, draw, read_held_out
from danqing.evaluate.judge import Hits, judged, load_judge, look, ratio
from danqing.evaluate.painting import Job, paint_many
from danqing.families import FAMILIES, At, Model
from danqing.models.conditioning import Conditioning
from danqing.models.patches import stacked
from danqing.models.unet import UNet
from danqing.pipeline.caching import QUICK
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import prepare
from danqing.request_parts import Reference, StepCache
from danqing.requests import TextToImage, read
from danqing.runtime.allocator import keep_memory
from danqing.sampling.predict import PatchSource

Fields = dict[str, Any]
WAYS: dict[str, Fields] = {
    "step cache 2,2": {"step_cache": "2,2"},
    "step cache 3,2": {"step_cache": "3,2"},
    "step cache 3,4": {"step_cache": "3,4"},
    "step cache 5,4": {"step_cache": "5,4"},
    "threshold 0.15": {"step_cache": "20,2,0,1,0.15"},
    "threshold 0.25": {"step_cache": "20,2,0,1,0.25"},
    "guidance to 0.8": {"guidance_end": 0.8},
    "guidance to 0.6": {"guidance_end": 0.6},
    "T-GATE 0.8": {"tgate": 0.8},
    "T-GATE 0.6": {"tgate": 0.6},
    "token merging 0.3": {"token_merging": "0.3,,2"},
    "14 steps": {"steps": 14},
    "8 steps": {"steps": 8},
    "quick": {"quick": True},
}


def psnr(found: Tensor, exact: Tensor) -> np.ndarray:
    """dB of each of (N, 3, H, W) uint8; equal pictures count as 99."""
    squared = (found.float() - exact.float()).square().mean((1, 2, 3)).clamp(min=255**2 / 10**9.9)
    return (10 * torch.log10(255**2 / squared)).numpy()


def denoise_calls(model: Model, fields: Fields) -> list[Callable[[], object]]:
    """A painting's calls of the network with all guidance, step after step (an Euler sampler's, whose sums cost nothing)."""
    asked = read(TextToImage, {"prompt": "a red apple", "seed": 1, "sampler_name": "Euler", **fields})
    run = prepare(resolve(asked, model.family, Reference(name="m")), model, lambda line: None)
    denoise, sigmas = run.denoiser(run.plans[0]), run.sigmas.tolist()
    width, height = run.cells
    shape = 1, model.family.autoencoder.latent_channels, height, width
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * sigmas[0]

    def call(step: int) -> None:
        nonlocal x
        clean = denoise(x, At(sigmas[step], step)).clean
        x = clean + (x - clean) * (sigmas[step + 1] / sigmas[step])

    return [lambda step=step: call(step) for step in range(run.count)]  # type: ignore[misc]


def work(model: Model, fields: Fields) -> int:
    with FlopCounterMode(display=False) as counter:
        for call in denoise_calls(model, fields):
            call()
    return int(counter.get_total_flops())


@torch.no_grad()
def full_size(name: str, steps: int = 20) -> None:
    """A full-size U-Net's work at its own size: of a step whose deep part is left out, and of all steps by `quick`."""
    family = FAMILIES[name]
    config, side = family.denoiser, family.defaults.width // family.autoencoder.downscale
    with torch.device("meta"):
        unet = UNet(config)

    def once(sources: Sequence[PatchSource], step: int, branches: Sequence[int]) -> int:
        rows = tuple((branch, 0) for branch in branches)
        x = torch.empty(len(rows), config.in_channels, side, side, device="meta")
        told = torch.empty(1, device="meta")
        told_more = {"pooled": config.pooled_width, "time_ids": config.size_ids}
        more = {key: torch.empty(len(rows), width, device="meta") for key, width in told_more.items() if width}
        context = torch.empty(len(rows), 77, config.context_width, device="meta")
        patches = stacked(source(x, told, At(1.0, step), Conditioning(context, rows=rows)) for source in sources)
        with FlopCounterMode(display=False) as counter:
            unet(x, told, context, patches=patches, **more)
        return int(counter.get_total_flops())

    whole = once([], 0, (1, 2))
    print(f"{name}: {whole / 1e12:.2f} TFLOP a guided step")
    for depth in (1, 2, 3, 4):
        source = step_cache_source(StepCache(depth=depth), config, {0: 0, 1: 0})
        once([source], 0, (1, 2))
        print(f"step cache, depth {depth}: {once([source], 1, (1, 2)) / whole:.1%} of it in between")
    gate = gate_step(QUICK["tgate"], steps)
    begins = windows(QUICK["step_cache"], steps, {gate - 1})
    sources = [step_cache_source(QUICK["step_cache"], config, begins), tgate_source(config, gate, [2])]
    total = sum(once(sources, step, (1, 2) if step < gate else (1,)) for step in range(steps))
    print(f"quick, {steps} steps: {1 - total / (steps * whole):.0%} saved")


def seconds(model: Model, fields: Fields) -> float:
    """All of a painting's steps."""
    calls = denoise_calls(model, fields)
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def hits(pictures: Tensor, pairs: Sequence[Pair]) -> tuple[Hits, Hits]:
    judge = load_judge(JUDGE)
    verdict = judged(judge.config, look(judge, pictures), [(pair.concept, pair.style) for pair in pairs])
    return verdict.within(1).numpy()[:, None], verdict.within(5).numpy()[:, None]


def shown(found: Hits, exact: Hits) -> str:
    beside = ratio(found, exact)
    return f"{found.mean():.3f} [{beside.low:.2f}, {beside.high:.2f}]"


@torch.no_grad()
def damage(model: Model, ways: dict[str, Fields], count: int) -> None:
    every = read_held_out(HELD_OUT)
    pairs = [every[row] for row in draw(len(every), count)]
    jobs = [Job(pair.english, seed) for seed, pair in enumerate(pairs)]

    def painted(fields: Fields) -> tuple[Tensor, float]:
        start = time.process_time()
        return paint_many(jobs, model, fields=fields), (time.process_time() - start) / count

    (exact, spent), whole = painted({}), work(model, {})
    right = hits(exact, pairs)
    print("| way | U-Net's work saved | processor seconds | PSNR, dB: median (10%) | first | within five |")
    print(
        f"|---|--:|--:|--:|--:|--:|\n| exact | | {spent:.2f} | | {right[0].mean():.3f} | {right[1].mean():.3f} |",
        flush=True,
    )
    for name, fields in ways.items():
        found, spent = painted(fields)
        near, saved = psnr(found, exact), 1 - work(model, fields) / whole
        row = [f"{saved:.0%}", f"{spent:.2f}", f"{np.median(near):.1f} ({np.quantile(near, 0.1):.1f})"]
        row += [shown(*each) for each in zip(hits(found, pairs), right)]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


@torch.no_grad()
def timed(model: Model, ways: dict[str, Fields], rounds: int) -> None:
    ways = {"exact": {}, **ways}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    seconds(model, {"steps": 2})  # warms up
    for _ in range(rounds):
        for name, fields in ways.items():
            taken[name].append(seconds(model, fields))
    exact = statistics.median(taken["exact"])
    print(f"{model.family.name}, {model.dtype}, {torch.get_num_threads()} threads, median of {rounds}")
    print("| way | seconds of all steps | saved |\n|---|--:|--:|")
    for name, each in taken.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:.2f} | {exact - middle:.2f} ({1 - middle / exact:.0%}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="prompts that are painted each way; 0 leaves that out")
    parser.add_argument("--rounds", type=int, default=0, help="times that each way is timed")
    parser.add_argument("--family", default="danqing", help="what is timed: danqing, or random weights of sd1 ...")
    parser.add_argument("--work", help="a family, whose full-size work is counted: sd1 ...")
    parser.add_argument("--way", action="append", help="only this one, by its name or as a request's fields in JSON")
    parser.add_argument("--steps", type=int, help="of what is timed; the family's default unless given")
    args = parser.parse_args()
    keep_memory()
    ways = WAYS if not args.way else {way: WAYS[way] if way in WAYS else json.loads(way) for way in args.way}
    if args.pairs:
        damage(danqing.load(), ways, args.pairs)
    if args.work:
        full_size(args.work)
    if args.rounds:
        if args.family == "danqing":
            model = danqing.load()
        else:
            from random_checkpoint import random_model

            model = random_model(FAMILIES[args.family], torch.bfloat16)
        steps = {"steps": args.steps} if args.steps else {}
        timed(model, {name: {**steps, **fields} for name, fields in ways.items()}, args.rounds)


if __name__ == "__main__":
    main()
