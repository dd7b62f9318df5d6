"""A model by name or path: found, recognised, loaded onto a device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from danqing.checkpoints.load import load as load_checkpoint
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.folders import BUNDLED
from danqing.library.hash_cache import HashCache
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.engines import with_engine
from danqing.runtime.amounts import parse_memory
from danqing.runtime.devices import pick_device, pick_dtype, widened

Say = Callable[[str], None]


def print_note(line: str) -> None:
    """What `say` is unless a caller has a place of its own for notes."""
    print(f"note: {line}", file=sys.stderr)


def load(
    name: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prediction: str | None = None,
    ema: bool = False,
    memory: int | str | None = None,
    engine: str | None = None,
    quantize: str | None = None,
    settings: Settings | None = None,
    say: Say = print_note,
) -> Model:
    """The model of that path or name, ready to paint; without a name the settings' default, else the bundled `danqing`.

    Any format: the family is recognised from the file. `device` is auto, cpu, cuda, cuda:1 or mps. `dtype` auto is
    bfloat16 where the machine computes in it, else float32. `vae` replaces the checkpoint's autoencoder; `prediction`
    (`epsilon`, `v`, `sample`) overrides what the file says of itself; `ema` takes its EMA weights. `memory` (bytes, or
    "3GB") is the most that painting should take of the device's memory, on the CPU of the process's own: what does not
    fit of the weights is read from the file in every step, and the pictures are the same.
    `engine` runs the denoiser: eager (torch as it is), compile (torch.compile), openvino (the extra `[openvino]`), or
    auto, which takes OpenVINO where it has been measured to pay (`runtime.openvino.pays`); `quantize` is none,
    int8-weights, int8 (weights and activations) or fp8 (the same, on GPUs that multiply in it): with eager and compile
    by the extra `[torchao]`. `say` is told where the engine cannot serve, and eager runs instead.
    Raises DanqingError where the file is missing, is no checkpoint, paints nothing (an upscaler), or does not fit.
    """
    settings = settings or load_settings()
    target = pick_device(device or settings.device)
    precision = pick_dtype(dtype or settings.dtype, target)
    limit = settings.memory if memory is None else memory
    wanted = name or settings.default_model
    entry = find(str(wanted), "checkpoint", settings) if wanted else BUNDLED
    model = load_checkpoint(
        entry.path,
        device=target,
        dtype=precision,
        prediction=prediction,
        vae=find_vae(str(vae), settings) if vae else None,
        ema=ema,
        memory=parse_memory(limit) if isinstance(limit, str) else limit,
    )
    if model.family.autoencoder_overflows:  # else each picture would be decoded in vain before it is in float32
        model.autoencoder.to(widened(precision, target))
    if not model.family.text_encoders:
        raise DanqingError(f"{model.path}: is {model.family.title}, which only enlarges; give it by --upscaler")
    if entry.path.is_dir():  # which says less than the name: the Hub's are commits
        model = replace(model, name=entry.name.rpartition("/")[2])
    chosen = engine or settings.engine
    # eight bits in the settings are for the engines that have them
    bits = quantize or ("none" if chosen in ("eager", "compile") else settings.quantize)
    return with_engine(model, chosen, bits, say)


def find_vae(name: str, settings: Settings | None = None) -> str:
    """The path of the autoencoder of that name or path. Raises DanqingError where there is none."""
    return str(find(name, "vae", settings or load_settings()).path)


def hashes_later(paths: Mapping[str, str | None]) -> dict[str, Future[str]]:
    """SHA-256 of the files, computed beside the work and remembered; what is no single file is left out."""
    files = {name: Path(path) for name, path in paths.items() if path and Path(path).is_file()}
    if not files:
        return {}
    cache = HashCache(load_settings().data_dir)
    return {name: cache.later(path) for name, path in files.items()}
