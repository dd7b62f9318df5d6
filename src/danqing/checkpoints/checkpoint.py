"""A checkpoint in its canonical form, whatever its layout was: components, family, what is left over."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from danqing.checkpoints import layouts
from danqing.checkpoints.files import Entry, Folder, TensorFile, open_file, open_folder
from danqing.checkpoints.layouts import EMA_PREFIX, UNET_PREFIX, Entries, Shape, Table
from danqing.checkpoints.recognise import (
    DOUBTFUL_TENSOR,
    FAMILY_KEY,
    MARKS,
    TOKENIZER_KEY,
    Configs,
    Evidence,
    clip_config,
    differences,
    family_from_json,
    family_rows,
    kind_of,
    prediction_word,
    process_of,
    require_checkpoint,
    unet_config,
    vae_config,
    with_process,
)
from danqing.checkpoints.sidecars import exact_clip, exact_unet, exact_vae
from danqing.errors import DanqingError
from danqing.families import Family, Process, Spacing, find_family
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights

VAE_PREFIX = "first_stage_model."


@dataclass(frozen=True)
class Place:
    """Where a latent-diffusion file keeps a text encoder."""

    component: str
    prefix: str
    open_clip: bool


PLACES: tuple[Place, ...] = (
    Place("text_encoder", "cond_stage_model.transformer.", False),
    Place("text_encoder", "cond_stage_model.model.", True),
    Place("text_encoder", "conditioner.embedders.0.transformer.", False),
    Place("text_encoder_2", "conditioner.embedders.1.model.", True),
    Place("text_encoder_2", "conditioner.embedders.0.model.", True),
    Place("text_encoder", "conditioner.embedders.0.model.", True),
)
"""SD 1.x, SD 2.x, SDXL's two, the refiner's, SD-Turbo's (which is the refiner's, in a U-Net without a pooled vector)."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its headers read and its tensors not."""

    path: Path
    format: str
    layout: str
    """`ldm` or `diffusers`."""
    family: Family
    known_by: str
    """How the prediction type is known."""
    components: Mapping[str, Entries]
    """`unet`, `vae`, `text_encoder`, `text_encoder_2` -> canonical name -> tensor."""
    leftover: Entries = field(default_factory=dict)
    """What has no canonical place, by its own name."""
    surplus: tuple[str, ...] = ()
    """Keys inside the U-Net or the autoencoder that such a network does not have."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Text encoder -> where the ldm file had it; a trailing `!` says its names lacked `text_model.`"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tokenizers: Mapping[str, Path | Mapping[str, str]] = field(default_factory=dict)
    folder: Folder | None = None

    @property
    def has_ema(self) -> bool:
        """Whether a moving average of the U-Net is there too (diffusers' rule: more than 100 such keys)."""
        return sum(key.startswith(EMA_PREFIX) for key in self.leftover) > 100


@dataclass(frozen=True)
class Wishes:
    """What the caller decides instead of the file."""

    family: Family | None = None
    prediction: str | None = None
    ema: bool = False
    variant: str | None = None


def open_checkpoint(
    path: Path | str,
    *,
    family: Family | str | None = None,
    prediction: str | None = None,
    ema: bool = False,
    variant: str | None = None,
) -> Checkpoint:
    """Open a checkpoint: a single file of any format, or a diffusers folder. No tensor is read.

    `family` (a row or its name) and `prediction` win over what the file says of itself, and that over guesses.
    `ema` takes the moving average of the U-Net in place of its weights. `variant` chooses a diffusers folder's
    weights (`fp16`). Raises DanqingError: no checkpoint (says what it is), damaged, of a family not supported.
    """
    path = Path(path)
    row = find_family(family) if isinstance(family, str) else family
    wishes = Wishes(row, prediction, ema, variant)
    try:
        if path.is_dir():
            return _from_folder(open_folder(path, variant), wishes)
        return _from_file(open_file(path), wishes)
    except DanqingError as error:
        if str(path) in str(error):
            raise
        raise DanqingError(f"{path}: {error}") from error


def _shapes(entries: Mapping[str, Entry]) -> dict[str, Shape]:
    return {key: entry.shape for key, entry in entries.items()}


def _under(entries: Mapping[str, Entry], prefix: str) -> Entries:
    return {key[len(prefix) :]: entry for key, entry in entries.items() if key.startswith(prefix)}


def _unscaled(entries: Mapping[str, Entry]) -> Entries:
    """Float8 files may keep a factor beside each weight (`.scale_weight`); here the two are one again."""
    result = dict(entries)
    for key in [key for key in entries if key.endswith(".scale_weight")]:
        name = key.removesuffix("scale_weight") + "weight"
        if name in entries:
            weight, scale = entries[name], entries[key]
            result[name] = Entry(weight.shape, torch.bfloat16, _product(weight, scale))
        result.pop(key)
    return {key: entry for key, entry in result.items() if not key.endswith((".scale_input", "scaled_fp8"))}


def _product(weight: Entry, scale: Entry) -> Any:
    return lambda: (weight.load().float() * scale.load().float()).bfloat16()


# --- single files -----------------------------------------------------------------------------------------------------


def _from_file(file: TensorFile, wishes: Wishes) -> Checkpoint:
    require_checkpoint(file.path, kind_of(file.shapes))
    entries = _unscaled(file.entries)
    known = wishes.family
    if known is None and FAMILY_KEY in file.metadata:
        known = family_from_json(file.metadata[FAMILY_KEY], str(file.path))

    foreign = _under(entries, UNET_PREFIX)
    depths = layouts.unet_depths(_shapes(foreign))
    unet, strange = layouts.unet_table(depths).to_canonical(_averaged(foreign, entries) if wishes.ema else foreign)
    leftover = {f"{UNET_PREFIX}{key}": entry for key, entry in strange.items()}
    components: dict[str, Entries] = {"unet": unet}
    vae_foreign = _under(entries, VAE_PREFIX)
    if "decoder.conv_in.weight" in vae_foreign:
        vae, odd = layouts.vae_table(*layouts.vae_levels(_shapes(vae_foreign))).to_canonical(vae_foreign)
        components["vae"] = vae
        leftover |= {f"{VAE_PREFIX}{key}": entry for key, entry in odd.items()}
    elif vae_foreign:
        leftover |= {f"{VAE_PREFIX}{key}": entry for key, entry in vae_foreign.items()}
    surplus = tuple(key for key in leftover if not re.match(r"first_stage_model\.(loss|model_ema)\b", key))

    texts: dict[str, Entries] = {}
    prefixes: dict[str, str] = {}
    for place in PLACES:
        part = _under(entries, place.prefix)
        if not part or place.component in texts or place.prefix in {p.rstrip("!") for p in prefixes.values()}:
            continue
        if place.component == "text_encoder_2" and "add_embedding.linear_1.weight" not in unet:
            continue
        table, bare = _text_table(place, part, known)
        texts[place.component], odd = table.to_canonical(part)
        prefixes[place.component] = place.prefix + ("!" if bare else "")
        leftover |= {f"{place.prefix}{key}": entry for key, entry in odd.items()}
    components |= texts
    claimed = (UNET_PREFIX, VAE_PREFIX, *(prefix.rstrip("!") for prefix in prefixes.values()))
    leftover |= {key: entry for key, entry in file.entries.items() if not key.startswith(claimed)}

    found = _configs(components, {name: "gelu" if ".model." in at else "quick_gelu" for name, at in prefixes.items()})
    evidence = Evidence(file.path, frozenset(MARKS & entries.keys()), file.metadata)
    family, known_by = _decide(found, evidence, known, wishes, components["unet"])
    return Checkpoint(
        file.path, file.format, "ldm", family, known_by, components, leftover, surplus, prefixes,
        file.metadata, file.notes, _tokenizers(file),
    )  # fmt: skip


def _tokenizers(file: TensorFile) -> dict[str, Mapping[str, str]]:
    """The texts of tokenizers that a file of Danqing's carries, by text encoder."""
    found: dict[str, Mapping[str, str]] = {}
    for key, value in file.metadata.items():
        if key.startswith(TOKENIZER_KEY):
            try:
                texts = json.loads(value)
            except ValueError as error:
                raise DanqingError(f"{file.path}: its {key} is damaged ({error}); fetch the file again") from None
            if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
                raise DanqingError(f"{file.path}: its {key} is damaged; fetch the file again")
            found[key.removeprefix(TOKENIZER_KEY)] = texts
    return found


def _averaged(foreign: Entries, entries: Mapping[str, Entry]) -> Entries:
    averaged = {key: entries[name] for key in foreign if (name := layouts.ema_name(key)) in entries}
    if len(averaged) != len(foreign):
        raise DanqingError(f"has EMA weights for {len(averaged)} of {len(foreign)} tensors; leave the EMA option out")
    return averaged


def _text_table(place: Place, part: Entries, known: Family | None) -> tuple[Table, bool]:
    """The rules of a text encoder, and whether its names lack `text_model.`.

    The families keep of OpenCLIP-H, in SD 2.x, what it uses: neither its last layer nor the projection, which files
    made by OpenCLIP itself have.
    """
    config = next((row.config for row in known.text_encoders if row.name == place.component), None) if known else None
    if not place.open_clip:
        bare = not any(key.startswith("text_model.") for key in part)
        return layouts.clip_table(bare, config is not None and config.projection is not None), bare
    layers = layouts.count_children(part, "transformer.resblocks")
    projection = place.component == "text_encoder_2"
    if config is not None:
        layers, projection = config.layers, config.projection is not None
    elif not projection and "text_projection" in part:
        layers -= 1
    return layouts.open_clip_table(layers, projection), False


def _configs(components: Mapping[str, Entries], activations: Mapping[str, str]) -> Configs:
    texts = {
        name: clip_config(_shapes(entries), activations.get(name, "quick_gelu"))
        for name, entries in components.items()
        if name.startswith("text_encoder")
    }
    pooled = texts["text_encoder_2"].projection if "text_encoder_2" in texts else None
    vae = vae_config(_shapes(components["vae"])) if "vae" in components else None
    return Configs(unet_config(_shapes(components["unet"]), pooled), vae, texts)


def _decide(
    found: Configs, evidence: Evidence, known: Family | None, wishes: Wishes, unet: Entries
) -> tuple[Family, str]:
    """(family, how its prediction type is known)."""
    if known is not None:
        unlike = differences(known, found)
        if unlike:
            raise DanqingError(f"{evidence.path}: is not of family '{known.name}': {'; '.join(unlike)}")
        rows, process = [known], known.process
        known_by = "the family that was asked for" if wishes.family is not None else f"metadata {FAMILY_KEY}"
    else:
        rows = family_rows(found)
        doubtful = found.unet.context_width == 1024 and found.unet.in_channels == 4 and found.unet.channels[0] == 320
        read = unet[DOUBTFUL_TENSOR].load if doubtful and DOUBTFUL_TENSOR in unet else None
        process, known_by = process_of(replace(evidence, read=read), rows[0].process)
    if wishes.prediction is not None:
        process = _wished(wishes.prediction, process)
        known_by = "asked for"
    return with_process(rows, process), known_by


def _wished(word: str, process: Process) -> Process:
    return replace(process, prediction=prediction_word(word, "prediction"))


# --- diffusers folders ------------------------------------------------------------------------------------------------


def _from_folder(folder: Folder, wishes: Wishes) -> Checkpoint:
    if wishes.ema:
        raise DanqingError(f"{folder.path}: a diffusers folder keeps no EMA weights apart; leave the EMA option out")
    if "unet" not in folder.components:
        what = folder.index.get("_class_name", "pipeline")
        raise DanqingError(f"{folder.path}: is a {str(what)[:60]} without a U-Net, which this version does not support")
    components: dict[str, Entries] = {}
    leftover: Entries = dict(folder.leftover.entries) if folder.leftover else {}
    for name, file in folder.components.items():
        table = _folder_table(name, file)
        components[name], odd = table.to_canonical(_unscaled(file.entries))
        leftover |= {f"{name}.{key}": entry for key, entry in odd.items()}
    found = _exact(folder, _configs(components, {}))
    metadata = dict(folder.leftover.metadata) if folder.leftover else {}
    known = wishes.family
    if known is None and FAMILY_KEY in metadata:
        known = family_from_json(metadata[FAMILY_KEY], str(folder.path))
    evidence = Evidence(folder.path, frozenset(), metadata, folder.configs.get("scheduler"))
    family, known_by = _decide(found, evidence, known, wishes, components["unet"])
    family = _with_switches(family, folder)
    prefixes = {name: metadata[key] for name in components if (key := f"danqing.place.{name}") in metadata}
    return Checkpoint(
        folder.path, "diffusers folder", "diffusers", family, known_by, components, leftover, (), prefixes,
        metadata, (), folder.tokenizers, folder,
    )  # fmt: skip


def _folder_table(name: str, file: TensorFile) -> Table:
    if name == "vae":
        return layouts.DIFFUSERS_VAE
    if name == "unet":
        return layouts.diffusers_unet_table(file.entries)
    return layouts.clip_table(not any(key.startswith("text_model.") for key in file.entries), True)


def _exact(folder: Folder, found: Configs) -> Configs:
    """`found`, with what the folder's own configurations say."""
    configs = folder.configs
    where = str(folder.path)
    last = next((name for name in ("text_encoder_2", "text_encoder") if name in found.text), None)
    pooled = found.text[last].projection if last else None
    unet = found.unet
    if "unet" in configs:
        unet = exact_unet(unet, configs["unet"], pooled, f"{where}: unet/config.json")
    vae = exact_vae(found.vae, configs["vae"], where) if found.vae and "vae" in configs else found.vae
    text = {name: exact_clip(c, configs[name], where) if name in configs else c for name, c in found.text.items()}
    return Configs(unet, vae, text, frozenset(configs))


def _with_switches(family: Family, folder: Folder) -> Family:
    """Pipeline-wide switches that `model_index.json` carries, and its scheduler's spacing."""
    spacing = folder.configs.get("scheduler", {}).get("timestep_spacing")
    family = replace(family, spacing=spacing if spacing in get_args(Spacing) else None)
    zeros = folder.index.get("force_zeros_for_empty_prompt")
    if isinstance(zeros, bool) and zeros != family.zero_empty_negative and family.size_ids == "base":
        return replace(family, zero_empty_negative=zeros)
    return family


# --- networks ---------------------------------------------------------------------------------------------------------


def networks(family: Family, where: str = "") -> dict[str, nn.Module]:
    """The family's networks on the meta device: names and shapes, no memory.

    Raises DanqingError, naming `where`, for sizes that make no network, which only a damaged file or configuration has.
    """

    def build(config: Any) -> nn.Module:
        if isinstance(config, AutoencoderConfig):
            return Autoencoder(config)
        return CLIPText(config) if isinstance(config, CLIPTextConfig) else UNet(config)

    try:
        with without_weights():
            nets = {"unet": build(family.denoiser), "vae": build(family.autoencoder)}
            return nets | {encoder.name: build(encoder.config) for encoder in family.text_encoders}
    except (ValueError, RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
        raise DanqingError(
            f"{where or family.name}: the sizes of its networks make no sense: {str(error).splitlines()[0][:200]}"
        ) from error


@dataclass(frozen=True)
class Problems:
    """Where tensors are not what a network has."""

    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        for what, keys in (("missing", self.missing), ("surplus", self.surplus), ("mis-shaped", self.misshaped)):
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{len(keys)} {what}: {', '.join(keys[:3])}{more}")
        return "; ".join(parts)


def problems(components: Mapping[str, Entries], nets: Mapping[str, nn.Module], surplus: tuple[str, ...]) -> Problems:
    """What is missing, surplus or of another shape, by `component.name`. A component that is absent is one item."""
    missing: list[str] = []
    misshaped: list[str] = []
    extra = list(surplus)
    for name, net in nets.items():
        if name not in components:
            missing.append(f"the whole {name}")
            continue
        wanted = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
        given = components[name]
        missing += [f"{name}.{key}" for key in wanted if key not in given]
        extra += [f"{name}.{key}" for key in given if key not in wanted]
        misshaped += [
            f"{name}.{key} {list(given[key].shape)} instead of {list(shape)}"
            for key, shape in wanted.items()
            if key in given and given[key].shape != shape
        ]
    return Problems(tuple(missing), tuple(extra), tuple(misshaped))
