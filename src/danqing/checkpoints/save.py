"""From a model or another checkpoint to a file: latent diffusion's single file, or diffusers' folder."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

import torch

from danqing.checkpoints import layouts, sidecars
from danqing.checkpoints.checkpoint import VAE_PREFIX, Checkpoint, networks, open_checkpoint, problems
from danqing.checkpoints.files import Entry
from danqing.checkpoints.layouts import EMA_PREFIX, UNET_PREFIX, Depths, Entries, Table
from danqing.checkpoints.load import open_autoencoder
from danqing.checkpoints.recognise import FAMILY_KEY, TOKENIZER_KEY, family_json
from danqing.checkpoints.write import beside, write_ckpt, write_json, write_safetensors
from danqing.errors import DanqingError
from danqing.families import Family, Model, TextEncoder
from danqing.models.autoencoder import AutoencoderConfig
from danqing.models.clip import CLIPTextConfig
from danqing.models.unet import UNetConfig
from danqing.runtime.stream import whole

Layout = Literal["ldm", "diffusers"]
_PLACE = "danqing.place."
"""In leftover.safetensors' metadata: where the single file had a text encoder."""

_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    source: str
    target: str
    layout: Layout
    family: str
    prediction: str
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()


def save(
    model: Model,
    path: Path | str,
    *,
    layout: Layout = "ldm",
    dtype: torch.dtype | None = None,
    leftover: Mapping[str, Entry] | None = None,
    metadata: Mapping[str, str] | None = None,
    shard: int | None = None,
) -> Conversion:
    """Write a loaded model: `ldm` is one file (safetensors; torch's archive if `path` ends in .ckpt), `diffusers` a
    folder that diffusers' pipelines open.

    dtype: of all weights; None is their own. leftover: tensors beside the networks (`Checkpoint.leftover`).
    shard: bytes; in a folder, weights that take more are spread over files of at most that many.
    Written beside and renamed. Raises DanqingError: full disk, folder that is not empty.
    """
    nets = {"unet": model.denoiser, "vae": model.autoencoder, **model.text_encoders}

    def entry(tensor: torch.Tensor) -> Entry:
        return Entry(tuple(tensor.shape), tensor.dtype, lambda: whole(tensor).detach())

    components = {
        name: {key: entry(value) for key, value in net.state_dict(keep_vars=True).items()} for name, net in nets.items()
    }
    checkpoint = Checkpoint(
        Path(model.path or model.name or "model"), "memory", "model", model.family, "", components,
        dict(leftover or {}), metadata=dict(metadata or {}), tokenizers=model.tokenizers,
    )  # fmt: skip
    return write(checkpoint, Path(path), layout, dtype, shard)


def convert(
    source: Path | str,
    target: Path | str,
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: str | None = None,
    vae: Path | str | None = None,
    ema: bool = False,
    family: Family | str | None = None,
    variant: str | None = None,
) -> Conversion:
    """Write a checkpoint in another layout, tensor by tensor, losslessly unless asked otherwise.

    layout: None is `ldm` if `target` ends in .safetensors or .ckpt, else `diffusers`. dtype: of the weights; None leaves
    each as it is. prediction_type: `epsilon` or `v`, written into what is made. vae: an autoencoder to put in. ema: the U-Net's
    moving average in place of its weights. What has no place in a diffusers folder (scheduler buffers, EMA weights,
    OpenCLIP's unused layer) goes into its `leftover.safetensors`, and comes back from there.
    Raises DanqingError as `load` does, and for a full disk or a folder that is not empty.
    """
    target = Path(target)
    if layout is None:
        layout = "ldm" if target.suffix.lower() in (".safetensors", ".ckpt") else "diffusers"
    if layout not in get_args(Layout):
        raise DanqingError(f"layout '{layout}' is unknown; choose one of: {', '.join(get_args(Layout))}")
    checkpoint = open_checkpoint(source, family=family, prediction=prediction_type, ema=ema, variant=variant)
    if vae is not None:
        components = dict(checkpoint.components) | {"vae": open_autoencoder(vae, checkpoint.family)}
        checkpoint = replace(checkpoint, components=components)
    nets = networks(checkpoint.family, str(checkpoint.path))
    if layout == "ldm":
        nets = {name: net for name, net in nets.items() if name in checkpoint.components}
    found = problems(checkpoint.components, nets, ())
    if str(found):
        raise DanqingError(f"{checkpoint.path}: does not fit {checkpoint.family.title}: {found}")
    return write(checkpoint, target, layout, dtype)


def write(
    checkpoint: Checkpoint, target: Path, layout: Layout, dtype: torch.dtype | None = None, shard: int | None = None
) -> Conversion:
    """Write `checkpoint` as `layout`. Raises DanqingError: full disk, folder that is not empty."""
    components = {name: _cast(part, dtype) for name, part in checkpoint.components.items()}
    averages = {key: entry for key, entry in checkpoint.leftover.items() if key.startswith(EMA_PREFIX)}
    leftover = dict(checkpoint.leftover) | _cast(averages, dtype)
    checkpoint = replace(checkpoint, components=components, leftover=_marked(leftover, checkpoint.family, layout))
    tensors = [entry for part in (*components.values(), checkpoint.leftover) for entry in part.values()]
    size = sum(entry.nbytes for entry in tensors)
    with beside(target, size + (1 << 20)) as temporary:
        if layout == "diffusers":
            _write_folder(checkpoint, temporary, shard)
        else:
            entries, vocabularies = to_ldm(checkpoint), _vocabularies(checkpoint)
            if target.suffix.lower() == ".ckpt":
                if vocabularies:
                    raise DanqingError(
                        f"{target}: a .ckpt has no place for the model's own vocabulary; write .safetensors"
                    )
                write_ckpt(temporary, entries)
            else:
                write_safetensors(temporary, entries, _metadata(checkpoint) | vocabularies)
    return Conversion(
        str(checkpoint.path), str(target), layout, checkpoint.family.name, checkpoint.family.process.prediction,
        len(tensors), size, checkpoint.notes,
    )  # fmt: skip


def _cast(entries: Mapping[str, Entry], dtype: torch.dtype | None) -> Entries:
    return {key: entry.cast(dtype) for key, entry in entries.items()}


def _marked(leftover: Entries, family: Family, layout: Layout) -> Entries:
    """`leftover` with the marker tensors by which tools know an XL model's prediction type, and no false ones."""
    process = family.process
    marks = {"v_pred"} | ({"ztsnr"} if process.zero_terminal_snr else set()) if process.prediction == "v" else set()
    kept = {key: entry for key, entry in leftover.items() if key not in ("v_pred", "ztsnr") or key in marks}
    if layout == "ldm" and family.size_ids != "none":
        empty = Entry((0,), torch.float32, lambda: torch.empty(0))
        kept = dict.fromkeys(sorted(marks), empty) | kept
    return kept


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    metadata = {key: value for key, value in checkpoint.metadata.items() if not key.startswith((_PLACE, TOKENIZER_KEY))}
    word = checkpoint.family.process.prediction
    if word in ("epsilon", "v"):
        metadata["modelspec.prediction_type"] = word
        metadata.pop("modelspec.predict_key", None)
    return {**metadata, FAMILY_KEY: family_json(checkpoint.family)}


def _vocabularies(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata for vocabularies that are not CLIP's, which every program has."""
    found = {}
    for encoder, own in checkpoint.tokenizers.items():
        texts = own if isinstance(own, Mapping) else _texts(own)
        if not _is_clips(texts):
            found[TOKENIZER_KEY + encoder] = json.dumps(texts, ensure_ascii=False)
    return found


def _texts(folder: Path) -> dict[str, str]:
    paths = [folder / name for name in _TOKENIZER_FILES]
    return {path.name: path.read_text("utf-8") for path in paths if path.is_file()}


def _is_clips(texts: Mapping[str, str]) -> bool:
    """Told by the number of words; a text that cannot be read is kept as it is."""
    try:
        if "vocab.json" in texts:
            return len(json.loads(texts["vocab.json"])) == CLIPTextConfig.vocabulary
        words = json.loads(texts["tokenizer.json"])["model"]["vocab"]
        return len(words) == CLIPTextConfig.vocabulary
    except (ValueError, KeyError, TypeError):
        return False


# --- ldm --------------------------------------------------------------------------------------------------------------


def to_ldm(checkpoint: Checkpoint) -> Entries:
    """The checkpoint under latent diffusion's names: what came from such a file has the names it had."""
    family = checkpoint.family
    result: Entries = {}
    for name, entries in checkpoint.components.items():
        prefix, table = _ldm_place(name, family, checkpoint.prefixes)
        foreign, left = table.to_foreign(entries)
        result |= {f"{prefix}{key}": entry for key, entry in (foreign | left).items()}
    return result | {key: entry for key, entry in checkpoint.leftover.items() if key not in result}


def _ldm_place(name: str, family: Family, prefixes: Mapping[str, str]) -> tuple[str, Table]:
    if name == "unet":
        return UNET_PREFIX, layouts.unet_table(_depths(family.denoiser))
    if name == "vae":
        return VAE_PREFIX, layouts.vae_table(*_levels(family.autoencoder))
    encoder = next(row for row in family.text_encoders if row.name == name)
    place = prefixes.get(name) or _usual_place(encoder, family)
    prefix, config = place.rstrip("!"), encoder.config
    if prefix.endswith(".model."):
        return prefix, layouts.open_clip_table(config.layers, config.projection is not None)
    return prefix, layouts.clip_table(place.endswith("!"), config.projection is not None)


def _depths(config: UNetConfig) -> Depths:
    return Depths(config.down_depth, config.mid_depth, config.up_depth, plain=not config.context_width)


def _levels(config: AutoencoderConfig) -> tuple[int, int]:
    return len(config.channels), config.layers


def _usual_place(encoder: TextEncoder, family: Family) -> str:
    kind = "model" if encoder.config.activation == "gelu" else "transformer"
    if family.size_ids == "none":
        return f"cond_stage_model.{kind}."
    return f"conditioner.embedders.{[row.name for row in family.text_encoders].index(encoder.name)}.{kind}."


# --- diffusers --------------------------------------------------------------------------------------------------------


def _write_folder(checkpoint: Checkpoint, folder: Path, shard: int | None) -> None:
    family = checkpoint.family
    folder.mkdir()
    tokenizers = {row.name: "tokenizer" + row.name.removeprefix("text_encoder") for row in family.text_encoders}
    write_json(folder / "model_index.json", sidecars.model_index(family, tokenizers))
    scale, size = family.autoencoder.downscale, family.defaults.width
    configs = {
        "unet": sidecars.unet_json(family.denoiser, size // scale),
        "vae": sidecars.vae_json(family.autoencoder, size),
        **{encoder.name: sidecars.clip_json(encoder) for encoder in family.text_encoders},
    }
    for name, config in configs.items():
        place = folder / ("vqvae" if name == "vae" and family.autoencoder.codebook else name)
        place.mkdir()
        write_json(place / "config.json", config)
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        _write_weights(place, stem, checkpoint.components[name], shard)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", sidecars.scheduler_json(family))
    for encoder in family.text_encoders:
        own = checkpoint.tokenizers.get(encoder.name)
        if isinstance(own, Path):
            shutil.copytree(own, folder / tokenizers[encoder.name])
        elif own is not None:
            (folder / tokenizers[encoder.name]).mkdir()
            for name, text in own.items():
                (folder / tokenizers[encoder.name] / Path(name).name).write_text(text, "utf-8")
        else:
            write_tokenizer(folder / tokenizers[encoder.name], encoder)
    places = {f"{_PLACE}{name}": place for name, place in checkpoint.prefixes.items()}
    metadata = _metadata(checkpoint) | places
    write_safetensors(folder / "leftover.safetensors", checkpoint.leftover, metadata)


def _write_weights(folder: Path, stem: str, entries: Entries, shard: int | None) -> None:
    """One file, or as many as `shard` asks for with the index by which diffusers and transformers find their tensors."""
    parts: list[Entries] = [{}]
    for key, entry in sorted(entries.items()):
        full = shard is not None and sum(other.nbytes for other in parts[-1].values()) + entry.nbytes > shard
        if full and parts[-1]:
            parts.append({})
        parts[-1][key] = entry
    if len(parts) == 1:
        write_safetensors(folder / f"{stem}.safetensors", entries, {})
        return
    names = [f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts):
        write_safetensors(folder / name, part, {})
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
        "weight_map": {key: name for name, part in zip(names, parts) for key in part},
    }
    write_json(folder / f"{stem}.safetensors.index.json", index)


def _bytes_as_text() -> list[str]:
    """A printable character for every byte, in the order of GPT-2's and CLIP's vocabularies: printable ones stand for
    themselves and come first, the others take characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def write_tokenizer(folder: Path, encoder: TextEncoder) -> None:
    """CLIP's tokenizer as transformers' CLIPTokenizer reads it, from the vocabulary that comes with Danqing."""
    text = gzip.decompress(resources.files("danqing.assets").joinpath("clip_bpe.txt.gz").read_bytes()).decode("utf-8")
    merges = text.splitlines()
    letters = _bytes_as_text()
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        start,
        end,
    ]
    pad = words[encoder.pad_token]
    folder.mkdir()
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": encoder.config.positions, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", special | settings | {"add_prefix_space": False, "errors": "replace"})
