"""Prompts from a file: a prompt on each line, or a line of `--option value` (AUTOMATIC1111's prompts_from_file.py)."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.vocabulary import nearest

_NAMES = {"sd_model": "model", "sampler": "sampler_name", "cfg": "cfg_scale", "style": "styles"}
_PROMPTS = ("prompt", "negative_prompt")
_IGNORED = {"outpath_samples", "outpath_grids", "prompt_for_display", "do_not_save_samples", "do_not_save_grid"}
"""AUTOMATIC1111's options that say where pictures go: the command line's own say that here."""


def read_lines(path: Path, fields: Collection[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """`parse_lines` of a text file. Raises DanqingError where it cannot be read, and as that does."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DanqingError(f"{path}: the prompts cannot be read: {reason}") from None
    return parse_lines(text, fields, str(path))


def parse_lines(text: str, fields: Collection[str], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(the fields that each line sets, what had to be left out), of a text by that name; empty lines are none.

    A line that begins with `--` is options, each with a value: `fields` are those known, with `-` or `_`. All else is
    a prompt. Raises DanqingError with the line's number: an unknown option, a missing value, quotes that do not match.
    """
    rows, notes = [], []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line:
            continue
        if not line.startswith("--"):
            rows.append({"prompt": line})
            continue
        row, left_out = _options(line, fields, f"{name}, line {number}")
        rows.append(row)
        notes += [f"{name}, line {number}: --{each} is left out; --output says where pictures go" for each in left_out]
    if not rows:
        raise DanqingError(f"{name}: it holds no prompt; write one on each line")
    return rows, notes


def _options(line: str, fields: Collection[str], where: str) -> tuple[dict[str, Any], list[str]]:
    try:
        words = shlex.split(line)
    except ValueError:
        raise DanqingError(f"{where}: the quotes do not match") from None
    row: dict[str, Any] = {}
    left_out = []
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        name = _NAMES.get(name, name)
        if not word.startswith("--") or name not in {*fields, *_IGNORED}:
            like = nearest(name, fields)
            raise DanqingError(f"{where}: '{word}' is no option" + (f"; did you mean --{like[0]}?" if like else ""))
        if not words:
            raise DanqingError(f"{where}: {word} has no value")
        value = words.pop(0)
        while name in _PROMPTS and words and not words[0].startswith("--"):
            value += " " + words.pop(0)  # a prompt goes on to the next option, quoted or not
        if name in _IGNORED:
            left_out.append(name)
        elif name == "styles":
            row[name] = tuple(style.strip() for style in value.split(",") if style.strip())
        elif name == "tiling":
            row[name] = {"true": "both", "false": "none"}.get(value.casefold(), value)
        else:
            row[name] = value
    return row, left_out
