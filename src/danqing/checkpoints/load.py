"""From a checkpoint to a `Model`: networks on the meta device, weights assigned to them, nothing made twice."""

from __future__ import annotations

import math
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from danqing.checkpoints import hashes, layouts
from danqing.checkpoints.checkpoint import VAE_PREFIX, networks, open_checkpoint, problems
from danqing.checkpoints.files import Entry, TensorFile, open_component, open_file, read_json
from danqing.checkpoints.layouts import Entries
from danqing.checkpoints.recognise import CHECKPOINTS, FAMILY_KEY, family_from_json, kind_of, vae_config
from danqing.checkpoints.sidecars import exact_vae
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Family, Model
from danqing.models.autoencoder import Autoencoder
from danqing.models.clip import CLIPText
from danqing.runtime.blank import without_weights
from danqing.runtime.conversion import Block
from danqing.runtime.memory import left, plans, predicted_peak
from danqing.runtime.packed import keep_packed
from danqing.runtime.start import gc_paused
from danqing.runtime.stream import Streamed, filler, slot_bytes, stream, units

_LATER = 448 << 20
"""Bytes of a budget that are left for what comes between loading and painting: modules, prompts. Without them the decode
would be in tiles, which can be seen."""
_RUNNABLE = (torch.float32, torch.float16, torch.bfloat16)


@gc_paused()
def load(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    vae: Path | str | None = None,
    ema: bool = False,
    family: Family | str | None = None,
    variant: str | None = None,
    memory: int | None = None,
) -> Model:
    """Load a checkpoint: a single file of any format, or a diffusers folder.

    dtype: None is the U-Net's own (float8 becomes bfloat16). On the CPU, weights that are already of that type are
    views of the mapped file: nothing is copied, and memory is taken as they are used. prediction: `epsilon`, `v`,
    `sample`, `flow`, `edm`, against what the file says. vae: a file or folder whose autoencoder takes the place of the
    checkpoint's own. ema: the moving average of the U-Net. family: a row, or its name, instead of recognising one.
    variant: of a diffusers folder. memory: the most bytes of the device's memory (on the CPU, of the process's own) that
    painting should take; None is no limit. What does not fit of the weights is read from the file when its layer's turn
    comes (`runtime.stream`); the pictures are the same.

    Raises DanqingError: no checkpoint, damaged, unsafe, or with missing, surplus and mis-shaped keys (all listed in
    one line).
    """
    checkpoint = open_checkpoint(path, family=family, prediction=prediction, ema=ema, variant=variant)
    row = checkpoint.family
    components = dict(checkpoint.components)
    if vae is not None:
        components["vae"] = open_autoencoder(vae, row)
    nets = networks(row, str(checkpoint.path))
    found = problems(components, nets, checkpoint.surplus)
    if str(found):
        hint = "; give the autoencoder by --vae" if "the whole vae" in found.missing else ""
        raise DanqingError(f"{checkpoint.path}: does not fit {row.title}: {found}{hint}")
    dtype = dtype or _own_dtype(components["unet"])
    rooms = _rooms(row, nets, components, device, dtype, memory)
    for name, net in nets.items():
        assign(net, components[name], device, dtype, rooms.get(name))
    if memory is None:
        keep_packed(nets["unet"])
    return Model(
        family=row,
        denoiser=nets["unet"],
        autoencoder=typing.cast(Autoencoder, nets["vae"]),
        text_encoders={encoder.name: typing.cast(CLIPText, nets[encoder.name]) for encoder in row.text_encoders},
        tokenizers=checkpoint.tokenizers,
        name=checkpoint.path.name if checkpoint.path.is_dir() else checkpoint.path.stem,
        path=str(checkpoint.path),
        vae_path=None if vae is None else str(vae),
        memory=memory,
    )


def _rooms(
    family: Family,
    nets: Mapping[str, nn.Module],
    components: Mapping[str, Entries],
    device: torch.device | str,
    dtype: torch.dtype,
    memory: int | None,
) -> dict[str, int]:
    """Bytes that each network's weights may take within `memory`; those that may take all are not there.

    The autoencoder stays. The text encoders, who speak once, are the first to go.
    """
    if memory is None:
        return {}
    needs = {
        name: sum(_bytes(components[name][key], device, dtype) for key in net.state_dict())
        for name, net in nets.items()
    }
    free = _room(family, memory, device, dtype) - needs.pop("vae")
    if sum(needs.values()) <= free:
        return {}
    return dict.fromkeys(needs, 0) | {"unet": max(free - slot_bytes(nets["unet"], dtype), 0)}


def room(model: Model) -> int | None:
    """Bytes that the weights of more networks may take, for `assign`; None is no limit."""
    return None if model.memory is None else max(_room(model.family, model.memory, model.device, model.dtype), 0)


def _room(family: Family, memory: int, device: torch.device | str, dtype: torch.dtype) -> int:
    """Bytes that `memory` leaves for weights beside what painting at the family's own size takes."""
    working = predicted_peak(
        plans(1, device)[0],
        weights=0,
        denoiser=family.denoiser,
        autoencoder=family.autoencoder,
        width=family.defaults.width,
        height=family.defaults.height,
        itemsize=dtype.itemsize,
        in_bands=torch.device(device).type == "cpu",
    )
    return left(memory, device) - working - _LATER


def _bytes(entry: Entry, device: torch.device | str, dtype: torch.dtype) -> int:
    """Bytes that a weight takes besides its file's pages."""
    mapped = entry.dtype == dtype and torch.device(device).type == "cpu"
    return 0 if mapped else Block.aligned(entry.numel * dtype.itemsize)


def _own_dtype(entries: Mapping[str, Entry]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for entry in entries.values():
        counts[entry.dtype] += entry.numel
    dtype = counts.most_common(1)[0][0]
    if dtype in _RUNNABLE:
        return dtype
    return torch.bfloat16 if dtype.itemsize == 1 else torch.float32


def assign(
    net: nn.Module,
    entries: Mapping[str, Entry],
    device: torch.device | str,
    dtype: torch.dtype,
    room: int | None = None,
) -> None:
    """Give a network on the meta device its weights, one tensor at a time, ready to run and not to train.

    Of those that have to be converted or sent to the device, only as much as `room` bytes stays there; the rest comes
    when it is used. None is no limit.
    """
    on_cpu = torch.device(device).type == "cpu"
    names = list(net.state_dict())
    away = set() if room is None else _away(net, entries, device, dtype, room)
    block = Block(sum(_bytes(entries[name], device, dtype) for name in names if name not in away) if on_cpu else 0)
    state: dict[str, torch.Tensor] = {}
    for name in names:
        entry = entries[name]
        if name in away:
            state[name] = Streamed.of(filler(entry.load, entry.release), torch.Size(entry.shape), dtype, device)
        elif not _bytes(entry, device, dtype):
            state[name] = entry.load()
        else:
            state[name] = block.take(entry.load(), dtype) if on_cpu else entry.load().to(device).to(dtype)
            entry.release()
    net.load_state_dict(state, strict=True, assign=True)
    net.requires_grad_(False).eval()
    if away:
        stream(net, device)


def _away(
    net: nn.Module, entries: Mapping[str, Entry], device: torch.device | str, dtype: torch.dtype, room: int
) -> set[str]:
    """The weights that do not fit into `room`: whole units, of those that take anything."""
    sizes = {name: _bytes(entries[name], device, dtype) for name in net.state_dict()}
    left, away = room, set[str]()
    for unit, module in units(net):
        names = [f"{unit}.{name}" for name in module.state_dict()]
        size = sum(sizes[name] for name in names)
        if size > left:
            away |= {name for name in names if sizes[name]}
        else:
            left -= size
    return away


# --- the autoencoder alone --------------------------------------------------------------------------------------------

_KNOWN_VAES: Mapping[int, Mapping[str, float]] = {
    334641164: {"63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": 0.13025},  # sdxl_vae
    334641162: {"235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": 0.13025},  # sdxl-vae-fp16-fix
    167335342: {"bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68": 0.13025},  # sdxl_vae, half
    334641190: {"735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": 0.18215},  # vae-ft-mse-840000
}
"""Size in bytes -> SHA-256 -> latent scale, of the VAEs in widest use. A file is hashed only if its size is here."""


@dataclass(frozen=True)
class _FoundVae:
    entries: Entries
    scale: float | None
    """The latent scale it was made for, where anything tells."""
    told_by: str = ""


def load_autoencoder(
    path: Path | str,
    family: Family,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Autoencoder:
    """The autoencoder in a VAE file, a diffusers VAE folder, or a whole checkpoint, for a model of `family`.

    Raises DanqingError if there is none, it is of another shape, or it is known to be another family's.
    """
    entries = open_autoencoder(path, family)
    with without_weights():
        net = Autoencoder(family.autoencoder)
    assign(net, entries, device, dtype or _own_dtype(entries))
    return net


def open_autoencoder(path: Path | str, family: Family) -> Entries:
    """The canonical tensors of an autoencoder for `family`; as `load_autoencoder`, without reading them.

    The autoencoders of SD 1.x and XL have the same names and shapes, and differ in the scale of their latents (0.18215,
    0.13025). Which one a file is, is told by the checkpoint it is part of, its config.json, its metadata, or its hash
    if it is one of those in widest use. A file of which nothing tells is taken at its owner's word.
    """
    path = Path(path)
    found = _find_vae(path)
    with without_weights():
        net = Autoencoder(family.autoencoder)
    trouble = problems({"vae": found.entries}, {"vae": net}, ())
    if str(trouble):
        raise DanqingError(f"{path}: is not an autoencoder for {family.title}: {trouble}")
    own = family.autoencoder.scale
    if found.scale is not None and family.autoencoder.mean is None and not math.isclose(found.scale, own, rel_tol=1e-3):
        rows = [
            row.title for row in FAMILIES.values() if math.isclose(row.autoencoder.scale, found.scale, rel_tol=1e-3)
        ]
        whose = f" ({rows[0]})" if rows else ""
        raise DanqingError(
            f"{path}: is a VAE for latents of scale {found.scale:g}{whose}, as {found.told_by} says; "
            f"{family.title} has {own:g}. Choose a VAE of the model's own family"
        )
    return found.entries


def _find_vae(path: Path) -> _FoundVae:
    if path.is_dir():
        if (path / "model_index.json").is_file():
            path = path / "vae"
        file = open_component(path) if path.is_dir() else None
        if file is None:
            raise DanqingError(f"{path}: is a folder without an autoencoder's weights")
        return _from_vae_file(file, path)
    file = open_file(path)
    kind = kind_of(file.shapes)
    if kind.name in CHECKPOINTS:
        checkpoint = open_checkpoint(path)
        if "vae" not in checkpoint.components:
            raise DanqingError(f"{path}: is a checkpoint without a baked VAE")
        return _FoundVae(checkpoint.components["vae"], checkpoint.family.autoencoder.scale, "its U-Net")
    if kind.name != "autoencoder":
        raise DanqingError(f"{path}: is {kind.title}, not a VAE")
    return _from_vae_file(file, path.parent)


def _from_vae_file(file: TensorFile, folder: Path) -> _FoundVae:
    prefix = next((p for p in (VAE_PREFIX, "vae.", "model.") if f"{p}decoder.conv_in.weight" in file.entries), "")
    entries = {key[len(prefix) :]: entry for key, entry in file.entries.items() if key.startswith(prefix)}
    shapes = {key: entry.shape for key, entry in entries.items()}
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
    entries = {key: entry for key, entry in entries.items() if key.startswith(parts)}
    if "decoder.up_blocks.0.resnets.0.norm1.weight" in entries:
        canonical, left = layouts.DIFFUSERS_VAE.to_canonical(entries)
    else:
        canonical, left = layouts.vae_table(*layouts.vae_levels(shapes)).to_canonical(entries)
    canonical |= left
    scale, told_by = _scale(file, folder, canonical)
    return _FoundVae(canonical, scale, told_by)


def _scale(file: TensorFile, folder: Path, canonical: Entries) -> tuple[float | None, str]:
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if config.get("_class_name") == "AutoencoderKL" and "scaling_factor" in config:
            shapes = {key: entry.shape for key, entry in canonical.items()}
            return exact_vae(vae_config(shapes), config, str(folder)).scale, "its config.json"
    if FAMILY_KEY in file.metadata:
        return family_from_json(file.metadata[FAMILY_KEY], str(file.path)).autoencoder.scale, "its metadata"
    architecture = file.metadata.get("modelspec.architecture", "")
    for start, row in (("stable-diffusion-xl", "sdxl"), ("stable-diffusion-v1", "sd1"), ("stable-diffusion-v2", "sd2")):
        if architecture.startswith(start):
            return FAMILIES[row].autoencoder.scale, "its metadata modelspec.architecture"
    known = _KNOWN_VAES.get(file.path.stat().st_size if file.path.is_file() else 0, {})
    return (known.get(hashes.sha256(file.path)), "its hash") if known else (None, "")


def with_autoencoder(model: Model, path: Path | str) -> Model:
    """`model` with the autoencoder of a file in place of its own; everything else is shared. As `load_autoencoder`."""
    net = load_autoencoder(path, model.family, device=model.device, dtype=model.dtype)
    return replace(model, autoencoder=net, vae_path=str(path))
