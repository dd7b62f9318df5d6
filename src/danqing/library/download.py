"""`danqing models add`: what is on this machine is registered in place; what is not is downloaded, checked, and named.

Nothing here runs unless `add` is called; nothing else in Danqing opens a connection.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError
from danqing.library.content import look
from danqing.library.folders import OWN_FOLDER, SUFFIXES, Entry, Kind, entry_at, hub_cache, scan
from danqing.library.hash_cache import HashCache
from danqing.library.settings import Settings, add_folder, read_token, write_atomically
from danqing.library.transfer import Fetched, Progress, Refused, discard, fetch, fetch_json, origin, safe_name, settle
from danqing.paths import path_of
from danqing.vocabulary import nearest

HUB = "https://huggingface.co"
CIVITAI = "https://civitai.com"

_CIVITAI_KINDS: dict[str, Kind] = {
    "Checkpoint": "checkpoint",
    "LORA": "lora",
    "LoCon": "lora",
    "DoRA": "lora",
    "TextualInversion": "embedding",
    "Hypernetwork": "hypernetwork",
    "Controlnet": "controlnet",
    "VAE": "vae",
    "Upscaler": "upscaler",
}
"""`model.type` of Civitai's REST API."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors|bin)[a-z]\w*))?"
    r"(?:-\d{5}-of-\d{5})?\.(?P<form>safetensors|bin)(?:\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)
"""Names that diffusers and transformers give a component's weights, their variants, shards and shard indexes."""


def add(
    source: str,
    *,
    settings: Settings,
    progress: Progress | None = None,
    sha256: str | None = None,
    token: str | None = None,
    kind: Kind | None = None,
    variant: str | None = "fp16",
    hub: str | None = None,
    civitai: str = CIVITAI,
) -> Entry:
    """Make a model known, and download it first where it is not on this machine.

    `source` is a path (a folder or file, left where it is and added to the settings file), a URL,
    `hf:OWNER/NAME[@REVISION][/FILE]` (into the Hub's cache, where diffusers finds it too) or
    `civitai:ID` (a version's id, else a model's, whose newest version is taken) or `civitai:MODEL@VERSION`.

    `sha256` (64 hex digits) is what a single file must have; `token` goes before the settings' and the environment's;
    `kind` decides the folder of a file whose content does not. `variant` is the one to take of a Hub repository's
    components where they have it; None takes full precision. `hub` (default $HF_ENDPOINT) and `civitai` are the APIs.
    Raises DanqingError, one line: see `transfer.fetch`; also what is no model, and names that mean nothing.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DanqingError(f"sha256: 64 hex digits are needed, but it is {sha256!r}")
    hub = (hub or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    source = _from_page(source.strip(), hub, civitai.rstrip("/"))
    scheme, _, rest = source.partition(":")
    if scheme == "hf":
        return _add_hub(rest, settings, hub, _hub_token(settings, token), sha256, variant, progress)
    if scheme == "civitai":
        api_token = token or read_token(settings.civitai_token, ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN"))
        return _add_civitai(rest, settings, civitai.rstrip("/"), api_token, sha256, kind, progress)
    if scheme in ("http", "https"):
        fetched = fetch(source, _parts(settings), token=token, sha256=sha256, progress=progress)
        return _keep(fetched, settings, kind, source)
    if not path_of(source).exists() and re.match(r"[a-z][a-z0-9+.-]+:", source):
        raise DanqingError(f"{source}: give a path, https://..., hf:OWNER/NAME[@REVISION][/FILE] or civitai:ID")
    return _add_path(path_of(source).absolute(), settings, sha256)


def _from_page(source: str, hub: str, civitai: str) -> str:
    """The address of a page that shows a file -> the file itself; anything else as it is."""
    parts = urllib.parse.urlsplit(source)
    site = f"{parts.scheme}://{parts.netloc}"
    if site in (HUB, hub):
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree)/([^/]+)(/.+)?)?/?", parts.path)
        if match:
            revision = f"@{match[2]}" if match[2] else ""
            return f"hf:{match[1]}{revision}{urllib.parse.unquote(match[3] or '').rstrip('/')}"
    if site in (CIVITAI, civitai) and (match := re.match(r"/models/(\d+)", parts.path)):
        version = urllib.parse.parse_qs(parts.query).get("modelVersionId")
        return f"civitai:{match[1]}" + (f"@{version[0]}" if version else "")
    return source


def _add_path(path: Path, settings: Settings, sha256: str | None) -> Entry:
    if not path.exists():
        raise DanqingError(f"{path}: no such file or folder")
    entry = entry_at(path)
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            entry = Entry("other", path.name, path, "ComfyUI")
            scan([path])  # says what is wrong with it
        else:
            assert entry is not None
            entry = replace(entry, kind=look(path).kind)
            if sha256 and (digest := HashCache(settings.data_dir).later(path).result()) != sha256.lower():
                raise DanqingError(f"{path}: its SHA-256 is {digest}, not {sha256.lower()}")
    elif sha256:
        raise DanqingError(f"{path}: a hash is one file's, but this is a folder")
    elif entry is None:
        found = scan([path])
        if not found:
            raise DanqingError(f"{path}: no model in this folder; models end in {', '.join(SUFFIXES)}")
        entry = Entry("other", path.name, path, found[0].source)
    if settings.models_dir not in path.parents:
        add_folder(settings, path)
    return entry


def _parts(settings: Settings) -> Path:
    """Where downloads grow until it is known what they are: hidden from scans, on the disk of the models."""
    return settings.models_dir / ".parts"


def _keep(fetched: Fetched, settings: Settings, kind: Kind | None, source: str) -> Entry:
    """Look into a complete download, and give it its place in Danqing's own folder."""
    try:
        content = look(fetched.part)
    except DanqingError as error:
        discard(fetched.part)
        raise DanqingError(f"{source}: what came is no model: {error}".replace(f"{fetched.part}: ", "")) from None
    kind = content.kind if content.kind != "unknown" else kind or "unknown"
    name = fetched.name if fetched.name.lower().endswith(SUFFIXES) else fetched.name + content.suffix
    target = settings.models_dir / OWN_FOLDER[kind] / name
    cache = HashCache(settings.data_dir)
    if target.exists() and cache.later(target).result() != fetched.sha256:
        raise DanqingError(
            f"{target}: already there, with other content; rename it, then the same command goes on (nothing is lost)"
        )
    settle(fetched.part, target)
    cache.remember(target, fetched.sha256)
    return Entry(kind, name, target, "Danqing")


def _add_hub(
    text: str,
    settings: Settings,
    endpoint: str,
    token: str | None,
    sha256: str | None,
    variant: str | None,
    progress: Progress | None,
) -> Entry:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([^/@]+))?(?:/(.+))?", text)
    if match is None or ".." in text:
        raise DanqingError(f"hf:{text}: write hf:OWNER/NAME[@REVISION][/FILE]")
    repository, wanted = match[1], match[3]
    revision = urllib.parse.unquote(match[2] or "main")
    quoted = urllib.parse.quote(revision, safe="")
    try:
        answer = fetch_json(f"{endpoint}/api/models/{repository}/revision/{quoted}?blobs=true", token)
        commit = str(answer["sha"])
        files = {str(row["rfilename"]): _hub_file(row) for row in answer["siblings"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DanqingError(f"hf:{text}: the Hub's answer cannot be understood: {error!r}") from None
    except Refused as error:
        raise _explained(error, f"hf:{text}", f"{endpoint}/{repository}") from None
    chosen = [wanted] if wanted else choose_files(files, variant, f"hf:{repository}")
    if wanted and wanted not in files:
        like = nearest(wanted, files)
        raise DanqingError(f"hf:{text}: no such file" + (f"; did you mean {' or '.join(like)}?" if like else ""))
    if sha256 and len(chosen) > 1:
        raise DanqingError(f"hf:{text}: a hash is one file's, but this is {len(chosen)} files; add /FILE")
    home = hub_cache(settings) / ("models--" + repository.replace("/", "--"))
    snapshot = home / "snapshots" / _safe_path(commit)
    for name in chosen:
        promise = replace(files[name], sha256=sha256) if sha256 else files[name]
        url = f"{endpoint}/{repository}/resolve/{commit}/{urllib.parse.quote(name)}"
        try:
            _bring(url, snapshot / _safe_path(name), promise, token, settings, progress)
        except Refused as error:
            raise _explained(error, f"hf:{text}", f"{endpoint}/{repository}") from None
    if not commit.startswith(revision):
        write_atomically(home / "refs" / _safe_path(revision), commit, mode=0o644)
    if len(chosen) > 1:
        entry = entry_at(snapshot)
        if entry is not None:
            return replace(entry, name=repository, source="Hub")
    entry = Entry("unknown", f"{repository}/{chosen[-1]}", snapshot / chosen[-1], "Hub")
    return replace(entry, kind=look(entry.path).kind)


@dataclass(frozen=True)
class _Promise:
    """What the Hub says of a file; the hash of those in large file storage only."""

    size: int | None
    sha256: str | None


def _hub_file(row: Mapping[str, Any]) -> _Promise:
    stored = row.get("lfs") or {}
    return _Promise(stored.get("size", row.get("size")), stored.get("sha256"))


def _bring(
    url: str, target: Path, promise: _Promise, token: str | None, settings: Settings, progress: Progress | None
) -> None:
    """A file of the Hub to its place in the cache, as a plain file, which the Hub's own client takes as cached too."""
    cache = HashCache(settings.data_dir)
    if target.exists() and target.stat().st_size == promise.size:
        if promise.sha256 is None or cache.later(target).result() == promise.sha256:
            return
        raise DanqingError(f"{target}: its SHA-256 is not the Hub's; remove it, and add it again")
    fetched = fetch(
        url,
        target.parent,
        name=target.name,
        token=token,
        size=promise.size,
        sha256=promise.sha256,
        progress=progress,
    )
    if target.suffix in SUFFIXES:
        try:
            look(fetched.part)
        except DanqingError as error:
            discard(fetched.part)
            raise DanqingError(f"{url}: what came is no model: {error}".replace(f"{fetched.part}: ", "")) from None
    settle(fetched.part, target)
    cache.remember(target, fetched.sha256)


def choose_files(names: Iterable[str], variant: str | None, title: str) -> list[str]:
    """Which files of a repository to bring: those of a pipeline or a single network, or its one model.

    Of each component's weights one set: safetensors before pickles, then `variant` before full precision.
    Raises DanqingError with the choices where the repository holds several models and no pipeline.
    """
    names = sorted(names)
    pipeline = "model_index.json" in names
    sets: dict[str, dict[tuple[bool, bool, bool, str], list[str]]] = {}
    beside = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder.count("/") > 0 or (folder and not pipeline):
            continue  # components lie one folder deep, a single network at the top
        match = _WEIGHTS.fullmatch(base)
        if match:
            theirs = match["variant"] or match["index_variant"]
            order = (theirs not in (None, variant), match["form"] == "bin", theirs != variant, theirs or "")
            sets.setdefault(folder, {}).setdefault(order, []).append(name)
        elif base.endswith((".json", ".txt", ".model")) and not base.endswith(".index.json"):
            beside.append(name)
    if sets and (pipeline or "config.json" in names):
        weights = [name for options in sets.values() for name in options[min(options)]]
        # The index comes last: an interrupted download is not taken for a whole pipeline.
        return sorted(beside + weights, key=lambda name: (name == "model_index.json", name in weights, name))
    models = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(models) != 1:
        many = f"add /FILE, one of: {', '.join(models)}" if models else "there is no model in it"
        raise DanqingError(f"{title}: {len(models)} models in this repository; {many}")
    return [name for name in names if name == "adapter_config.json"] + models


def _hub_token(settings: Settings, token: str | None) -> str | None:
    """The token given, the settings', $HF_TOKEN, or the one of `hf auth login`."""
    found = token or read_token(settings.hub_token, ("HF_TOKEN",))
    if found:
        return found
    from huggingface_hub import get_token

    return get_token()


def _explained(error: Refused, source: str, page: str) -> DanqingError:
    reason = str(error).partition(": ")[2]
    if error.status in (401, 403):
        return DanqingError(f"{source}: {reason} (its page: {page})")
    return DanqingError(f"{source}: {reason}; check the name and the revision at {page}")


def _safe_path(name: str) -> str:
    """A path of the Hub's, below its snapshot. Raises DanqingError for one that would lead out of it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or safe_name(part) != part.strip(". ") for part in parts) or "\\" in name:
        raise DanqingError(f"hf: a file named {name!r} is refused")
    return name


def _add_civitai(
    text: str,
    settings: Settings,
    endpoint: str,
    token: str | None,
    sha256: str | None,
    kind: Kind | None,
    progress: Progress | None,
) -> Entry:
    match = re.fullmatch(r"(\d+)(?:@(\d+))?", text)
    if match is None:
        raise DanqingError(f"civitai:{text}: write civitai:ID or civitai:MODEL@VERSION, in digits")
    try:
        version = _civitai_version(endpoint, match[2] or match[1], match[2] is None, token)
        file = _civitai_file(version["files"])
        url, name = str(file["downloadUrl"]), safe_name(str(file["name"]))
        promised = (file.get("hashes") or {}).get("SHA256")
        kind = kind or _CIVITAI_KINDS.get((version.get("model") or {}).get("type", ""))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DanqingError(f"civitai:{text}: Civitai's answer cannot be understood: {error!r}") from None
    except Refused as error:
        raise _explained(error, f"civitai:{text}", f"{endpoint}/models/{match[1]}") from None
    try:
        fetched = fetch(
            url,
            _parts(settings),
            name=name,
            token=token if origin(url) == origin(endpoint) else None,
            sha256=sha256 or promised,
            progress=progress,
        )
    except Refused as error:
        raise _explained(error, f"civitai:{text}", f"{endpoint}/models/{match[1]}") from None
    return _keep(fetched, settings, kind, f"civitai:{text}")


def _civitai_version(endpoint: str, number: str, or_model: bool, token: str | None) -> Any:
    """The version of that id, or the newest version of the model of that id."""
    try:
        return fetch_json(f"{endpoint}/api/v1/model-versions/{number}", token)
    except Refused as error:
        if error.status != 404 or not or_model:
            raise
    model = fetch_json(f"{endpoint}/api/v1/models/{number}", token)
    return {**model["modelVersions"][0], "model": {"type": model.get("type")}}


def _civitai_file(files: Sequence[Any]) -> Any:
    """The model among a version's files: safetensors before others, then the one marked primary."""

    def rank(file: Any) -> tuple[bool, bool, bool]:
        form = (file.get("metadata") or {}).get("format")
        return file.get("type") not in ("Model", "Pruned Model"), form != "SafeTensor", not file.get("primary")

    return min(files, key=rank)
