"""What `danqing evaluate bundled` measures: each score beside its ceiling, or what chance would give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.evaluate.frechet import frechet, moments
from danqing.evaluate.judge import Estimate, Hits, Verdict, check_labels, judged, look, ratio, share, unit
from danqing.evaluate.painting import Job, paint_many
from danqing.evaluate.reconstruction import psnr, ssim
from danqing.families import Model
from danqing.models.judge import JudgeNetwork
from danqing.requests import TextToImage, read

JUDGE = Path(__file__).parents[1] / "assets" / "judge"
"""The judge's network, and what it is asked about: the list of pairs that nothing was trained on."""
HELD_OUT = JUDGE / "held_out.json"
CFG_SCALES = (1.0, 3.0, 5.0, 7.0)
KINDS = ("first", "within five", "style")


@dataclass(frozen=True)
class Pair:
    """A concept in a style, and what to ask a model for to get it."""

    concept: str
    style: str
    english: str
    chinese: str


@dataclass(frozen=True, eq=False)
class Drawings:
    """Real pictures of pairs."""

    pairs: tuple[Pair, ...]
    pixels: Tensor
    """(N, 3, S, S) uint8."""

    def rows(self, chosen: Sequence[int]) -> Drawings:
        return Drawings(tuple(self.pairs[row] for row in chosen), self.pixels[list(chosen)])

    @property
    def labels(self) -> list[tuple[str, str]]:
        return [(pair.concept, pair.style) for pair in self.pairs]


@dataclass(frozen=True)
class Amount:
    """How much is painted for the scores."""

    seeds: int = 4
    """Pictures of each held-out pair, in each language."""
    pairs: int | None = None
    """Held-out pairs, of which fewer than all are drawn at random; None is all."""
    frechet: int = 1000
    """Pictures for the Fréchet distance; 0 leaves it out."""
    cfg_pairs: int = 80
    """Held-out pairs that are painted once at each CFG scale; 0 leaves that out."""
    steps: int | None = None
    """Sampling steps; None is the model's default."""


@dataclass(frozen=True)
class Row:
    """A score."""

    name: str
    value: float
    beside: str
    """Its ceiling or chance level, in words."""
    pictures: int
    """How many it is from."""
    interval: tuple[float, float] | None = None
    """That holds 95% of the bootstrap resamples of pairs."""
    unit: str = ""

    def __str__(self) -> str:
        places = 2 if self.unit == "dB" else 3
        value = f"{self.value:.{places}f}{' ' * bool(self.unit)}{self.unit}"
        if self.interval is not None:
            value += f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        return f"{self.name:<42} {value:<24} ({self.beside}; {self.pictures:,} pictures)"


@dataclass(frozen=True, eq=False)
class Shown:
    """What a contact sheet needs: of each held-out pair a painted picture, the real one, and the nearest trained on."""

    pairs: tuple[Pair, ...]
    painted: Tensor
    real: Tensor
    nearest: Tensor


def read_held_out(path: Path = HELD_OUT) -> tuple[Pair, ...]:
    """The committed list of pairs that are never trained on. Raises DanqingError where it is missing or damaged."""
    try:
        return tuple(Pair(**row) for row in json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise DanqingError(f"{path}: the list of held-out pairs cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise DanqingError(f"{path}: is no list of held-out pairs ({error})") from None


def evaluate(
    model: Model,
    judge: JudgeNetwork,
    training: Drawings,
    held_out: Drawings,
    amount: Amount,
    *,
    tell: Callable[[Row], None],
    show: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Shown:
    """Measure `model`; `tell` is told each score as soon as it is known, `show` (pictures painted, in all).

    Held-out pictures that are pixel for pixel one that was trained on are left out, and `say` is told.
    Raises DanqingError: numbers that make no sense, a judge of other concepts, no pictures left.
    """
    if amount.seeds < 1 or (amount.pairs is not None and amount.pairs < 1):
        raise DanqingError("seeds and pairs: give 1 at least")
    if amount.frechet < 0 or amount.frechet == 1 or amount.cfg_pairs < 0:
        raise DanqingError("frechet and cfg-pairs: give 0 to leave them out; a Fréchet distance needs 2 pictures")
    read(TextToImage, {"steps": amount.steps})
    check_labels(judge, held_out.labels, "judge")
    held_out = chosen(without_twins(held_out, training, say), amount.pairs)
    counts = (len(held_out.pairs), min(amount.frechet, len(training.pairs)), min(amount.cfg_pairs, len(held_out.pairs)))
    total = 2 * counts[0] * amount.seeds + counts[1] + counts[2] * len(CFG_SCALES)
    painted = 0

    def paint(prompts: Sequence[str], first_seed: int, cfg_scale: float | None = None) -> Tensor:
        def done(count: int) -> None:
            nonlocal painted
            painted += count
            show(painted, total)

        jobs = [Job(prompt, first_seed + place, cfg_scale) for place, prompt in enumerate(prompts)]
        return paint_many(jobs, model, steps=amount.steps, done=done, say=say)

    for row in autoencoder_rows(model, held_out):
        tell(row)
    real = look(judge, held_out.pixels)
    real_hits = hits_of(judged(judge.config, real, held_out.labels), 1)
    for row in real_rows(real_hits, judge):
        tell(row)
    labels = [label for label in held_out.labels for _ in range(amount.seeds)]
    english = paint([pair.english for pair in held_out.pairs for _ in range(amount.seeds)], 0)
    opinion = look(judge, english)
    english_hits = hits_of(judged(judge.config, opinion, labels), amount.seeds)
    for row in painted_rows("English", english_hits, "real", real_hits):
        tell(row)
    chinese = paint([pair.chinese for pair in held_out.pairs for _ in range(amount.seeds)], 0)
    chinese_hits = hits_of(judged(judge.config, look(judge, chinese), labels), amount.seeds)
    for row in painted_rows("Chinese", chinese_hits, "English", english_hits):
        tell(row)
    known = look(judge, training.pixels).features
    first = list(range(0, len(english), amount.seeds))
    near, distance = nearest(opinion.features[first], known)
    tell(
        Row(
            "distance to nearest picture trained on", float(distance.median()),
            f"real held-out {float(nearest(real.features, known)[1].median()):.3f}", len(first),
        )
    )  # fmt: skip
    if counts[1]:
        rows = draw(len(training.pairs), counts[1])
        pictures = paint([training.pairs[row].english for row in rows], 10**6)
        for row in frechet_rows(look(judge, pictures).features, torch.cat([known, real.features])):
            tell(row)
    if counts[2]:
        subset = held_out.rows(draw(len(held_out.pairs), counts[2]))
        for cfg_scale in CFG_SCALES:
            pictures = paint([pair.english for pair in subset.pairs], 2 * 10**6, cfg_scale)
            verdict = judged(judge.config, look(judge, pictures), subset.labels)
            for row in share_rows(
                f"CFG {cfg_scale:g},", hits_of(verdict, 1), [f"chance {c:.2g}" for c in chance(judge)]
            ):
                tell(row)
    return Shown(held_out.pairs, english[first], held_out.pixels, training.pixels[near])


def without_twins(held_out: Drawings, training: Drawings, say: Callable[[str], None]) -> Drawings:
    """The held-out pictures that are no training picture's equal: some concepts share a drawing."""
    seen = {picture.numpy().tobytes() for picture in training.pixels}
    kept = [row for row, picture in enumerate(held_out.pixels) if picture.numpy().tobytes() not in seen]
    if len(kept) < len(held_out.pairs):
        say(f"{len(held_out.pairs) - len(kept)} held-out pictures equal one that is trained on: left out")
    if not kept:
        raise DanqingError("there is no held-out picture that was not trained on")
    return held_out.rows(kept)


def chosen(drawings: Drawings, pairs: int | None) -> Drawings:
    """So many of the drawings, at random but always the same."""
    return drawings if pairs is None else drawings.rows(draw(len(drawings.pairs), min(pairs, len(drawings.pairs))))


def draw(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` numbers, in their order, the same ones every time."""
    return sorted(np.random.default_rng(0).permutation(count)[:wanted].tolist())


def hits_of(verdict: Verdict, seeds: int) -> dict[str, Hits]:
    """(pairs, seeds) for each kind, of pictures that lie pair after pair."""
    found = (verdict.within(1), verdict.within(5), verdict.style)
    return {kind: hits.view(-1, seeds).numpy() for kind, hits in zip(KINDS, found)}


def chance(judge: JudgeNetwork) -> tuple[float, float, float]:
    """Of each kind, the share that guessing would give."""
    concepts, styles = len(judge.config.concepts), len(judge.config.styles)
    return 1 / concepts, min(1.0, 5 / concepts), 1 / styles


@torch.no_grad()
def autoencoder_rows(model: Model, real: Drawings) -> Iterator[Row]:
    """PSNR and SSIM of pictures there and back, beside those of pictures shrunk 8 times and enlarged again."""
    scores: list[Tensor] = []
    for batch in torch.split(real.pixels, 16):
        pixels = unit(batch)
        latents = model.autoencoder.encode(pixels.to(model.device, model.dtype)).mode()
        rebuilt = model.autoencoder.decode(latents).float().cpu()
        small = F.interpolate(pixels, scale_factor=1 / 8, mode="area")
        shrunk = F.interpolate(small, pixels.shape[-2:], mode="bicubic", align_corners=False)
        a, b, c = ((x.clamp(-1, 1) + 1) / 2 for x in (pixels, rebuilt, shrunk))
        scores.append(torch.stack([psnr(a, b), ssim(a, b), psnr(a, c), ssim(a, c)], 1))
    found = torch.cat(scores).mean(0).tolist()
    count = len(real.pairs)
    yield Row("autoencoder, PSNR", found[0], f"shrunk 8 times and enlarged: {found[2]:.2f} dB", count, unit="dB")
    yield Row("autoencoder, SSIM", found[1], f"shrunk 8 times and enlarged: {found[3]:.3f}; ceiling 1", count)


def share_rows(name: str, hits: dict[str, Hits], beside: Sequence[str]) -> Iterator[Row]:
    for kind, words in zip(KINDS, beside):
        yield _row(f"{name} {kind}", share(hits[kind]), words, hits[kind].size)


def real_rows(hits: dict[str, Hits], judge: JudgeNetwork) -> Iterator[Row]:
    """The judge on real pictures: what painted ones can reach at most."""
    yield from share_rows("real, held out,", hits, [f"chance {level:.2g}" for level in chance(judge)])


def painted_rows(language: str, hits: dict[str, Hits], other: str, others: dict[str, Hits]) -> Iterator[Row]:
    """Shares of what was painted, and their ratios to others of the same pairs."""
    ceilings = [f"{other} {others[kind].mean():.3f}" for kind in KINDS]
    yield from share_rows(f"painted, {language},", hits, ceilings)
    for kind in KINDS:
        found = ratio(hits[kind], others[kind])
        yield _row(f"painted, {language}, {kind}, to {other}", found, "ceiling 1", hits[kind].size)


def _row(name: str, found: Estimate, beside: str, pictures: int) -> Row:
    return Row(name, found.value, beside, pictures, (found.low, found.high))


def frechet_rows(painted: Tensor, real: Tensor) -> Iterator[Row]:
    """Fréchet distances of features (N, D): of painted pictures to real ones, of real halves, of as many real ones."""
    mixed = real[torch.from_numpy(np.random.default_rng(1).permutation(len(real)))]
    half, few = len(mixed) // 2, min(len(painted), len(mixed) // 2)
    halves = frechet(moments(mixed[:half]), moments(mixed[half:]))
    as_many = frechet(moments(mixed[:few]), moments(mixed[few:]))
    words = f"two halves of the real ones: {halves:.3f}; {few} real ones to the others: {as_many:.3f}"
    yield Row("Fréchet distance, painted to real", frechet(moments(painted), moments(real)), words, len(painted))


def write_scores(rows: Sequence[Row], path: Path) -> None:
    """The scores as JSON, in their order; what is not a number (a share of nothing) is null."""
    table = [{key: _or_null(value) for key, value in asdict(row).items()} for row in rows]
    text = json.dumps(table, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    with beside(path, len(text.encode())) as new:
        new.write_text(text, "utf-8")


def _or_null(value: object) -> object:
    if isinstance(value, tuple):
        return [_or_null(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nearest(features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of features (N, D) the nearest of `known` (M, D): its row (N,) and 1 - the cosine between them."""
    likeness = F.normalize(features, dim=1) @ F.normalize(known, dim=1).T
    best = likeness.max(1)
    return best.indices, 1 - best.values
