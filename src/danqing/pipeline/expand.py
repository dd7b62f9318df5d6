"""Styles and wildcards: a request as asked -> the requests that are painted, their prompts written out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from danqing.errors import DanqingError
from danqing.library.settings import Settings, load_settings
from danqing.prompts import dynamic
from danqing.prompts.styles import apply, choose_styles, style_files
from danqing.request_parts import Template
from danqing.requests import MAX_SEED, Painting

Asked = TypeVar("Asked", bound=Painting)

_PAIRS = (("prompt", "negative_prompt"), ("hr_prompt", "hr_negative_prompt"))
"""Prompts with their negatives. The second pass's take styles only where they are given; else they are the first's."""


def draw_seed() -> int:
    """A seed as AUTOMATIC1111 draws one: below 2^32 - 2."""
    return secrets.randbelow(4294967294)


def roots(settings: Settings) -> tuple[Path, ...]:
    """Where styles and wildcards are looked for: beside the settings, in the data folder, in the model folders."""
    return tuple(dict.fromkeys((settings.path.absolute().parent, settings.data_dir.absolute(), *settings.folders)))


def style_places(settings: Settings) -> tuple[Path, ...]:
    """The files of styles that are there."""
    return style_files(roots(settings))


def wildcard_places(settings: Settings) -> tuple[Path, ...]:
    """The folders of wildcards that are there; AUTOMATIC1111's extension and Fooocus keep theirs in such ones."""
    names = ("wildcards", "extensions/sd-dynamic-prompts/wildcards")
    return tuple(folder for root in roots(settings) for name in names if (folder := root / name).is_dir())


def expand(request: Asked, settings: Settings | None = None) -> tuple[Asked, ...]:
    """The requests to paint in its place: styles merged in, wildcards and choices drawn; itself where there are none.

    With `dynamic` random, each picture is a request with a prompt of its own, drawn by its seed. With all, each
    combination is one, and their pictures' seeds go on counting. `template` holds what was asked for.
    Raises DanqingError: an unknown style or wildcard, choices that are not understood, too many combinations.
    """
    if not request.styles and request.dynamic == "none":
        return (request,)
    settings = settings or load_settings()
    template = Template(
        prompt=request.prompt, negative_prompt=request.negative_prompt, styles=request.styles, dynamic=request.dynamic
    )
    written = {**_styled(request, settings), "styles": (), "dynamic": "none", "template": template}
    styled = request.model_copy(update=written)
    if request.dynamic == "none":
        return (styled,)
    folders = wildcard_places(settings)
    if request.dynamic == "all":
        return tuple(_all(styled, folders))
    if not any(dynamic.acts(text) for text in _prompts(styled).values()):
        # no wildcard acts, so that a batch stays one; escaped braces are still written out
        return (styled.model_copy(update=_drawn(styled, "", folders)),)
    return tuple(_random(styled, folders))


def _prompts(request: Painting) -> dict[str, str]:
    fields = [name for pair in _PAIRS for name in pair if getattr(request, name, "")]
    return {name: getattr(request, name) for name in fields}


def _styled(request: Painting, settings: Settings) -> dict[str, str]:
    styles = choose_styles(request.styles, style_places(settings)) if request.styles else ()
    changed: dict[str, str] = {}
    for positive, negative in _PAIRS:
        given = (getattr(request, positive, ""), getattr(request, negative, ""))
        texts = apply(*given, styles)
        if positive == "prompt":
            changed |= {positive: texts[0], negative: texts[1]}
        else:
            changed |= {name: text for name, old, text in zip((positive, negative), given, texts) if old}
    return changed


def _drawn(request: Painting, key: str, folders: Sequence[Path]) -> dict[str, str]:
    return {name: dynamic.expand_random(text, f"{name} {key}", folders) for name, text in _prompts(request).items()}


def _random(request: Asked, folders: Sequence[Path]) -> Iterator[Asked]:
    first = fix_seeds(request).model_copy(update={"batch_size": 1, "n_iter": 1})
    for index in range(request.batch_size * request.n_iter):
        single = counted(first, index)
        key = f"{single.seed} {single.subseed if single.subseed_strength else 0}"
        yield single.model_copy(update=_drawn(single, key, folders))


def _all(request: Asked, folders: Sequence[Path]) -> Iterator[Asked]:
    combinations: list[dict[str, str]] = [{}]
    for name, text in _prompts(request).items():
        texts = dynamic.expand_all(text, folders)
        if len(combinations) * len(texts) > dynamic.MOST:
            raise DanqingError(f"prompt: has more than {dynamic.MOST} combinations; use --dynamic random")
        combinations = [{**before, name: each} for before in combinations for each in texts]
    first = fix_seeds(request)
    each_paints = request.batch_size * request.n_iter
    for index, written in enumerate(combinations):
        yield counted(first, index * each_paints).model_copy(update=written)


def fix_seeds(request: Asked) -> Asked:
    """The request with its seeds drawn, where they are unset or -1."""
    changes: dict[str, Any] = {"seed": draw_seed() if request.seed in (None, -1) else request.seed}
    if request.subseed_strength and request.subseed in (None, -1):
        changes["subseed"] = draw_seed()
    return request.model_copy(update=changes)


def counted(request: Asked, index: int) -> Asked:
    """The request that begins at picture `index` of one with fixed seeds, counted as `ResolvedRequest.picture` does."""
    name = "subseed" if request.subseed_strength else "seed"
    seed = (getattr(request, name) or 0) + index
    if seed > MAX_SEED:
        raise DanqingError(f"{name}: that of a later picture would be above {MAX_SEED}; lower it")
    return request.model_copy(update={name: seed})
