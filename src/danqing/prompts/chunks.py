"""Weighted pieces of text to the chunks of 77 tokens that CLIP's text towers read. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from danqing.prompts.grammar import BREAK, Piece, Prompt, weigh
from danqing.prompts.tokenizer import Tokenizer
from danqing.vocabulary import Dialect, Emphasis

LENGTH = 75
"""Tokens of text in a chunk; start and end make it 77."""
BACKTRACK = 20
"""AUTOMATIC1111's comma rule: at most so many tokens after a comma move to the next chunk with their word."""
GROUP = 8
"""ComfyUI's rule: a stretch of one weight with fewer tokens than this is not cut at a chunk's edge."""
FIRST_VECTOR = 1 << 24
"""Ids from here on stand for vectors of embeddings; no vocabulary reaches as far."""
CALL = "embedding:"
"""What ComfyUI calls an embedding by: `embedding:name`."""

Words = Mapping[str, int]
"""What embeddings are called in prompts -> how many vectors each has. One that begins with `CALL` goes by that
alone."""


@dataclass(frozen=True)
class Run:
    """A stretch of tokens of one weight."""

    ids: tuple[int, ...]
    """Ids from `FIRST_VECTOR` upwards stand for vectors that an adapter brings (textual inversion)."""
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
    text: str,
    tokenizer: Tokenizer,
    pad: int,
    dialect: Dialect = "danqing",
    emphasis: Emphasis = "original",
    words: Words | None = None,
) -> tuple[tuple[Chunk, ...], tuple[int, ...]]:
    """(the chunks of a text, at least one; the ids that found no place). Only diffusers' dialect cuts.

    `words` are embeddings: AUTOMATIC1111 and diffusers know them by their bare names, ComfyUI by `embedding:name`,
    Danqing by both. One that `embedding:` calls and `words` lack is left out.
    """
    layout = Layout(tokenizer.start, tokenizer.end, pad, tokenizer.comma)
    vectors = vector_ids(words or {})
    names = _by_first_token(vectors, tokenizer) if dialect != "comfyui" else {}
    runs: list[Run] = []
    for piece in _pieces(text, dialect, emphasis):
        if piece == BREAK and dialect in ("danqing", "a1111") and emphasis != "none":
            runs.append(Run((), breaks=True))
            continue
        for plain, called in _calls(piece.text, dialect):
            runs += _runs(tokenizer.encode(plain), names, piece.weight)
            if found := vectors.get(CALL + called) or vectors.get(called):
                runs.append(Run(tuple(found), piece.weight, whole=True))
    if dialect == "diffusers":
        tokens = [(token, run.weight) for run in runs for token in run.ids]
        return (layout.chunk(tokens[:LENGTH]),), tuple(token for token, _ in tokens[LENGTH:])
    wrap = wrap_by_group if dialect == "comfyui" else wrap_by_comma
    return wrap(runs, layout), ()


def _pieces(text: str, dialect: Dialect, emphasis: Emphasis) -> tuple[Piece, ...]:
    return (Piece(text, 1.0),) if emphasis == "none" else weigh(text, dialect)


# --- embeddings -------------------------------------------------------------------------------------------------------

_CALLED = re.compile(r"(?<!\S)embedding:(\S+?)(?=,*(?:\s|$))")
"""At the beginning of a stretch of one weight, or behind a blank; commas behind it are text (comfy/sd1_clip.py)."""

Names = Mapping[int, Sequence[tuple[tuple[int, ...], range]]]
"""First token -> (a name's tokens, its vectors' ids), longest name first."""


def vector_ids(words: Words) -> dict[str, range]:
    """The ids that stand for each word's vectors."""
    ids: dict[str, range] = {}
    first = FIRST_VECTOR
    for name, count in words.items():
        ids[name] = range(first, first + count)
        first += count
    return ids


def called(prompt: Prompt, dialect: Dialect, emphasis: Emphasis = "original") -> tuple[str, ...]:
    """The names that `embedding:name` calls in a prompt, each once."""
    texts = [segment.text for part in prompt.parts for segment in part.segments]
    pieces = [piece for text in texts for piece in _pieces(text, dialect, emphasis)]
    names = [name for piece in pieces for _, name in _calls(piece.text, dialect) if name]
    return tuple(dict.fromkeys(names))


def mentioned(
    prompt: Prompt, tokenizer: Tokenizer, words: Words, dialect: Dialect, emphasis: Emphasis = "original"
) -> tuple[str, ...]:
    """Those of `words` that a prompt's tokens have in them, in the order of `words`."""
    seen: set[int] = set()
    for segment in (segment for part in prompt.parts for segment in part.segments):
        made, cut = chunks(segment.text, tokenizer, 0, dialect, emphasis, words)
        seen.update(cut, *(chunk.ids for chunk in made))
    return tuple(name for name, ids in vector_ids(words).items() if not seen.isdisjoint(ids))


def shown(tokens: Sequence[int], tokenizer: Tokenizer, words: Words) -> str:
    """What tokens look like in a text; a vector as its word and its number."""
    vectors = {
        number: f"{name} {index}/{len(ids)}"
        for name, ids in vector_ids(words).items()
        for index, number in enumerate(ids, 1)
    }
    groups = groupby(tokens, key=vectors.get)
    return " ".join(word if word is not None else tokenizer.text(group) for word, group in groups)


def _calls(text: str, dialect: Dialect) -> Iterator[tuple[str, str]]:
    """(text, the embedding called behind it; the last one empty)."""
    done = 0
    for match in _CALLED.finditer(text) if dialect in ("danqing", "comfyui") else ():
        yield text[done : match.start()], match[1]
        done = match.end()
    yield text[done:], ""


def _by_first_token(vectors: Mapping[str, range], tokenizer: Tokenizer) -> Names:
    names: dict[int, list[tuple[tuple[int, ...], range]]] = {}
    for name, ids in vectors.items():
        tokens = () if name.startswith(CALL) else tuple(tokenizer.encode(name))
        if tokens:
            names.setdefault(tokens[0], []).append((tokens, ids))
    return {first: sorted(found, key=lambda each: -len(each[0])) for first, found in names.items()}


def _runs(tokens: Sequence[int], names: Names, weight: float) -> Iterator[Run]:
    """A stretch of one weight cut where a name's tokens stand: AUTOMATIC1111's `find_embedding_at_position`."""
    tokens = tuple(tokens)
    begin = position = 0
    while position < len(tokens):
        for name, ids in names.get(tokens[position], ()):
            if tokens[position : position + len(name)] == name:
                yield Run(tokens[begin:position], weight)
                yield Run(tuple(ids), weight, whole=True)
                begin = position = position + len(name)
                break
        else:
            position += 1
    yield Run(tokens[begin:], weight)


# --- chunks -----------------------------------------------------------------------------------------------------------


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
