"""The prompt language: comments, network tags, AND, schedules, weights. Text in, plain data out; no torch.

AUTOMATIC1111's language (its modules/prompt_parser.py, extra_networks.py and processing_scripts/comments.py at
v1.10.1) is the default; ComfyUI's knows weights in ( ) alone, diffusers' knows nothing but text. No text is an
error: what cannot be understood stands for itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from danqing.vocabulary import Dialect

MAX_WEIGHT = 1e6
"""Weights are kept in ±MAX_WEIGHT: a row of brackets cannot make them infinite."""
MAX_DEPTH = 250
"""Weight brackets open at once beyond this are literal characters."""


@dataclass(frozen=True)
class NetworkTag:
    """`<kind:positional:...:name=value:...>`, taken out of the prompt: `<lora:style:0.8:unet=0.5>`."""

    kind: str
    positional: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """The text of a part while `At.step` is below `until` (and not below the segment before)."""

    until: float
    text: str


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins."""

    weight: float
    segments: tuple[Segment, ...]
    """By rising `until`; the last holds to infinity. Neighbours differ."""
    literal: bool = False
    """The text is no valid schedule (a `|` outside [ ], a backslash at the end): nothing is edited in it."""


@dataclass(frozen=True)
class Prompt:
    text: str
    """As typed."""
    parts: tuple[Part, ...]
    networks: tuple[NetworkTag, ...] = ()


class Piece(NamedTuple):
    """A stretch of text of one weight."""

    text: str
    weight: float


BREAK = Piece("BREAK", -1.0)
"""Not a word but the end of a chunk."""


def understand(
    text: str,
    steps: int,
    *,
    dialect: Dialect = "danqing",
    calls_per_step: int = 1,
    old_scheduling: bool = False,
    first_pass_steps: int | None = None,
    negative: bool = False,
) -> Prompt:
    """What a prompt says and when, over `steps` sampling steps. Never raises on account of the text.

    `calls_per_step` is 2 for second-order samplers: schedules count network calls (AUTOMATIC1111).
    `old_scheduling` is AUTOMATIC1111's rule before 1.6 for the numbers in [a:b:n].
    `first_pass_steps` is set in the second pass of a hires fix: its schedule goes on where the first one ends.
    A `negative` prompt is not split at AND.
    """
    if dialect in ("comfyui", "diffusers"):
        return Prompt(text, (Part(1.0, (Segment(math.inf, text),)),))
    rest, networks = take_tags(strip_comments(text))
    calls = steps * calls_per_step
    before = None if first_pass_steps is None else first_pass_steps * calls_per_step
    parts = []
    for part, weight in [(rest, 1.0)] if negative else split_and(rest):
        segments: list[Segment] = []
        start = 0
        for last_call, words in schedule(part, calls, old_scheduling=old_scheduling, first_pass=before):
            if segments and segments[-1].text == words:
                segments.pop()
            if not segments or start < calls:  # an entry for the call after the last is never seen
                segments.append(Segment((last_call + 1) / calls_per_step, words))
            start = last_call + 1
        segments[-1] = Segment(math.inf, segments[-1].text)
        parts.append(Part(weight, tuple(segments), _parse(part) is None))
    return Prompt(text, tuple(parts), networks)


# --- Comments, tags, AND

_COMMENT_LINE = re.compile(r"(?:\A|\n)#[^\n]*(?:\n|\Z)")
_COMMENT_TAIL = re.compile(r"#[^\n]*(?:\n|\Z)")
_TAG_HEAD = re.compile(r"<(\w+):")
_AND = re.compile(r"\bAND\b")
_AND_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


def strip_comments(text: str) -> str:
    """Without `#` to the end of its line; a line that is all comment goes with one of its line ends."""
    if "#" not in text:
        return text
    return _COMMENT_TAIL.sub("\n", _COMMENT_LINE.sub("\n", text))


def take_tags(text: str) -> tuple[str, tuple[NetworkTag, ...]]:
    """(the text without its `<kind:arguments>` tags, the tags in their order)."""
    kept: list[str] = []
    tags: list[NetworkTag] = []
    done = position = 0
    while head := _TAG_HEAD.search(text, position):
        close = text.find(">", head.end())
        if close < 0:
            break
        position = head.start() + 1
        if close == head.end():
            continue
        positional: list[str] = []
        named: dict[str, str] = {}
        for argument in text[head.end() : close].split(":"):
            name, equals, value = argument.partition("=")
            if equals and "=" not in value:
                named[name] = value
            else:
                positional.append(argument)
        tags.append(NetworkTag(head[1], tuple(positional), named))
        kept.append(text[done : head.start()])
        done = position = close + 1
    kept.append(text[done:])
    return "".join(kept), tuple(tags)


def split_and(text: str) -> list[tuple[str, float]]:
    """The prompts that the whole word AND joins, each with its weight: `a :0.7 AND b` -> (a, 0.7), (b, 1).

    A lone prompt that ends in `:2` has the weight 2 as well.
    """
    parts = []
    for part in _AND.split(text):
        words = part.rstrip()
        head, colon, tail = words.rpartition(":")
        if colon and _AND_WEIGHT.fullmatch(tail.lstrip()):
            parts.append((head.rstrip(), _clamp(float(tail))))
        else:
            parts.append((words, 1.0))
    return parts


def _clamp(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


# --- Schedules


@dataclass(frozen=True)
class _Switch:
    """[before:after:when]"""

    before: list[_Node]
    after: list[_Node]
    when: str


@dataclass(frozen=True)
class _Turns:
    """[a|b|c]"""

    options: list[list[_Node]]


_Node: TypeAlias = "str | list[_Node] | _Switch | _Turns"

_LEXEME = re.compile(r"(?P<plain>(?:[^\\\[\]():|]|\\.)+)|[\[\]():|]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


@dataclass
class _Frame:
    """An open bracket and what has come after it: cells with separators between them."""

    bracket: str
    cells: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def literal(self) -> list[_Node] | None:
        """The bracket taken as a mere character; None if that leaves a `|` outside of [ ]."""
        if "|" in self.separators:
            return None
        nodes: list[_Node] = [self.bracket]
        for index, cell in enumerate(self.cells):
            nodes += [":", cell] if index else [cell]
        return nodes

    def close(self) -> _Node | None:
        """The element that this bracket and its closing one make, or None if they make none."""
        kinds = set(self.separators)
        if self.bracket == "(":
            return [*(self.literal() or []), ")"] if kinds <= {":"} and len(self.cells) <= 2 else None
        if not kinds:
            return ["[", self.cells[0], "]"]
        if kinds == {"|"}:
            return _Turns(self.cells)
        last = self.cells[-1]
        if kinds == {":"} and len(self.cells) <= 3 and len(last) == 1 and isinstance(last[0], str):
            number = _NUMBER.fullmatch(last[0])
            if number:
                return _Switch(self.cells[0] if len(self.cells) == 3 else [], self.cells[-2], number[1])
        return None


def _parse(text: str) -> list[_Node] | None:
    """The schedule grammar, in one pass and without recursion. None if `text` is not in it.

    An element is a balanced pair of brackets whose inside is text and elements alone. A bracket or colon that
    belongs to no element is a mere character, but only outside of all elements; a `|` never is.
    """
    root: list[_Node] = []
    stack: list[_Frame] = []
    end = 0

    def loosen() -> bool:
        """No open bracket can become an element any more."""
        for frame in stack:
            nodes = frame.literal()
            if nodes is None:
                return False
            root.append(nodes)
        stack.clear()
        return True

    for match in _LEXEME.finditer(text):
        if match.start() != end:
            return None
        end = match.end()
        lexeme = match[0]
        cell = stack[-1].cells[-1] if stack else root
        if match["plain"] is not None:
            cell.append(lexeme)
        elif lexeme in "([":
            stack.append(_Frame(lexeme))
        elif lexeme in ":|":
            if stack:
                stack[-1].separators.append(lexeme)
                stack[-1].cells.append([])
            elif lexeme == "|":
                return None
            else:
                root.append(":")
        else:
            fits = stack and stack[-1].bracket + lexeme in ("()", "[]")
            element = stack[-1].close() if fits else None
            if element is not None:
                stack.pop()
                (stack[-1].cells[-1] if stack else root).append(element)
            elif loosen():
                root.append(lexeme)
            else:
                return None
    return root if end == len(text) and loosen() else None


def _walk(root: list[_Node], call: int | None, when: Mapping[str, int]) -> tuple[str, list[_Switch], bool]:
    """The text at the 1-based `call`; with None, of all branches at once. Also the switches and whether any take turns."""
    words: list[str] = []
    switches: list[_Switch] = []
    turns = False
    stack: list[_Node] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            words.append(node)
        elif isinstance(node, list):
            stack.extend(reversed(node))
        elif isinstance(node, _Switch):
            switches.append(node)
            if call is None:
                stack += [node.before, node.after]
            else:
                stack.append(node.before if call <= when[node.when] else node.after)
        else:
            turns = True
            if call is None:
                stack.extend(node.options)
            else:
                stack.append(node.options[(call - 1) % len(node.options)])
    return "".join(words), switches, turns


def schedule(
    text: str, calls: int, *, old_scheduling: bool = False, first_pass: int | None = None
) -> list[tuple[int, str]]:
    """(last call, text) by rising call: the text that the 0-based network call c sees is the first with c <= last.

    `calls` is the number of network calls, `first_pass` that of the pass before a hires pass. The number of
    [a:b:n] is a fraction of the calls if it has a dot, otherwise a call (AUTOMATIC1111 1.6 and later).
    """
    root = _parse(text)
    if root is None:
        return [(calls, text)]
    _, switches, turns = _walk(root, None, {})
    when: dict[str, int] = {}
    for number in {switch.when for switch in switches}:
        value = float(number)
        if old_scheduling:
            value = value * calls if value < 1 else value
        elif "." in number:
            value = (value - (0 if first_pass is None else 1)) * calls
        else:
            value -= first_pass or 0
        when[number] = int(min(max(value, 0), calls))
    ends = {calls, *(call for call in when.values() if call >= 1)}
    if turns:
        ends.update(range(1, calls + 1))
    return [(end, _walk(root, end, when)[0]) for end in sorted(ends)]


# --- Weights

_MARK = re.compile(r"\\(?P<escaped>[()\[\]\\]?)|[(\[\])]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK_WORD = re.compile(r"\bBREAK\b")
_ROUND, _SQUARE = 1.1, 1 / 1.1


def weigh(text: str, dialect: Dialect = "danqing") -> tuple[Piece, ...]:
    """The text in pieces of one weight each; at least one piece. Never raises.

    AUTOMATIC1111: ( ) multiplies by 1.1, [ ] divides by it, (x:w) multiplies by w; a bracket that is not closed
    reaches to the end; the word BREAK comes out as `BREAK`. ComfyUI: ( ) multiplies by 1.1 and (x:w) sets w.
    diffusers: one piece.
    """
    if dialect == "diffusers":
        return (Piece(text, 1.0),)
    if dialect == "comfyui":
        return tuple(_weigh_comfyui(text))
    return _weigh_a1111(text)


def _weigh_a1111(text: str) -> tuple[Piece, ...]:
    words: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(word: str, weight: float = 1.0) -> None:
        words.append(word)
        weights.append(weight)

    def scale(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weights[index] = _clamp(weights[index] * factor)

    for match in _MARK.finditer(text):
        lexeme = match[0]
        number = _finite(match["weight"])
        if match["escaped"] is not None:
            add(match["escaped"])
        elif lexeme in "([":
            opened[lexeme].append(len(words))
            if len(opened["("]) + len(opened["["]) > MAX_DEPTH:
                return (Piece(text, 1.0),)
        elif number is not None and opened["("]:
            scale(opened["("].pop(), number)
        elif lexeme == ")" and opened["("]:
            scale(opened["("].pop(), _ROUND)
        elif lexeme == "]" and opened["["]:
            scale(opened["["].pop(), _SQUARE)
        elif match["weight"] is not None and number is None and opened["("]:
            # `(a:1.1.1)`: no number after all, so its colon is text and its bracket closes
            add(lexeme[:-1])
            scale(opened["("].pop(), _ROUND)
        else:
            parts = _BREAK_WORD.split(lexeme)
            for index, part in enumerate(parts):
                if index:
                    add(*BREAK)
                    part = part.lstrip()
                add(part if index == len(parts) - 1 else part.rstrip())
    for start in opened["("]:
        scale(start, _ROUND)
    for start in opened["["]:
        scale(start, _SQUARE)
    return _joined(words, weights)


def _joined(words: list[str], weights: list[float]) -> tuple[Piece, ...]:
    """Neighbours of equal weight made one; no words at all are one empty piece."""
    groups: list[tuple[list[str], float]] = []
    for word, weight in zip(words, weights):
        if groups and groups[-1][1] == weight:
            groups[-1][0].append(word)
        else:
            groups.append(([word], weight))
    return tuple(Piece("".join(group), weight) for group, weight in groups) or (Piece("", 1.0),)


def _finite(number: str | None) -> float | None:
    try:
        value = float(number or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_ROUND_MARK = re.compile(r"\\[()]|[()]")
_ROUND_ESCAPE = re.compile(r"\\([()])")


def _groups_comfyui(text: str) -> list[tuple[str, bool]]:
    """`text` cut at its outermost brackets: (stretch, whether it begins and ends with one).

    Closing brackets without opening ones are counted too, so that `a)(b)` has no group (as in ComfyUI); a group
    that is never closed ends with the text.
    """
    cuts = [0]
    level = 0
    last_mark = (-1, "")
    for mark in _ROUND_MARK.finditer(text):
        last_mark = (mark.end(), mark[0])
        if mark[0] == "(":
            if level == 0:
                cuts.append(mark.start())
            level += 1
        elif mark[0] == ")":
            level -= 1
            if level == 0:
                cuts.append(mark.end())
    cuts.append(len(text))
    stretches = [(text[a:b], b) for a, b in pairwise(cuts) if b > a]
    return [
        (stretch, len(stretch) >= 2 and stretch[0] == "(" and stretch[-1] == ")" and (b, "\\)") != last_mark)
        for stretch, b in stretches
    ]


def _weigh_comfyui(text: str, weight: float = 1.0, depth: int = 0) -> list[Piece]:
    pieces: list[Piece] = []
    for stretch, is_group in _groups_comfyui(text):
        if not is_group or depth >= MAX_DEPTH:
            pieces.append(Piece(_ROUND_ESCAPE.sub(r"\1", stretch), weight))
            continue
        inside, inner = stretch[1:-1], _clamp(weight * _ROUND)
        colon = inside.rfind(":")
        number = _finite(inside[colon + 1 :]) if colon > 0 else None
        if number is not None:
            inside, inner = inside[:colon], _clamp(number)
        pieces += _weigh_comfyui(inside, inner, depth + 1)
    return pieces if pieces or depth else [Piece("", 1.0)]
