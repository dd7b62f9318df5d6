"""Noise by address: the same draw is the same tensor, whoever asks and whenever, and each picture has its own.

Three sources: torch's CPU generator, the device's own generator, and the Philox generator behind CUDA's `torch.randn`,
computed anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from danqing.errors import DanqingError
from danqing.sampling.types import Noise
from danqing.vocabulary import Dialect, NoiseSource, Sampler

SEEDS = 2**64
"""Seeds are whole numbers below this; sums of seeds wrap around."""


@dataclass(frozen=True)
class Drawing:
    """How a tool spends its generators."""

    batched: bool = False
    """One generator and one draw for the whole batch: a picture depends on its place in the batch."""
    apart: NoiseSource | None = None
    """Samplers draw from a generator of their own, of this source, that starts at the same seed."""


DRAWING: Mapping[Dialect, Drawing] = {
    "danqing": Drawing(),
    "a1111": Drawing(),
    # ComfyUI draws the start on the CPU and a sampler's noise where the latents are: as a rule on a CUDA device.
    "comfyui": Drawing(batched=True, apart="philox"),
    "diffusers": Drawing(batched=True),
}


def sampling_noise(
    dialect: Dialect,
    sampler: Sampler,
    sigmas: Tensor,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    *,
    source: NoiseSource,
    device: torch.device | str = "cpu",
    subseeds: Sequence[int] | None = None,
    subseed_strength: float = 0.0,
    seed_resize_from: tuple[int, int] | None = None,
    ensd: int = 0,
) -> Noise:
    """The noise of a run: draw 0 is the start; the others are `sampler`'s, from Brownian trees where the tool has them.

    `sigmas` is the run's schedule; the rest is `picture_noise`'s.
    """
    drawing = DRAWING[dialect]
    pictures = picture_noise(
        seeds,
        shape,
        source=source,
        device=device,
        subseeds=subseeds,
        subseed_strength=subseed_strength,
        seed_resize_from=seed_resize_from,
        ensd=ensd,
        batch_draw=drawing.batched,
        apart=drawing.apart,
    )
    # Of diffusers' SDE schedulers only DPMSolverSDEScheduler has a tree; the multistep ones draw plain noise.
    if not sampler.brownian or (dialect == "diffusers" and sampler.name != "DPM++ SDE"):
        return pictures
    levels = sigmas[sigmas > 0]
    low, high = float(levels.min()), float(levels.max())
    tree = brownian_noise(seeds, shape, low, high, source=source, device=device, batch_draw=drawing.batched)

    def noise(draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        return pictures(draw) if draw == 0 else tree(draw, sigma, sigma_next)

    return noise


def picture_noise(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    *,
    source: NoiseSource = "cpu",
    device: torch.device | str = "cpu",
    subseeds: Sequence[int] | None = None,
    subseed_strength: float = 0.0,
    seed_resize_from: tuple[int, int] | None = None,
    ensd: int = 0,
    batch_draw: bool = False,
    apart: NoiseSource | None = None,
) -> Noise:
    """Independent normal noise (B, C, H, W) float32 on `device`; `shape` is one picture's (C, H, W), in latent cells.

    Draw 0 is AUTOMATIC1111's start noise: `subseed_strength` in [0, 1] of the way from the seed's noise to the
    subseed's along the great circle, and `seed_resize_from` (width, height in latent cells) keeps the middle of the
    noise of a picture of that size. Later draws go on with the same generators; with `ensd` (eta noise seed delta) from
    fresh ones at seed + ensd. `batch_draw` uses the first seed's generator for the whole batch, in one draw (ComfyUI,
    diffusers); `apart` gives later draws a generator of that source, as ComfyUI does.
    Raises DanqingError for a seed outside [0, 2^64).
    """
    device = torch.device(device)
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise DanqingError(f"seed: must lie between 0 and {SEEDS - 1}, but it is {seed}")
    seeds, unit = ([seeds[0]], (len(seeds), *shape)) if batch_draw else (list(seeds), shape)
    resized = (*unit[:-2], *seed_resize_from[::-1]) if seed_resize_from else unit
    generators = [generator(source, seed, device) for seed in seeds]
    if apart is not None:
        # ComfyUI on a CPU takes the next seed, which would otherwise give the start noise again.
        step = 1 if apart == "cpu" or (apart == "gpu" and device.type == "cpu") else 0
        later = [generator(apart, (seed + step + ensd) % SEEDS, device) for seed in seeds]
    elif ensd:
        later = [generator(source, (seed + ensd) % SEEDS, device) for seed in seeds]
    else:
        later = generators
    first = 0 if later is generators else 1

    def start(index: int) -> Tensor:
        noise = generators[index](0, unit)
        if resized == unit and not (subseed_strength and subseeds):
            return noise
        small = noise if resized == unit else generator(source, seeds[index], device)(0, resized)
        if subseed_strength and subseeds:
            other = generator(source, subseeds[index], device)(0, resized)
            small = slerp(subseed_strength, small, other)
        return small if resized == unit else _paste(small, noise)

    def noise(draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        if draw == 0:
            parts = [start(index) for index in range(len(seeds))]
        else:
            parts = [one(draw - first, unit) for one in later]
        return torch.stack(parts).reshape(-1, *shape).to(device)

    return noise


def slerp(part: float, low: Tensor, high: Tensor) -> Tensor:
    """`part` of the way from `low` to `high` (..., H, W) along the great circle, column by column (Shoemake 1985).

    As AUTOMATIC1111 does it: norms along the height, and nearly parallel noise is mixed with the weights swapped.
    """
    cosine = (low / low.norm(dim=-2, keepdim=True) * (high / high.norm(dim=-2, keepdim=True))).sum(-2, keepdim=True)
    if cosine.mean() > 0.9995:
        return low * part + high * (1 - part)
    angle = cosine.acos()
    mixed: Tensor = ((1 - part) * angle).sin() / angle.sin() * low + (part * angle).sin() / angle.sin() * high
    return mixed


def _paste(small: Tensor, onto: Tensor) -> Tensor:
    """`small` centred on `onto`, both (..., H, W); what sticks out is cut. Odd margins round as AUTOMATIC1111's do."""
    dy, dx = ((onto.shape[i] - small.shape[i]) // 2 for i in (-2, -1))
    height, width = small.shape[-2] + 2 * min(dy, 0), small.shape[-1] + 2 * min(dx, 0)
    top, left, from_top, from_left = max(dy, 0), max(dx, 0), max(-dy, 0), max(-dx, 0)
    out = onto.clone()
    middle = small[..., from_top : from_top + height, from_left : from_left + width]
    out[..., top : top + height, left : left + width] = middle
    return out


class Generator(Protocol):
    """One seed's stream of normal tensors, by their number."""

    def __call__(self, index: int, shape: tuple[int, ...]) -> Tensor: ...


def generator(source: NoiseSource, seed: int, device: torch.device | str) -> Generator:
    """The stream of `seed`; the same index and shapes give the same tensor, in any order."""
    if source == "philox":
        return lambda index, shape: torch.from_numpy(philox(seed, shape, index))
    # as in AUTOMATIC1111, where an MPS device draws on the CPU
    own = torch.device(device) if source == "gpu" and torch.device(device).type != "mps" else torch.device("cpu")
    return TorchStream(seed, own)


class TorchStream:
    """A torch generator that remembers how far it is: going on is free, going back starts anew and skips."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device)
        self.position: int | None = None

    def __call__(self, index: int, shape: tuple[int, ...]) -> Tensor:
        if self.position is None or index < self.position:
            self.generator.manual_seed(self.seed)
            self.position = 0
        for _ in range(self.position, index):
            self._draw(shape)
        self.position = index + 1
        return self._draw(shape)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=torch.float32)


_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(seed: int, shape: tuple[int, ...], index: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """CUDA's `torch.randn`: the `index`-th tensor drawn from `seed`, float32.

    Philox4x32-10 (Salmon et al. 2011) over counters (index, 0, element, 0), then Box and Muller's sine. It is what
    a CUDA device gives while a tensor has no more elements than the kernel has threads (one number per thread).
    """
    count = math.prod(shape)
    zero = np.zeros(count, np.uint64)
    words = [zero + np.uint64(index), zero, np.arange(count, dtype=np.uint64), zero]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (second >> _HALF) ^ words[1] ^ np.uint64(keys[0]),
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ np.uint64(keys[1]),
            first & _LOW,
        ]
        keys = [(key + increment) & 0xFFFFFFFF for key, increment in zip(keys, _INCREMENTS)]
    turn = float(np.float32(2 * math.pi * 2.0**-32))  # CUDA's constant is a float32
    radius = np.sqrt(-2.0 * np.log(words[0] * 2.0**-32 + 2.0**-33))
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    values = (radius * np.sin(words[1] * turn + turn / 2)).astype(np.float32).reshape(shape)
    return values


def brownian_noise(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    sigma_min: float,
    sigma_max: float,
    *,
    source: NoiseSource = "cpu",
    device: torch.device | str = "cpu",
    batch_draw: bool = False,
) -> Noise:
    """Normal noise (B, C, H, W) float32 that agrees with itself over any steps: increments of Brownian motions.

    noise(draw, sigma, sigma_next) is the increment between the two levels over the root of their distance, and does
    not use `draw`; k-diffusion's BrownianTreeNoiseSampler with a list of seeds, or with one seed for the whole batch
    under `batch_draw`. Levels outside [sigma_min, sigma_max] are taken as its ends.
    """
    device = torch.device(device)
    seeds, unit = ([seeds[0]], (len(seeds), *shape)) if batch_draw else (list(seeds), shape)
    low, high = float(np.float32(sigma_min)), float(np.float32(sigma_max))

    def normal(seed: int) -> Tensor:
        return generator(source, seed, device)(0, unit)

    def noise(draw: int, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        if sigma is None or sigma_next is None:
            raise ValueError("Brownian noise lies between two noise levels: sigma and sigma_next")
        # k-diffusion holds the levels and their distance in float32
        here, there = np.float32(sigma), np.float32(sigma_next)
        if here == there:
            raise ValueError(f"Brownian noise lies between two noise levels, but both are {sigma}")
        begin, end = sorted((float(here), float(there)))
        parts = [brownian_increment(seed, begin, end, low, high, normal) for seed in seeds]
        total = torch.stack(parts).reshape(-1, *shape).to(device)
        return total * (1.0 if here < there else -1.0) / float(np.sqrt(np.abs(there - here)))

    return noise


@dataclass(frozen=True)
class _Span:
    """A node of the tree: the motion's increment over [start, end]."""

    start: float
    end: float
    increment: Tensor
    path: int
    """The way down from the root, in bits: 1 is right."""
    depth: int


def brownian_increment(
    entropy: int, begin: float, end: float, low: float, high: float, normal: Callable[[int], Tensor]
) -> Tensor:
    """The increment over [begin, end] of the Brownian motion over [low, high] that `entropy` fixes.

    The tree of virtual Brownian bridges of Li et al. 2020 (section 4, algorithm 3), with torchsde's seeds and its
    resolution of 1e-6: its BrownianTree, bit for bit. `normal(seed)` draws a tensor. Nothing is remembered: a query
    holds one path of the tree, some 24 tensors.
    """
    whole = normal(_seed(entropy, ())) * math.sqrt(high - low)
    root = _Span(round(low, 6), round(high, 6), whole, 0, 0)
    begin, end = (round(min(max(t, root.start), root.end), 6) for t in (begin, end))
    if begin == end:
        return torch.zeros_like(whole)
    spans = _covering(root, begin, end, entropy, normal)
    total = next(spans).increment
    for span in spans:
        total = total + span.increment
    return total


def _covering(span: _Span, begin: float, end: float, entropy: int, normal: Callable[[int], Tensor]) -> Iterator[_Span]:
    """The nodes under `span` that make up [begin, end], from the left."""
    if (begin, end) == (span.start, span.end):
        yield span
        return
    left, right = _halves(span, entropy, normal)
    if begin < left.end:
        yield from _covering(left, begin, min(end, left.end), entropy, normal)
    if end > left.end:
        yield from _covering(right, max(begin, left.end), end, entropy, normal)


def _halves(span: _Span, entropy: int, normal: Callable[[int], Tensor]) -> tuple[_Span, _Span]:
    """The Brownian bridge at the middle: normal around the straight line."""
    middle = round(0.5 * (span.end + span.start), 6)
    share = 1 / (span.end - span.start)
    before, after = middle - span.start, span.end - middle
    bridge = normal(_seed(entropy, (span.path, span.depth)))
    left = before * span.increment * share + math.sqrt(before * after * share) * bridge
    return (
        _Span(span.start, middle, left, 2 * span.path, span.depth + 1),
        _Span(middle, span.end, span.increment - left, 2 * span.path + 1, span.depth + 1),
    )


def _seed(entropy: int, key: tuple[int, ...]) -> int:
    sequence = np.random.SeedSequence(entropy=entropy, spawn_key=key, pool_size=24)
    return int(sequence.generate_state(1)[0])
