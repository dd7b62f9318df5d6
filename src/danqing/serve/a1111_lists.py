"""What there is to choose from, in the forms of AUTOMATIC1111's GET routes (its modules/api/models.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from danqing.adapters.embedding import tensors
from danqing.checkpoints.files import TensorFile, open_component, open_file
from danqing.errors import DanqingError
from danqing.families import Family
from danqing.library.folders import Entry
from danqing.library.hash_cache import HashCache
from danqing.library.settings import Settings
from danqing.pipeline.expand import style_places
from danqing.pipeline.hires import LATENT_MODES
from danqing.pipeline.upscale import RESAMPLERS
from danqing.prompts.styles import all_styles
from danqing.requests import ImageToImage, TextToImage
from danqing.serve.a1111_library import UPSCALER_LABELS, entries, stem
from danqing.serve.a1111_scripts import script_info, script_names
from danqing.vocabulary import SAMPLERS, SCHEDULERS, Sampler

Row = dict[str, Any]

_NAMES: Mapping[str, str] = {
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Linear Quadratic": "linear_quadratic",
}
"""AUTOMATIC1111's names of schedulers, where they are not the label in small letters."""
_OTHER_NAMES = {"sgm_uniform": ["SGMUniform"]}
_RHO = {"karras": 7.0, "polyexponential": 1.0}
_INNER = ("uniform", "sgm_uniform", "simple", "normal", "ddim", "beta")
"""Schedulers that AUTOMATIC1111 hands the model's own noise levels."""


def samplers() -> list[Row]:
    """Labels, aliases, and as text what AUTOMATIC1111 attaches to each."""
    return [{"name": row.name, "aliases": list(row.aliases), "options": _sampler_options(row)} for row in SAMPLERS]


def _sampler_options(row: Sampler) -> dict[str, str]:
    options: dict[str, str] = {}
    if row.scheduler != "Uniform":
        options["scheduler"] = scheduler_name(row.scheduler)
    flags = {
        "second_order": row.second_order,
        "discard_next_to_last_sigma": row.discard_penultimate,
        "brownian_noise": row.brownian,
        "uses_ensd": row.ensd,
    }
    return options | {name: "True" for name, flag in flags.items() if flag}


def scheduler_name(label: str) -> str:
    """`Karras` -> `karras`."""
    return _NAMES.get(label, label.lower())


def schedulers() -> list[Row]:
    """Names, labels and aliases of the noise schedules."""
    names = {row.name: scheduler_name(row.name) for row in SCHEDULERS}
    return [
        {
            "name": name,
            "label": label,
            "aliases": _OTHER_NAMES.get(name),
            "default_rho": _RHO.get(name, -1.0),
            "need_inner_model": name in _INNER,
        }
        for label, name in names.items()
    ]


def _upscaler_label(file: str) -> str:
    return next((label for label, name in UPSCALER_LABELS.items() if name.casefold() == file.casefold()), file)


def upscalers(settings: Settings) -> list[Row]:
    """The resamplers, AUTOMATIC1111's None first, and the upscaler networks."""
    plain: list[Row] = [{"name": name, "model_name": None, "model_path": None, "scale": 4.0} for name in RESAMPLERS]
    networks: list[Row] = [
        {
            "name": _upscaler_label(stem(entry)),
            "model_name": entry.name,
            "model_path": str(entry.path),
            "scale": _scale(stem(entry)),
        }
        for entry in entries(settings, "upscaler")
    ]
    return [{**row, "model_url": None} for row in (*plain, *networks)]


def _scale(name: str) -> float:
    """What an upscaler's name says, `4x-...` or `..._x2plus`; 4 where it says nothing, as in AUTOMATIC1111."""
    match = re.search(r"(?<![a-z0-9])(\d)x|x(\d)(?!\d)", name.lower())
    return float(match[1] or match[2]) if match else 4.0


def latent_upscale_modes() -> list[Row]:
    """Ways to enlarge latents."""
    return [{"name": name} for name in LATENT_MODES]


def sd_models(settings: Settings) -> list[Row]:
    """The checkpoints. A hash is told where it is known already: none is computed for a list."""
    cache = HashCache(settings.data_dir)
    return [sd_model(entry, cache) for entry in entries(settings, "checkpoint")]


def sd_model(entry: Entry, cache: HashCache) -> Row:
    """One of them; its title is `file [first 10 digits of its SHA-256]`."""
    digest = cache.known(entry.path) if entry.path.is_file() else None
    title = entry.name if digest is None else f"{entry.name} [{digest[:10]}]"
    config = entry.path.with_suffix(".yaml")
    return {
        "title": title,
        "model_name": stem(entry),
        "hash": digest[:10] if digest else None,
        "sha256": digest,
        "filename": str(entry.path),
        "config": str(config) if entry.path.is_file() and config.is_file() else None,
    }


def sd_vae(settings: Settings) -> list[Row]:
    """Autoencoders."""
    return [
        {"model_name": entry.name.rpartition("/")[2], "filename": str(entry.path)} for entry in entries(settings, "vae")
    ]


def hypernetworks(settings: Settings) -> list[Row]:
    """Hypernetworks."""
    return [{"name": stem(entry), "path": str(entry.path)} for entry in entries(settings, "hypernetwork")]


def loras(settings: Settings) -> list[Row]:
    """LoRAs with what their trainers wrote into them."""
    rows = []
    for entry in entries(settings, "lora"):
        file = _opened(entry.path)
        metadata = dict(file.metadata) if file else {}
        alias = metadata.get("ss_output_name") or stem(entry)
        rows.append({"name": stem(entry), "alias": alias, "path": str(entry.path), "metadata": metadata})
    return rows


def embeddings(settings: Settings, family: Family | None) -> Row:
    """Embeddings: `loaded` are those of `family`'s width, `skipped` the others; all are loaded where there is none."""
    sides: dict[str, Row] = {"loaded": {}, "skipped": {}}
    widths = {encoder.config.width for encoder in family.text_encoders} if family else None
    for entry in entries(settings, "embedding"):
        file = _opened(entry.path)
        if file is None:
            continue
        try:
            shapes = [vectors.shape for vectors in tensors(file).values()]
        except DanqingError:  # no embedding: whoever names it in a prompt is told
            continue
        count, width = (1, shapes[0][0]) if len(shapes[0]) == 1 else (shapes[0][0], shapes[0][-1])
        fits = widths is None or {shape[-1] for shape in shapes} <= widths
        step = str(file.metadata.get("step", ""))
        sides["loaded" if fits else "skipped"][stem(entry)] = {
            "step": int(step) if step.isdecimal() else None,
            "sd_checkpoint": file.metadata.get("sd_checkpoint"),
            "sd_checkpoint_name": file.metadata.get("sd_checkpoint_name"),
            "shape": int(width),
            "vectors": int(count),
        }
    return sides


def _opened(path: Path) -> TensorFile | None:
    try:
        return open_component(path) if path.is_dir() else open_file(path)
    except DanqingError:
        return None


def face_restorers(settings: Settings) -> list[Row]:
    """Face restorers."""
    return [{"name": stem(entry), "cmd_dir": str(entry.path.parent)} for entry in entries(settings, "face_restorer")]


def realesrgan_models(settings: Settings) -> list[Row]:
    """Those of the upscalers that are Real-ESRGAN's, by their names or folders."""
    return [
        {"name": stem(entry), "path": str(entry.path), "scale": int(_scale(stem(entry)))}
        for entry in entries(settings, "upscaler")
        if "realesrgan" in f"{entry.path.parent.name} {entry.name}".lower().replace("-", "").replace("_", "")
    ]


def prompt_styles(settings: Settings) -> list[Row]:
    """Styles."""
    styles = all_styles(style_places(settings))
    return [{"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative_prompt} for style in styles]


def memory() -> Row:
    """The process's memory and the machine's, in bytes, as far as the system tells; the GPU's where there is one."""
    page = _sysconf("SC_PAGE_SIZE")
    ram = {
        "free": _sysconf("SC_AVPHYS_PAGES") * page,
        "used": dict(_status()).get("VmRSS", 0),
        "total": _sysconf("SC_PHYS_PAGES") * page,
    }
    return {"ram": ram, "cuda": _cuda()}


def _sysconf(name: str) -> int:
    return max(os.sysconf(name), 0) if name in getattr(os, "sysconf_names", ()) else 0  # Windows has none


def _status() -> Iterator[tuple[str, int]]:
    """Linux's account of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        match = re.fullmatch(r"(\w+):\s+(\d+) kB", line)
        if match:
            yield match[1], int(match[2]) * 1024


def _cuda() -> Row:
    import torch

    if not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    blocks = {
        "active": "active_bytes",
        "allocated": "allocated_bytes",
        "reserved": "reserved_bytes",
        "inactive": "inactive_split_bytes",
    }
    return {
        "system": {"free": free, "used": total - free, "total": total},
        **{
            name: {part: stats.get(f"{key}.all.{part}", 0) for part in ("current", "peak")}
            for name, key in blocks.items()
        },
        "events": {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)},
    }


TABLES: Mapping[str, Callable[[Settings], Any]] = {
    "samplers": lambda library: samplers(),
    "schedulers": lambda library: schedulers(),
    "upscalers": upscalers,
    "latent-upscale-modes": lambda library: latent_upscale_modes(),
    "sd-models": sd_models,
    "sd-vae": sd_vae,
    "hypernetworks": hypernetworks,
    "face-restorers": face_restorers,
    "realesrgan-models": realesrgan_models,
    "prompt-styles": prompt_styles,
    "artist-categories": lambda library: [],
    "embeddings": lambda library: embeddings(library, None),
    "loras": loras,
    "memory": lambda library: memory(),
    "scripts": lambda library: {"txt2img": script_names(TextToImage), "img2img": script_names(ImageToImage)},
    "script-info": lambda library: script_info(),
    "extensions": lambda library: [],
}
"""What each GET route answers."""


def table(name: str, library: Settings) -> Any:
    """The answer of that route."""
    return TABLES[name](library)
