"""The embeddings that a request's prompts name: found among one's files, read, given to the models that paint."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from danqing.adapters.embedding import Embedding, read, with_embeddings
from danqing.errors import DanqingError
from danqing.families import Family, Model
from danqing.library.names import find, known
from danqing.library.settings import load_settings
from danqing.pipeline.models import Say
from danqing.pipeline.run import Studio
from danqing.prompts.chunks import CALL, called, mentioned
from danqing.prompts.encode import tokenizer_of
from danqing.prompts.grammar import Prompt, understand
from danqing.prompts.tokenizer import Tokenizer
from danqing.requests import Painting, TextToImage
from danqing.vocabulary import DIALECT_EMPHASIS, Dialect, Emphasis


@dataclass(frozen=True)
class Found:
    """Files of embeddings, by the words that prompts call them by: bare names, and `embedding:name` as it is
    written."""

    files: Mapping[str, Path] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What is called by `embedding:name` and is not there, and folders that cannot be read, in words."""


def texts(request: Painting) -> Iterator[str]:
    """Every text of a request that is encoded."""
    yield from (
        request.prompt,
        request.negative_prompt,
        request.subprompt or "",
        getattr(request, "inversion_prompt", ""),
    )
    yield from (region.prompt for region in request.regions)
    for detailer in request.detailers:
        yield from (detailer.prompt, detailer.negative_prompt)
    if isinstance(request, TextToImage) and request.enable_hr:
        yield from (request.hr_prompt, request.hr_negative_prompt)


def prompts(request: Painting) -> tuple[Prompt, ...]:
    """The request's texts as they are understood in its passes; the second pass of a hires fix has its own schedule."""
    steps = request.steps or 1
    passes = (None, steps) if isinstance(request, TextToImage) and request.enable_hr else (None,)
    return tuple(
        understand(text, steps, dialect=request.dialect, first_pass_steps=first)
        for text in dict.fromkeys(texts(request))
        for first in passes
        if text
    )


def find_embeddings(
    understood: Iterable[Prompt],
    tokenizer: Callable[[], Tokenizer],
    dialect: Dialect,
    emphasis: Emphasis | None = None,
    besides: Collection[str] = (),
) -> Found:
    """The embeddings that prompts name, but for those `besides`, which are there already.

    Bare names are those of the files in the embeddings folders, without suffix and folder, wherever their tokens stand
    (AUTOMATIC1111's rule); `embedding:name` takes a file's name or path (ComfyUI's).
    """
    understood = [prompt for prompt in understood if prompt.text]
    if not understood:
        return Found()
    emphasis, settings = emphasis or DIALECT_EMPHASIS[dialect], load_settings()
    files: dict[str, Path] = {}
    problems: list[str] = []
    for name in dict.fromkeys(name for prompt in understood for name in called(prompt, dialect, emphasis)):
        if name in besides or CALL + name in besides:
            continue
        try:
            files[CALL + name] = find(name, "embedding", settings).path
        except DanqingError as error:
            problems.append(f"{CALL}{name}: {error}; it is left out")
    letters = [_letters(prompt.text) for prompt in understood] if dialect != "comfyui" else []
    try:
        entries = known(settings) if letters else ()
    except DanqingError as error:  # a list of folders that cannot be read is no reason not to paint
        entries = ()
        problems.append(f"{error}; names of embeddings stay ordinary words")
    near = {
        entry.path.stem: entry.path
        for entry in reversed(entries)
        if entry.kind == "embedding" and any(_letters(entry.path.stem) in text for text in letters)
    }
    if near := {name: path for name, path in near.items() if name not in besides}:
        words = dict.fromkeys(near, 1)
        spoken = {name for prompt in understood for name in mentioned(prompt, tokenizer(), words, dialect, emphasis)}
        files |= {name: near[name] for name in sorted(spoken)}
    return Found(files, tuple(problems))


def _letters(text: str) -> str:
    """What two texts have in common if they have their tokens in common: a quick look before the tokenizer's."""
    return "".join(unicodedata.normalize("NFC", text).lower().replace("\\", "").split())


def load_embeddings(files: Mapping[str, Path], family: Family, note: Say) -> list[Embedding]:
    """Those of `Found.files`, by their words. A bare name whose file is of no use stays ordinary words, and `note` is
    told.

    Raises DanqingError for a file of no use that `embedding:name` calls.
    """
    loaded = []
    for word, path in files.items():
        try:
            loaded.append(read(path, family, word))
        except DanqingError as error:
            if word.startswith(CALL):
                raise
            note(f"{error}; '{word}' stays ordinary words")
    return loaded


def speaking(request: Painting, studio: Studio) -> tuple[Studio, tuple[Embedding, ...]]:
    """(the studio whose models know the embeddings that the request's prompts name, those embeddings).

    A further model whose text encoders they do not fit paints without them, and it is said; so is a name by
    `embedding:` that is no file's. Raises DanqingError for a file of no use that is called so.
    """
    model = studio.model
    if not model.family.text_encoders:
        return studio, ()
    first = model.family.text_encoders[0]

    def tokenizer() -> Tokenizer:
        key = "tokenizer", first.name  # where `conditionings` looks for it
        if key not in studio.cache:
            studio.cache[key] = tokenizer_of(model, first)
        found: Tokenizer = studio.cache[key]
        return found

    found = find_embeddings(prompts(request), tokenizer, request.dialect, request.emphasis, model.embeddings)
    for problem in found.problems:
        studio.note(problem)
    loaded = load_embeddings(found.files, model.family, studio.note)
    for embedding in loaded:
        studio.note(f"{embedding.name}: an embedding of {embedding.count} vector{'s' * (embedding.count > 1)}")
    if not loaded:
        return studio, ()
    others = {name: _fitting(other, loaded, name, studio.note) for name, other in studio.others.items()}
    return replace(studio, model=with_embeddings(model, loaded), others=others), tuple(loaded)


def _fitting(model: Model, embeddings: Iterable[Embedding], name: str, note: Say) -> Model:
    fitting = []
    for embedding in embeddings:
        try:
            fitting.append(read(embedding.path, model.family, embedding.name))
        except DanqingError:
            note(f"{name}: {model.family.title} paints without '{embedding.name}', which does not fit it")
    return with_embeddings(model, fitting)
