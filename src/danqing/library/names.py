"""From what a person writes to the file that is meant: paths, names, titles, hashes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from danqing.checkpoints.hashes import legacy_hash
from danqing.errors import DanqingError
from danqing.library.content import look
from danqing.library.folders import BUNDLED, SUFFIXES, Entry, Kind, entry_at, hub_cache, hub_snapshot, scan
from danqing.library.hash_cache import HashCache
from danqing.library.settings import Settings
from danqing.paths import path_of
from danqing.vocabulary import nearest

_TAG = re.compile(r"\s*\[([0-9a-fA-F]{6,64})\]$")
_HASH = re.compile(r"[0-9a-fA-F]{6,64}")


def known(settings: Settings) -> tuple[Entry, ...]:
    """The bundled model, and every one in Danqing's own folder, the settings' folders and the Hub's cache, unopened."""
    own = settings.models_dir
    roots = [root for root in (own, hub_cache(settings)) if root.is_dir()]
    entries = scan([*roots, *settings.folders])
    named = (replace(entry, source="Danqing") if own in entry.path.parents else entry for entry in entries)
    return BUNDLED, *named


def find(text: str, kind: Kind | None, settings: Settings) -> Entry:
    """The model that `text` means: a path, or a name, title or hash of one that is known; `kind` None takes any.

    Tried in this order, each first as written and then in any case: a path; the full name; the name without its
    suffix; the same without folders; AUTOMATIC1111's form of a name, with `_` for `/`. `name [hash]` asks for both.
    `owner/name` and `owner/name@revision` are the Hub cache's. Six to 64 hex digits are the beginning of a SHA-256
    already computed, or AUTOMATIC1111's old 8 digits. Only what lies in a folder that does not tell its kind is opened.

    Raises DanqingError: a path where nothing is, an unknown name (with the nearest), one that means several files,
    or something of another kind.
    """
    text = text.strip()
    if not text:
        raise DanqingError(f"the name of the {_title(kind)} is empty")
    if (entry := _by_path(text)) or (entry := _by_revision(text, settings)):
        return entry
    entries = [entry for entry in known(settings) if kind is None or entry.kind in (kind, "unknown")]
    tag = _TAG.search(text)
    name = text[: tag.start()] if tag else text
    matches = _by_name(name, entries)
    if tag:
        matches = _with_hash(tag[1], matches, entries, settings)
    elif not matches and _HASH.fullmatch(text):
        matches = _by_hash(text, entries, settings)
    matches = _of_kind(matches, kind)
    if len(matches) > 1:
        paths = ", ".join(str(entry.path) for entry in matches[:5])
        raise DanqingError(f"{_title(kind)} '{text}' means {len(matches)} files, name one by its path: {paths}")
    if not matches:
        raise DanqingError(_unknown(text, kind, entries))
    return matches[0]


def _title(kind: Kind | None) -> str:
    return (kind or "model").replace("_", " ")


def _by_path(text: str) -> Entry | None:
    path = path_of(text)
    if os.path.exists(path):  # which says no to a name that is too long
        entry = entry_at(path.absolute())
        if entry:
            return entry
        if path.is_absolute() or text.startswith((".", "~")):
            raise DanqingError(f"{text}: a folder, but not one model in diffusers' layout; name a file in it")
    elif path.is_absolute() or text.startswith(("./", "../", "~", ".\\", "..\\")):
        raise DanqingError(f"{text}: no such file or folder")
    return None


def _by_revision(text: str, settings: Settings) -> Entry | None:
    """`owner/name@revision` in the Hub's cache."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", text)
    if match is None:
        return None
    snapshot = hub_snapshot(hub_cache(settings), match[1], match[2])
    entry = entry_at(snapshot) if snapshot else None
    if entry is None:
        raise DanqingError(f"{text}: not in the Hub's cache; `danqing models add hf:{text}` downloads it")
    return replace(entry, name=text, source="Hub")


def _forms() -> tuple[Callable[[str], str], ...]:
    def bare(name: str) -> str:
        return next((name[: -len(end)] for end in (*SUFFIXES, ".onnx") if name.lower().endswith(end)), name)

    return (
        lambda name: name,
        bare,
        lambda name: name.rpartition("/")[2],
        lambda name: bare(name.rpartition("/")[2]),
        lambda name: bare(name).replace("/", "_"),
    )


def _by_name(text: str, entries: Sequence[Entry]) -> list[Entry]:
    text = text.replace("\\", "/")
    for fold in (str, str.casefold):
        for form in _forms():
            matches = [entry for entry in entries if fold(form(entry.name)) == fold(text)]
            if matches:
                return matches
    return []


def _with_hash(tag: str, named: list[Entry], entries: Sequence[Entry], settings: Settings) -> list[Entry]:
    """Of the entries so named those whose hash agrees or is not known yet; else, whatever has that hash."""
    cache = HashCache(settings.data_dir)
    tag = tag.lower()
    if len(tag) == 8:
        agree = [entry for entry in named if _legacy(entry) == tag]
        return agree or _by_hash(tag, entries, settings) or named
    hashes = {entry: cache.known(entry.path) for entry in named}
    agree = [entry for entry, digest in hashes.items() if digest and digest.startswith(tag)]
    others = agree or _by_hash(tag, entries, settings)
    if others:
        return others
    if named and all(hashes.values()):
        digest = next(filter(None, hashes.values()))
        raise DanqingError(
            f"{named[0].path}: its hash is {digest[:10]}, not {tag}; name the file by its path to use it"
        )
    return [entry for entry in named if not hashes[entry]]


def _by_hash(prefix: str, entries: Sequence[Entry], settings: Settings) -> list[Entry]:
    paths = set(HashCache(settings.data_dir).paths(prefix))
    matches = [entry for entry in entries if entry.path in paths]
    if matches or len(prefix) != 8:
        return matches[:1]  # one hash is one content: any copy serves
    return [entry for entry in entries if entry.kind == "checkpoint" and _legacy(entry) == prefix.lower()][:1]


def _legacy(entry: Entry) -> str | None:
    try:
        return legacy_hash(entry.path) if entry.path.is_file() else None
    except DanqingError:
        return None


def _of_kind(matches: list[Entry], kind: Kind | None) -> list[Entry]:
    """The matches that are of that kind: by their folders, or else by their content. Links to one file are one.

    Raises DanqingError where the only match holds something else.
    """
    fit = [entry for entry in matches if entry.kind == kind]
    if not fit:
        looked = [_told(entry) for entry in matches]
        fit = [entry for entry, _ in looked if kind is None or entry.kind in (kind, "unknown")]
        if looked and not fit:
            entry, title = looked[0]
            raise DanqingError(f"{entry.path}: is {title}, not a {_title(kind)}")
    return list({entry.path.resolve(): entry for entry in reversed(fit)}.values())[::-1]


def _told(entry: Entry) -> tuple[Entry, str]:
    """An unsorted entry with the kind that its header tells, and that in words; one that tells none as it is."""
    if entry.kind == "unknown":
        try:
            content = look(entry.path)
            return replace(entry, kind=content.kind), content.title
        except DanqingError:
            pass  # whoever loads it says what is wrong
    return entry, _title(entry.kind)


def _unknown(text: str, kind: Kind | None, entries: Sequence[Entry]) -> str:
    if Path(text).suffix.lower() in SUFFIXES or "/" in text:
        near = nearest(text, {entry.name for entry in entries})
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{text}: no such file, and no {_title(kind)} of that name is known{hint}"
    if set(entries) <= {BUNDLED}:
        add = "`danqing models add PATH|URL|hf:OWNER/NAME|civitai:ID` adds one"
        return f"{_title(kind)} '{text}' is unknown, and none of yours is known yet: {add}"
    names = {entry.name for entry in entries}
    stems = {name.rpartition("/")[2]: name for name in names}
    like = nearest(text, names) or [stems[stem] for stem in nearest(text, stems)]
    if like:
        return f"{_title(kind)} '{text}' is unknown; did you mean {' or '.join(like)}?"
    return f"{_title(kind)} '{text}' is unknown; `danqing models list` shows the {len(names)} that are"
