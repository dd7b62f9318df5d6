"""Wildcards and choices in prompts: `__colour__`, `{red|green}`, `{2$$a|b|c}`, by the library dynamicprompts.

Only `__name__` and `{...}` act. All else that the library would read (its comments, `$`, `%`), and what belongs to
AUTOMATIC1111's language (`[a|b]`, `<lora:my__file__x:1>`), is shielded from it and comes back as it was.
`\\{` and `\\}` are braces that do not act.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from danqing.errors import DanqingError
from danqing.vocabulary import quoted

if TYPE_CHECKING:
    from dynamicprompts.generators.promptgenerator import PromptGenerator
    from dynamicprompts.wildcards import WildcardManager

MOST = 10_000
"""All combinations of a prompt may be no more than this."""

# A shielded character is moved to a plane of Unicode that is for private use, and back at the end.
_PLANE = 0xF0000
_BACK = {_PLANE + code: chr(code) for code in range(128)}
_TOKEN = re.compile(
    r"""(?P<escaped>\\.)
    |(?P<wildcard>__[~!@]?[^\s_,|()\[\]<>\#:](?:(?!__)[^,|\n()\[\]<>\#:])*(?:\([^()\n]*\))?__)
    |(?P<literal>__|//|/\*|\#|\t|%(?!\{)|(?<!\$)\$(?![\${]))
    |(?P<dollars>\$\$)
    |(?P<open><[A-Za-z]+:|[\[{])
    |(?P<close>[>\]}])
    |(?P<pipe>\|)""",
    re.VERBOSE | re.DOTALL,
)
_PARTNER = {">": "<", "]": "[", "}": "{"}


def shield(text: str) -> str:
    """`text` with all characters that are not to act moved out of the library's sight; `unshield` brings them back."""
    tokens = list(_TOKEN.finditer(text))
    inert = _inert(tokens)
    pieces, end = [], 0
    for match in tokens:
        token = match[0]
        pieces.append(text[end : match.start()])
        end = match.end()
        if match.lastgroup == "escaped" and token[1] in "{}":
            pieces.append(_moved(token[1]))
        elif match.lastgroup == "escaped" or match.start() in inert or match.lastgroup == "literal":
            pieces.append(_moved(token))
        else:
            pieces.append(token)
    return "".join([*pieces, text[end:]])


def unshield(text: str) -> str:
    return text.translate(_BACK)


def _moved(text: str) -> str:
    return "".join(chr(_PLANE + ord(char)) if ord(char) < 128 else char for char in text)


def _inert(tokens: Sequence[re.Match[str]]) -> set[int]:
    """Where tokens stand that act elsewhere but not here: `|` within [ ], `__name__` within < >, `$$` outside { }."""
    inert: set[int] = set()
    within: list[tuple[str, list[int]]] = []  # brackets that are open, with the places of what they would disarm
    for match in tokens:
        kind, token, place = match.lastgroup, match[0], match.start()
        if kind == "open":
            within.append((token[0], []))
        elif kind == "close":
            partner = _PARTNER[token]
            opened = [bracket for bracket, _ in within]
            # a bracket of another kind that was never closed is but a character; braces are closed by braces alone
            while partner in opened and opened[-1] != partner and (partner == "{" or opened[-1] != "{"):
                opened.pop()
                within.pop()
            if opened and opened[-1] == partner:
                inert.update(within.pop()[1])
        elif kind == "pipe" and within and within[-1][0] == "[":
            within[-1][1].append(place)
        elif kind == "wildcard":
            for bracket, places in within:
                if bracket == "<":
                    places.append(place)
        elif kind == "dollars" and not any(bracket == "{" for bracket, _ in within):
            inert.add(place)
    return inert


def acts(text: str) -> bool:
    """Whether `text` has a wildcard or a choice in it."""
    return bool(re.search(r"\{|__", shield(text)))


def expand_random(text: str, key: str, folders: Sequence[Path]) -> str:
    """`text` with each wildcard and choice replaced by one of its values; the same `key` draws the same.

    `folders` hold the wildcards: NAME.txt, a value on each line, `2::value` twice as often; and JSON and YAML as the
    library reads them. Raises DanqingError: an unknown wildcard, braces that do not match, the extra not installed.
    """
    if not acts(text):
        return unshield(shield(text))

    def one(manager: WildcardManager) -> PromptGenerator:
        from dynamicprompts.generators import RandomPromptGenerator

        return RandomPromptGenerator(manager, seed=key)  # type: ignore[arg-type]  # any seed of Python's Random

    return _generated(text, one, folders, True, 1)[0]


def expand_all(text: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """Every combination of the wildcards' and choices' values, in their order; see `expand_random`.

    Raises DanqingError also for more than MOST of them.
    """
    if not acts(text):
        return (unshield(shield(text)),)

    def every(manager: WildcardManager) -> PromptGenerator:
        from dynamicprompts.generators import CombinatorialPromptGenerator

        return CombinatorialPromptGenerator(manager)

    made = tuple(dict.fromkeys(_generated(text, every, folders, False, MOST + 1)))
    if len(made) > MOST:
        raise DanqingError(f"prompt: has more than {MOST} combinations; use --dynamic random, or fewer choices")
    return made


def _generated(
    text: str,
    generator: Callable[[WildcardManager], PromptGenerator],
    folders: Sequence[Path],
    weighted: bool,
    count: int,
) -> list[str]:
    try:
        from pyparsing import ParseBaseException

        from danqing.prompts.wildcards import Wildcards
    except ImportError:
        raise DanqingError(
            "dynamic: wildcards and {a|b} need the extra 'dynamic'; install it by pip install 'danqing[dynamic]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a {!...} is drawn at random where all else is
            made: Iterator[object] = iter(generator(Wildcards(folders, weighted)).generate(shield(text), count))
            return [unshield(str(each)) for each in islice(made, count)]
    except ParseBaseException as error:
        near = unshield(shield(text)[error.loc :][:20])
        raise DanqingError(
            f"prompt: the braces are not understood at {quoted(near)}; \\{{ is one that does not act"
        ) from None
    except RecursionError:
        raise DanqingError("prompt: a wildcard or variable calls itself without end") from None
    except ValueError as error:
        raise DanqingError(f"prompt: the choices are not understood: {error}") from None
