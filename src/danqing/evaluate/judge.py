"""Whether a picture shows what was asked for, as a judge network sees it; and how sure such shares are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from danqing.errors import DanqingError
from danqing.models.judge import JudgeConfig, JudgeNetwork, Opinion
from danqing.runtime.blank import without_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
RESAMPLES = 2000
BATCH = 64


def load_judge(folder: Path) -> JudgeNetwork:
    """The judge in a folder with `config.json` and `model.safetensors`: float32, in evaluation mode.

    Raises DanqingError that names the folder: nothing is there, the files are damaged or do not fit each other.
    """
    try:
        table = json.loads((folder / CONFIG).read_text("utf-8"))
        state = load_file(folder / WEIGHTS)
    except OSError as error:
        raise DanqingError(f"{folder}: no judge is there ({error.strerror or error}); train one first") from None
    except (ValueError, SafetensorError) as error:
        raise DanqingError(f"{folder}: the judge's files are damaged ({error})") from None
    known = {field.name for field in fields(JudgeConfig)}
    if not isinstance(table, dict) or not table.keys() <= known or not {"concepts", "styles"} <= table.keys():
        raise DanqingError(f"{folder / CONFIG}: is of no judge: it should have {', '.join(sorted(known))}")
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        with without_weights():
            network = JudgeNetwork(JudgeConfig(**table))
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DanqingError(f"{folder}: weights and {CONFIG} do not fit ({str(error).splitlines()[0]})") from None
    return network.requires_grad_(False).eval()


def check_labels(judge: JudgeNetwork, pairs: Sequence[tuple[str, str]], name: str) -> None:
    """Raises DanqingError that names the judge where it does not know the (concept, style) pairs that are asked."""
    for kind, known, asked in (
        ("concepts", judge.config.concepts, {concept for concept, _ in pairs}),
        ("styles", judge.config.styles, {style for _, style in pairs}),
    ):
        unknown = sorted(asked - set(known))
        if unknown:
            raise DanqingError(
                f"{name}: the judge does not know {len(unknown)} of the {len(asked)} {kind} asked for "
                f"({', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}); take the one trained on these pictures"
            )


@torch.no_grad()
def look(judge: JudgeNetwork, pixels: Tensor) -> Opinion:
    """The judge's opinion, on the CPU, of pictures (N, 3, H, W): uint8, or floating in [-1, 1]."""
    device = next(judge.parameters()).device
    parts = [judge(unit(batch).to(device)) for batch in torch.split(pixels, BATCH)]
    return Opinion(*(torch.cat(each).cpu() for each in zip(*parts)))


def unit(pixels: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-1, 1]; others as they are."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.float()


@dataclass(frozen=True)
class Verdict:
    """Of each picture, whether what was asked for is seen."""

    rank: Tensor
    """(N,) int64: how many concepts the judge holds likelier than the one asked for."""
    style: Tensor
    """(N,) bool: whether it takes the style asked for to be the likeliest."""

    def within(self, most: int) -> Tensor:
        """(N,) bool: whether the concept asked for is among the `most` likeliest."""
        return self.rank < most


def judged(config: JudgeConfig, opinion: Opinion, pairs: Sequence[tuple[str, str]]) -> Verdict:
    """What the opinion says of pictures that were to show these (concept, style) pairs, one a picture.

    Concepts held equally likely as the one asked for count as likelier: a judge that is blind is never right.
    """
    concepts = {name: index for index, name in enumerate(config.concepts)}
    styles = {name: index for index, name in enumerate(config.styles)}
    concept = torch.tensor([concepts[concept] for concept, _ in pairs])
    style = torch.tensor([styles[style] for _, style in pairs])
    own = opinion.concepts.gather(1, concept[:, None])
    rank = (opinion.concepts >= own).sum(1) - 1
    return Verdict(rank, opinion.styles.argmax(1) == style)


@dataclass(frozen=True)
class Estimate:
    """A share or a ratio of shares, with the interval that holds 95% of its bootstrap resamples."""

    value: float
    low: float
    high: float


Hits = NDArray[np.bool_]
"""(pairs, pictures a pair)."""


def share(hits: Hits, seed: int = 0) -> Estimate:
    """The share of hits. Whole pairs are resampled: pictures of one pair are not independent of each other.

    Percentile bootstrap (Efron & Tibshirani 1993, section 13.3).
    """
    means = hits.mean(1)
    return _estimate(float(means.mean()), means[_resampled(len(means), seed)].mean(1))


def ratio(hits: Hits, others: Hits, seed: int = 0) -> Estimate:
    """share(hits) / share(others), both of the same pairs, which are resampled together; nan over nothing."""
    above, below = hits.mean(1), others.mean(1)
    rows = _resampled(len(above), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(above.mean() / below.mean())
        return _estimate(value, above[rows].mean(1) / below[rows].mean(1))


def _resampled(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _estimate(value: float, resamples: NDArray[np.float64]) -> Estimate:
    known = resamples[np.isfinite(resamples)]
    if not math.isfinite(value) or not len(known):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.percentile(known, (2.5, 97.5))
    return Estimate(value, float(low), float(high))
