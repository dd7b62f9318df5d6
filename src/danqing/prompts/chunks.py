"""Weighted pieces of text to the chunks of 77 tokens that CLIP's text towers read. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from danqing.prompts.grammar import BREAK, Piece, weigh
from danqing.prompts.tokenizer import Tokenizer
from danqing.vocabulary import Dialect, Emphasis

LENGTH = 75
"""Tokens of text in a chunk; start and end make it 77."""
BACKTRACK = 20
"""AUTOMATIC1111's comma rule: at most so many tokens after a comma move to the next chunk with their word."""
GROUP = 8
"""ComfyUI's rule: a stretch of one weight with fewer tokens than this is not cut at a chunk's edge."""


@dataclass(frozen=True)
class Run:
    """A stretch of tokens of one weight."""

    ids: tuple[int, ...]
    """Ids from the vocabulary's size upwards stand for vectors that an adapter brings (textual inversion)."""
    weight: float = 1.0
    whole: bool = False
    """Not to be cut at a chunk's edge: the vectors of one embedding."""
    breaks: bool = False
    """No tokens, but the end of a chunk (BREAK)."""


@dataclass(frozen=True)
class Chunk:
    """What a text tower reads at once: start, up to 75 tokens, end, padding."""

    ids: tuple[int, ...]
    """77 of them."""
    weights: tuple[float, ...]
    """As many; 1 on start, end and padding."""
    used: int
    """Tokens of text; they stand at 1 ... used."""


@dataclass(frozen=True)
class Layout:
    """The ids that frame a chunk."""

    start: int
    end: int
    pad: int
    """After the end token."""
    comma: int | None = None

    def chunk(self, tokens: Sequence[tuple[int, float]]) -> Chunk:
        """Up to 75 (id, weight) framed and padded to 77."""
        padding = LENGTH - len(tokens)
        return Chunk(
            ids=(self.start, *(token for token, _ in tokens), self.end, *(self.pad,) * padding),
            weights=(1.0, *(weight for _, weight in tokens), 1.0, *(1.0,) * padding),
            used=len(tokens),
        )


def chunks(
    text: str, tokenizer: Tokenizer, pad: int, dialect: Dialect = "danqing", emphasis: Emphasis = "original"
) -> tuple[tuple[Chunk, ...], tuple[int, ...]]:
    """(the chunks of a text, at least one; the ids that found no place). Only diffusers' dialect cuts."""
    layout = Layout(tokenizer.start, tokenizer.end, pad, tokenizer.comma)
    pieces = (Piece(text, 1.0),) if emphasis == "none" else weigh(text, dialect)
    knows_break = dialect in ("danqing", "a1111") and emphasis != "none"
    runs = [
        Run((), breaks=True)
        if knows_break and piece == BREAK
        else Run(tuple(tokenizer.encode(piece.text)), piece.weight)
        for piece in pieces
    ]
    if dialect == "diffusers":
        tokens = [(token, run.weight) for run in runs for token in run.ids]
        return (layout.chunk(tokens[:LENGTH]),), tuple(token for token, _ in tokens[LENGTH:])
    wrap = wrap_by_group if dialect == "comfyui" else wrap_by_comma
    return wrap(runs, layout), ()


def wrap_by_comma(runs: Sequence[Run], layout: Layout) -> tuple[Chunk, ...]:
    """AUTOMATIC1111's chunks: a full chunk ends at its last comma, if that is near (modules/sd_hijack_clip.py)."""
    done: list[Chunk] = []
    open_: list[tuple[int, float]] = []
    comma = -1

    def close(count: int | None = None) -> None:
        """Ends the chunk after `count` tokens, or all; the others begin the next."""
        nonlocal open_, comma
        count = len(open_) if count is None else count
        done.append(layout.chunk(open_[:count]))
        open_, comma = open_[count:], -1

    for run in runs:
        if run.breaks:
            close()
        for index, token in enumerate(run.ids):
            if token == layout.comma:
                comma = len(open_)
            elif len(open_) == LENGTH and comma >= 0 and LENGTH - comma <= BACKTRACK:
                close(comma + 1)
            does_not_fit = run.whole and index == 0 and len(open_) + len(run.ids) > LENGTH
            if len(open_) == LENGTH or (open_ and does_not_fit):
                close()
            open_.append((token, run.weight))
    if open_ or not done:
        close()
    return tuple(done)


def wrap_by_group(runs: Sequence[Run], layout: Layout) -> tuple[Chunk, ...]:
    """ComfyUI's chunks: a short run that does not fit begins the next one (comfy/sd1_clip.py)."""
    done: list[Chunk] = []
    open_: list[tuple[int, float]] = []
    for run in runs:
        tokens = [(token, run.weight) for token in run.ids]
        if len(tokens) < GROUP and len(open_) + len(tokens) > LENGTH:
            done.append(layout.chunk(open_))
            open_ = []
        open_ += tokens
        while len(open_) > LENGTH:
            done.append(layout.chunk(open_[:LENGTH]))
            open_ = open_[LENGTH:]
    return (*done, layout.chunk(open_))
