"""What was understood of a prompt: `danqing prompt "..."` as data and as plain text."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from danqing.prompts.chunks import LENGTH, Words, chunks, shown
from danqing.prompts.grammar import NetworkTag, Part, understand
from danqing.prompts.tokenizer import Tokenizer, clip
from danqing.vocabulary import Dialect, Emphasis, find_sampler

if TYPE_CHECKING:  # families brings torch, and explaining needs none of it
    from danqing.families import Family


@dataclass(frozen=True)
class ExplainedToken:
    position: int
    """Where it stands among the chunk's 77, from 1; 0 is the start token."""
    id: int
    word: str
    """Of an embedding's vector `name 2/8`: its second of eight."""
    weight: float


@dataclass(frozen=True)
class ExplainedSegment:
    start: float
    """Holds for `At.step` in [start, until); the last one ends with the run."""
    until: float
    text: str
    chunks: tuple[tuple[ExplainedToken, ...], ...]
    cut: str
    """What found no place (diffusers' dialect)."""
    gone: tuple[str, ...]
    """Stretches of the segment before that this one lacks."""
    new: tuple[str, ...]
    """Stretches of this one that the segment before lacks."""

    @property
    def tokens(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class ExplainedPart:
    weight: float
    literal: bool
    """No valid schedule, so nothing in it is edited."""
    segments: tuple[ExplainedSegment, ...]


@dataclass(frozen=True)
class Explanation:
    text: str
    dialect: Dialect
    family: str
    steps: int
    parts: tuple[ExplainedPart, ...]
    networks: tuple[NetworkTag, ...]


def explain(
    text: str,
    family: Family,
    steps: int,
    dialect: Dialect = "danqing",
    sampler: str = "Euler",
    *,
    emphasis: Emphasis = "original",
    negative: bool = False,
    tokenizer: Tokenizer | None = None,
    words: Words | None = None,
) -> Explanation:
    """How `family` reads `text` over `steps` steps of `sampler`. Tokens are those of its first text encoder.

    `tokenizer` is the checkpoint's own where it brings one, `words` are embeddings. Raises DanqingError for an unknown
    sampler.
    """
    tokenizer = tokenizer or clip()
    calls = 2 if find_sampler(sampler).second_order else 1
    prompt = understand(text, steps, dialect=dialect, calls_per_step=calls, negative=negative)
    pad = family.text_encoders[0].pad_token
    parts = tuple(_explain_part(part, steps, tokenizer, pad, dialect, emphasis, words or {}) for part in prompt.parts)
    return Explanation(text, dialect, family.title, steps, parts, prompt.networks)


def _explain_part(
    part: Part, steps: int, tokenizer: Tokenizer, pad: int, dialect: Dialect, emphasis: Emphasis, words: Words
) -> ExplainedPart:
    segments = []
    start, before = 0.0, None
    for segment in part.segments:
        made, cut = chunks(segment.text, tokenizer, pad, dialect, emphasis, words)
        tokens = tuple(
            tuple(
                ExplainedToken(
                    position,
                    chunk.ids[position],
                    shown([chunk.ids[position]], tokenizer, words),
                    1.0 if emphasis == "ignore" else chunk.weights[position],
                )
                for position in range(1, chunk.used + 1)
            )
            for chunk in made
        )
        gone, new = ((), ()) if before is None else _difference(before, segment.text)
        segments.append(
            ExplainedSegment(
                start, min(segment.until, steps), segment.text, tokens, shown(cut, tokenizer, words), gone, new
            ),
        )
        start, before = segment.until, segment.text
    return ExplainedPart(part.weight, part.literal, tuple(segments))


def _difference(before: str, after: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    old, new = before.split(), after.split()
    changes = [
        change
        for change in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if change[0] != "equal"
    ]
    return (
        tuple(" ".join(old[a:b]) for _, a, b, _, _ in changes if b > a),
        tuple(" ".join(new[a:b]) for _, _, _, a, b in changes if b > a),
    )


def render(explanation: Explanation) -> str:
    """The explanation as plain lines."""
    return "\n".join(_lines(explanation))


def _lines(explanation: Explanation) -> Iterator[str]:
    yield f"{explanation.family}, {explanation.dialect} dialect, {explanation.steps} steps"
    for tag in explanation.networks:
        named = [f"{name}={value}" for name, value in tag.named.items()]
        yield f"network: {tag.kind} {' '.join([*tag.positional, *named])}"
    several = len(explanation.parts) > 1
    for number, part in enumerate(explanation.parts, 1):
        if several or part.weight != 1:
            yield f"part {number} of {len(explanation.parts)}, weight {part.weight:g}"
        if part.literal:
            yield "no schedule: a | outside of [ ], or a backslash with nothing behind it, so the text stays as it is"
        for segment in part.segments:
            yield from _segment_lines(segment, len(part.segments) > 1)


def _segment_lines(segment: ExplainedSegment, scheduled: bool) -> Iterator[str]:
    if scheduled:
        yield f"{_span(segment.start, segment.until)}: {segment.text.strip() or '(nothing)'}"
        if segment.gone or segment.new:
            shown = [*(f"-[{words}]" for words in segment.gone), *(f"+[{words}]" for words in segment.new)]
            yield f"  changes: {' '.join(shown)}"
    for number, chunk in enumerate(segment.chunks, 1):
        yield f"  chunk {number} of {len(segment.chunks)}: {len(chunk)} of {LENGTH} tokens"
        for token in chunk:
            yield f"  {token.position:>4} {token.id:>6}  {token.weight:<8.4g} {token.word}"
    if segment.cut:
        yield f"  cut: {segment.cut}"


def _span(start: float, until: float) -> str:
    """[start, until) of `At.step` in steps counted from 1."""
    first, last = math.floor(start) + 1, math.ceil(until)
    from_half = " (second half)" if start % 1 else ""
    to_half = " (first half)" if until % 1 else ""
    if first >= last:
        return f"step {first}{from_half or to_half}"
    return f"steps {first}{from_half} to {last}{to_half}"
