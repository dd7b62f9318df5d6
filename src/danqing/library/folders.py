"""What is in the model folders people have: AUTOMATIC1111's, Forge's, ComfyUI's, the Hub's cache, plain ones.

Read in place, by names alone: no file is opened but ComfyUI's extra_model_paths.yaml, so ten thousand models
take a moment. The layouts are those of modules/paths.py and modules/sd_vae.py (AUTOMATIC1111), folder_paths.py
(ComfyUI) and the Hub's cache (huggingface_hub's guide "Understand caching").
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from danqing.errors import DanqingError
from danqing.library.settings import Settings

log = logging.getLogger(__name__)

Kind = Literal[
    "checkpoint",
    "denoiser",
    "vae",
    "text_encoder",
    "lora",
    "embedding",
    "hypernetwork",
    "aesthetic_embedding",
    "controlnet",
    "ip_adapter",
    "clip_vision",
    "upscaler",
    "face_restorer",
    "face_detector",
    "preprocessor",
    "other",
    "unknown",
]
"""What an entry is for. `unknown` lies in no folder that says; only its content can tell."""

Source = Literal["AUTOMATIC1111", "Forge", "ComfyUI", "Hub", "Danqing", "folder"]
"""Whose layout the entry was found in."""

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_OF_KIND: dict[Kind, tuple[str, ...]] = {"face_detector": (*SUFFIXES, ".onnx"), "preprocessor": (*SUFFIXES, ".onnx")}
"""What else is a model in the folders of a kind."""

# Folder names in lower case, as AUTOMATIC1111, Forge, their extensions, and ComfyUI have them.
_KIND_OF_FOLDER: dict[str, Kind] = {
    "stable-diffusion": "checkpoint",
    "checkpoints": "checkpoint",
    "diffusers": "checkpoint",
    "unet": "denoiser",
    "diffusion_models": "denoiser",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "text_encoders": "text_encoder",
    "clip": "text_encoder",
    "lora": "lora",
    "loras": "lora",
    "lycoris": "lora",
    "embeddings": "embedding",
    "hypernetworks": "hypernetwork",
    "aesthetic_embeddings": "aesthetic_embedding",
    "controlnet": "controlnet",
    "t2i_adapter": "controlnet",
    "ipadapter": "ip_adapter",
    "ip-adapter": "ip_adapter",
    "clip_vision": "clip_vision",
    "esrgan": "upscaler",
    "realesrgan": "upscaler",
    "bsrgan": "upscaler",
    "dat": "upscaler",
    "hat": "upscaler",
    "swinir": "upscaler",
    "scunet": "upscaler",
    "ldsr": "upscaler",
    "upscale_models": "upscaler",
    "vae-approx": "other",
    "vae_approx": "other",
    "vae-taesd": "other",
    "controlnetpreprocessor": "preprocessor",
    "preprocessors": "preprocessor",
    "gfpgan": "face_restorer",
    "codeformer": "face_restorer",
    "facerestore_models": "face_restorer",
    "facedetection": "face_detector",
    "face_detectors": "face_detector",
    "deepbooru": "other",
    "blip": "other",
    "karlo": "other",
    "torch_deepdanbooru": "other",
    "style_models": "other",
    "gligen": "other",
    "photomaker": "ip_adapter",
    "instantid": "ip_adapter",
    "classifiers": "other",
    "model_patches": "other",
    "audio_encoders": "other",
}

_OF_EXTENSIONS: tuple[tuple[str, Kind], ...] = (
    ("extensions/sd-webui-controlnet/models", "controlnet"),
    ("extensions/sd-webui-controlnet/annotator/downloads", "preprocessor"),
    ("extensions/stable-diffusion-webui-aesthetic-gradients/aesthetic_embeddings", "aesthetic_embedding"),
    ("custom_nodes/comfyui_controlnet_aux/ckpts", "preprocessor"),
)
"""Where extensions of AUTOMATIC1111 and ComfyUI keep theirs."""

OWN_FOLDER: dict[Kind, str] = {
    "checkpoint": "checkpoints",
    "denoiser": "diffusion_models",
    "vae": "vae",
    "text_encoder": "text_encoders",
    "lora": "loras",
    "embedding": "embeddings",
    "hypernetwork": "hypernetworks",
    "aesthetic_embedding": "aesthetic_embeddings",
    "controlnet": "controlnet",
    "ip_adapter": "ipadapter",
    "clip_vision": "clip_vision",
    "upscaler": "upscale_models",
    "face_restorer": "facerestore_models",
    "face_detector": "face_detectors",
    "preprocessor": "preprocessors",
    "other": "other",
    "unknown": "other",
}
"""Where a download of each kind goes in Danqing's own model folder."""


@dataclass(frozen=True)
class Entry:
    """A model that can be asked for by name."""

    kind: Kind
    name: str
    """Path below its kind's folder, `/` between parts, suffix and all; the Hub's are `owner/name[/file]`."""
    path: Path
    """A file, or a folder in diffusers' layout."""
    source: Source


BUNDLED = Entry("checkpoint", "danqing", Path(__file__).parents[1] / "assets" / "bundled", "Danqing")
"""The model that ships in the package, trained by recipes/bundled.toml."""


def scan(roots: Iterable[Path]) -> tuple[Entry, ...]:
    """Every model below `roots`, sorted by name; roots may also be single files and extra_model_paths.yaml files.

    A root's layout is told by the folders in it. A root that is not there (a disk not mounted) is logged and passed
    over. Raises DanqingError where an extra_model_paths.yaml cannot be understood.
    """
    found: dict[Path, Entry] = {}
    for root in roots:
        if not root.exists():
            log.warning("model folder %s is not there; its models are left out", root)
            continue
        for entry in _scan_root(root):
            found.setdefault(entry.path, entry)
    return tuple(sorted(found.values(), key=lambda entry: (entry.name.casefold(), str(entry.path))))


def entry_at(path: Path) -> Entry | None:
    """The model at `path` itself: a model file, or a folder in diffusers' layout; None for anything else."""
    if path.is_file():
        return Entry(_by_name(path.name) or _folder_kind(path.parent.parts), path.name, path, "folder")
    kind = _folder_model(_listing(path)) if path.is_dir() else None
    if kind is None:
        return None
    return Entry(_folder_kind(path.parts) if kind == "unknown" else kind, path.name, path, "folder")


def hub_cache(settings: Settings) -> Path:
    """The Hugging Face cache: the setting, else $HF_HUB_CACHE, $HF_HOME/hub, or the Hub's default."""
    if settings.hub_cache:
        return settings.hub_cache
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_snapshot(cache: Path, repository: str, revision: str | None = None) -> Path | None:
    """The folder of a repository (`owner/name`) in the Hub's cache: of `main`, or the newest where that is not there.

    `revision` is a branch, a tag or the beginning of a commit.
    """
    home = cache / ("models--" + repository.replace("/", "--"))
    snapshots = home / "snapshots"
    reference = home / "refs" / (revision or "main")
    if reference.is_file():
        snapshot = snapshots / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    try:
        commits = [item for item in snapshots.iterdir() if item.is_dir() and item.name.startswith(revision or "")]
    except OSError:
        return None
    return max(commits, key=lambda commit: commit.stat().st_mtime, default=None)


def _scan_root(root: Path) -> Iterator[Entry]:
    if root.is_file():
        if root.suffix in (".yaml", ".yml"):
            yield from _scan_extra_paths(root)
        elif entry := entry_at(root):
            yield entry
        return
    for cache in (root, root / "hub"):
        if _is_hub_cache(cache):
            yield from _scan_hub(cache)
            return
    models = root / "models"
    if not _known_folders(models):
        # A models folder alone, one kind's folder, Danqing's own, or a heap.
        source = _source(root.parent, root)
        yield from _walk(root, source, _folder_kind(root.parts[-1:]))
        return
    # A whole installation: only its model folders, never its virtual environment.
    source = _source(root, models)
    yield from _walk(models, source, "unknown")
    if (root / "embeddings").is_dir():
        yield from _walk(root / "embeddings", source, "embedding")
    for folder, kind in _OF_EXTENSIONS:
        if (root / folder).is_dir():
            yield from _walk(root / folder, source, kind)
    if (root / "extra_model_paths.yaml").is_file():
        yield from _scan_extra_paths(root / "extra_model_paths.yaml")


def _known_folders(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as items:
            return {item.name.lower() for item in items if item.name.lower() in _KIND_OF_FOLDER and item.is_dir()}
    except OSError:
        return set()


def _source(root: Path, models: Path) -> Source:
    known = _known_folders(models)
    if (root / "modules_forge").is_dir():
        return "Forge"
    if "stable-diffusion" in known:
        return "AUTOMATIC1111"
    if (root / "comfy").is_dir() or (root / "folder_paths.py").is_file() or {"checkpoints", "clip_vision"} <= known:
        return "ComfyUI"
    return "folder"


def _folder_kind(parts: Iterable[str]) -> Kind:
    """The kind of the last folder whose name tells one."""
    return next((kind for part in reversed([*parts]) if (kind := _KIND_OF_FOLDER.get(part.lower()))), "unknown")


def _by_name(name: str) -> Kind | None:
    """AUTOMATIC1111 reads `model.vae.pt` beside `model.ckpt` as its autoencoder."""
    return "vae" if name.lower().rpartition(".")[0].endswith(".vae") else None


def _listing(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return {item.name: item for item in items if not item.name.startswith(".")}
    except OSError as error:
        log.warning("model folder %s cannot be read: %s", folder, error.strerror)
        return {}


def _folder_model(names: Iterable[str]) -> Kind | None:
    """What a folder with these names in it is, where it is one model: a pipeline, an adapter, a single network."""
    names = set(names)
    if "model_index.json" in names:
        return "upscaler" if "vqvae" in names else "checkpoint"
    if "adapter_config.json" in names:
        return "lora"
    if "config.json" not in names:
        return None
    if any(re.fullmatch(r"diffusion_pytorch_model.*\.(safetensors|bin)", name) for name in names):
        return "unknown"
    # transformers' layout: the language models that fill a Hub cache, mostly.
    return "other" if any(re.fullmatch(r"(pytorch_)?model[.-].*(safetensors|bin)", name) for name in names) else None


def _walk(base: Path, source: Source, kind: Kind) -> Iterator[Entry]:
    """Models below `base`. `kind` is that of the base; where it is unknown, the topmost telling folder gives it."""
    seen: set[tuple[int, int]] = set()  # links may lead in circles
    pending: list[tuple[Path, str, Kind]] = [(base, "", kind)]
    while pending:
        folder, prefix, kind = pending.pop()
        try:
            status = os.stat(folder)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        items = _listing(folder)
        whole = _folder_model(items)
        if whole is not None and folder != base:
            yield Entry(whole if kind == "unknown" else kind, prefix.rstrip("/"), folder, source)
        for name, item in items.items():
            if item.is_dir():
                # A folder that is one model: its parts are not models of their own.
                if whole is None or folder == base:
                    told = _KIND_OF_FOLDER.get(name.lower())
                    below = "" if kind == "unknown" and told else f"{prefix}{name}/"
                    pending.append((folder / name, below, told or kind if kind == "unknown" else kind))
            elif name.lower().endswith(_OF_KIND.get(kind, SUFFIXES)) and whole in (None, "checkpoint"):
                yield Entry(_by_name(name) or kind, prefix + name, folder / name, source)


def _is_hub_cache(root: Path) -> bool:
    try:
        with os.scandir(root) as items:
            return any(item.name.startswith("models--") and item.is_dir() for item in items)
    except OSError:
        return False


def _scan_hub(cache: Path) -> Iterator[Entry]:
    for home in cache.iterdir():
        if not home.name.startswith("models--"):
            continue
        repository = home.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = hub_snapshot(cache, repository)
        if snapshot is None:
            continue
        whole = _folder_model(_listing(snapshot))
        if whole is not None:
            yield Entry(whole, repository, snapshot, "Hub")
            for name in _listing(snapshot) if whole == "checkpoint" else ():
                if name.lower().endswith(SUFFIXES):
                    yield Entry("checkpoint", f"{repository}/{name}", snapshot / name, "Hub")
            continue
        for entry in _walk(snapshot, "Hub", "unknown"):
            below = entry.path.relative_to(snapshot).as_posix()
            yield Entry(entry.kind, f"{repository}/{below}", entry.path, "Hub")


def _scan_extra_paths(file: Path) -> Iterator[Entry]:
    for kind, folder in extra_paths(file):
        if folder.is_dir():
            yield from _walk(folder, "ComfyUI", kind)
        else:
            log.warning("%s names %s, which is not there; its models are left out", file, folder)


def extra_paths(file: Path) -> list[tuple[Kind, Path]]:
    """The folders that ComfyUI's extra_model_paths.yaml names: (kind, folder), in order.

    The part of YAML that the file uses: sections, `key: value`, `key: |` with one path a line, comments, quotes.
    `base_path` is the section's base, relative to the file. Raises DanqingError with the line that is anything else.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DanqingError(f"{file}: cannot be read: {error}") from None
    found: list[tuple[Kind, Path]] = []
    section: dict[str, list[str]] = {}
    block: tuple[str, int] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip(" "))
        if block and indent > block[1]:
            section[block[0]].append(_scalar(line))
            continue
        block = None
        match = re.fullmatch(r"\s*([\w.-]+)\s*:(?:\s+(.*))?", line)
        if match is None or "\t" in line[: indent + 1]:
            raise DanqingError(f"{file}: line {number}: not `key: value`: {line.strip()!r}")
        key, value = match[1], _scalar(match[2] or "")
        if indent == 0:
            if value:
                raise DanqingError(f"{file}: line {number}: a section's name stands alone, but {value!r} follows")
            found += _section_paths(file, section)
            section = {}
        elif value in ("|", "|-", "|+", ">", ">-", ">+", ""):
            section[key], block = [], (key, indent)
        else:
            section[key] = [value]
    return found + _section_paths(file, section)


def _scalar(text: str) -> str:
    text = text.strip()
    if text[:1] in ("'", '"'):
        closing = text.find(text[0], 1)
        if closing > 0:
            return text[1:closing]
    return re.split(r"\s#", f" {text}", maxsplit=1)[0].strip()


def _section_paths(file: Path, section: dict[str, list[str]]) -> list[tuple[Kind, Path]]:
    def expand(text: str) -> str:
        return os.path.expandvars(os.path.expanduser(text))

    base = file.absolute().parent / expand("".join(section.get("base_path", [])))
    return [
        # An unknown key is a custom node's folder.
        (_KIND_OF_FOLDER.get(key.lower(), "other"), base / expand(value))
        for key, values in section.items()
        if key not in ("base_path", "is_default", "custom_nodes", "configs")
        for value in values
    ]
