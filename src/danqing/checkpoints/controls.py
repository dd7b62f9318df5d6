"""Files of what steers a model by a picture: ControlNets, T2I-Adapters and LLLites, in all their layouts, to networks.

Sources of the layouts: lllyasviel/ControlNet (`cldm.py`), its `difference` files (`tool_transfer_control.py`),
Stability's control-LoRAs (ComfyUI's `controlnet.py`), TencentARC/T2I-Adapter, kohya-ss/sd-scripts, diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from danqing.checkpoints import layouts
from danqing.checkpoints.checkpoint import problems
from danqing.checkpoints.files import Entry, TensorFile, open_component, open_file, read_json
from danqing.checkpoints.layouts import Depths, Entries, count_children
from danqing.checkpoints.load import assign, room
from danqing.checkpoints.recognise import kind_of, unet_config
from danqing.checkpoints.sidecars import exact_unet
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Model
from danqing.models.controlnet import ControlNet, ControlNetConfig
from danqing.models.lllite import LLLite, LLLiteLayer
from danqing.models.t2i_adapter import T2IAdapter, T2IAdapterConfig, places
from danqing.models.unet import Attention, UNet, UNetConfig, skip_channels
from danqing.runtime.blank import without_weights
from danqing.runtime.packed import keep_packed
from danqing.runtime.stream import whole

MARKS = ("lora_controlnet", "difference")
"""Keys that say how a file is to be read, and hold no weights."""
_POOLED = ("_shuffle", "_shuffle_fp16")
"""How the names of files end whose ControlNet looks at no place: nothing in them says so."""
_PIXELS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
"""Channels that enter a T2I-Adapter -> (the hint's channels, pixels along the side of one feature)."""
_CLASSES = ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter")


def load_control(
    path: Path | str,
    model: Model,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ControlNet | T2IAdapter | LLLite:
    """The ControlNet, T2I-Adapter or ControlNet-LLLite of a file or a diffusers folder, ready to steer `model`.

    Reads ControlNet's own layout, diffusers', files of differences and control-LoRAs, which take the rest of their
    weights from `model`, T2I-Adapters of both layouts, and kohya's LLLites. device, dtype: None is the model's own.
    Raises DanqingError: damaged, not a ControlNet or T2I-Adapter, for another family, or with missing, surplus and
    mis-shaped keys.
    """
    path = Path(path)
    file = open_component(path) if path.is_dir() else open_file(path)
    if file is None:
        raise DanqingError(f"{path}: is a folder without a ControlNet's weights")
    kind = kind_of(file.shapes)
    network: ControlNet | T2IAdapter | LLLite
    if kind.name == "controlnet":
        network, entries = _controlnet(file, path, model)
    elif kind.name == "t2i-adapter":
        network, entries = _t2i_adapter(file, path, model.family.denoiser)
    elif kind.name == "lllite":
        network, entries = _lllite(file, path, model.family.denoiser)
    else:
        raise DanqingError(f"{path}: is {kind.title}, not a ControlNet or T2I-Adapter")
    trouble = problems({"weights": entries}, {"weights": network}, ())
    if str(trouble):
        raise DanqingError(f"{path}: is not a whole {kind.title.split(' ', 1)[1]}: {trouble}")
    assign(network, entries, device or model.device, dtype or model.dtype, room(model))
    if model.memory is None:
        keep_packed(network)
    return network


def _config(file: TensorFile) -> Mapping[str, Any]:
    """diffusers' configuration that lies beside the weights, or nothing."""
    side = file.path.with_name("config.json")
    config = read_json(side) if side.is_file() else {}
    return config if config.get("_class_name") in _CLASSES else {}


# --- ControlNet -------------------------------------------------------------------------------------------------------


def _controlnet(file: TensorFile, path: Path, model: Model) -> tuple[ControlNet, Entries]:
    """The network, without weights, and its canonical entries."""
    base = model.family.denoiser
    prefix = "control_model."
    inner = {key[len(prefix) :]: entry for key, entry in file.entries.items() if key.startswith(prefix)}
    entries = inner or {key: entry for key, entry in file.entries.items() if key not in MARKS}
    if any(key.startswith("controlnet_blocks.") for key in entries):
        raise DanqingError(f"{path}: is a ControlNet for SD 3 or Flux, which this version does not support yet")
    lora = "lora_controlnet" in file.entries
    if "input_hint_block.0.weight" in entries:
        shapes = {key: entry.shape for key, entry in entries.items()}
        depths = Depths(base.down_depth, base.mid_depth, ()) if lora else layouts.unet_depths(shapes)
        hint_layers = sum(key.startswith("input_hint_block.") and key.endswith(".weight") for key in entries)
        entries, left = layouts.controlnet_table(depths, hint_layers).to_canonical(entries)
        if left and lora:
            raise DanqingError(
                f"{path}: is a control-LoRA for another family: the model has no place for '{min(left)}'"
            )
        if left:
            raise DanqingError(f"{path}: {len(left)} of its tensors are no ControlNet's, such as '{min(left)}'")
    if lora:
        entries = _completed(entries, model, path)
    elif "difference" in file.entries:
        entries = _added(entries, model, path)
    config = _controlnet_config(entries, _config(file), base, path)
    _require_kin(config.unet, model, path)
    cell = model.family.autoencoder.downscale
    if config.downscale != cell:
        raise DanqingError(f"{path}: is a ControlNet for latents of {config.downscale} pixels; the model's have {cell}")
    try:
        with without_weights():
            return ControlNet(config), entries
    except (ValueError, RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DanqingError(f"{path}: the sizes of its layers make no sense: {reason}") from error


def _controlnet_config(
    entries: Mapping[str, Entry], config: Mapping[str, Any], base: UNetConfig, path: Path
) -> ControlNetConfig:
    """What the shapes tell; the rest from diffusers' configuration where there is one, or else the model's own."""
    shapes = {key: entry.shape for key, entry in entries.items()}
    try:
        unet = unet_config(shapes, half=True)
    except DanqingError as error:
        raise DanqingError(f"{path}: is a ControlNet of a kind that Danqing does not know: {error}") from error
    unet = replace(unet, context_width=unet.context_width or base.context_width)
    if unet.pooled_width + unet.size_ids * unet.size_id_width == _told(base):
        same = {name: getattr(base, name) for name in ("pooled_width", "size_ids", "size_id_width")}
        unet = replace(unet, **same)
    if config:
        unet = exact_unet(unet, config, base.pooled_width or None, f"{path}: config.json")
    elif unet.channels == base.channels:
        unet = replace(unet, heads=base.heads, groups=base.groups)
    hint = "controlnet_cond_embedding"
    steps = [key for key in shapes if key.startswith(f"{hint}.blocks.") and key.endswith(".weight")]
    widths = [shapes.get(f"{hint}.blocks.{i}.weight", (0,))[0] for i in range(1, len(steps), 2)]
    first = shapes.get(f"{hint}.conv_in.weight", (0, 3))
    return ControlNetConfig(
        unet,
        hint_channels=first[1],
        hint_widths=(first[0], *widths),
        bgr=config.get("controlnet_conditioning_channel_order") == "bgr",
        pooled=config.get("global_pool_conditions") is True or path.stem.endswith(_POOLED),
        tasks=shapes.get("task_embedding", (0,))[0],
        task_width=shapes.get("task_embedding", (0, 320))[-1],
        task_layers=count_children(shapes, "transformer_layes"),
        task_heads=int(config.get("num_trans_head", 8)),
    )


def _told(config: UNetConfig) -> int:
    return config.pooled_width + config.size_ids * config.size_id_width


def _require_kin(unet: UNetConfig, model: Model, path: Path) -> None:
    """Raises DanqingError if what the network makes would not fit the model's U-Net."""
    base = model.family.denoiser
    if unet.context_width != base.context_width:
        whose = next((row.title for row in FAMILIES.values() if row.denoiser.context_width == unet.context_width), "")
        made_for = f"for {whose} (text of width {unet.context_width})" if whose else f"for text of {unet.context_width}"
        raise DanqingError(
            f"{path}: is a ControlNet {made_for}; the model is {model.family.title}, whose text is "
            f"{base.context_width} wide. Choose one of the model's own family"
        )
    if _told(unet) not in (0, _told(base)) or skip_channels(unet) != skip_channels(base):
        raise DanqingError(
            f"{path}: is a ControlNet for a U-Net of {_size(unet)}; the model's ({model.family.title}) has {_size(base)}"
        )
    if unet.in_channels > base.in_channels:
        raise DanqingError(
            f"{path}: is a ControlNet for latents of {unet.in_channels} channels; the model's have {base.in_channels}"
        )


def _size(config: UNetConfig) -> str:
    return f"channels {list(config.channels)} and added embedding {_told(config)}"


def _completed(entries: Entries, model: Model, path: Path) -> Entries:
    """A control-LoRA with its base: W + up @ down, and the U-Net's own weights where the file has none."""
    base = model.denoiser.state_dict(keep_vars=True)
    with without_weights():
        wanted = ControlNet(ControlNetConfig(model.family.denoiser)).state_dict()
    done = {key: entry for key, entry in entries.items() if not key.endswith((".up", ".down"))}
    for up_key in [key for key in entries if key.endswith(".up")]:
        layer = up_key[: -len(".up")]
        up, down, weight = entries[up_key], entries.get(f"{layer}.down"), base.get(f"{layer}.weight")
        if weight is None:
            raise DanqingError(f"{path}: is a control-LoRA for another family: the model has no layer '{layer}'")
        shape = tuple(weight.shape)
        fits = down is not None and len(up.shape) >= 2 and up.shape[0] == shape[0] and up.shape[1] == down.shape[0]
        if down is None or not fits or math.prod(down.shape[1:]) != math.prod(shape[1:]):
            sizes = f"{list(up.shape)} and {list(down.shape) if down else 'nothing'}"
            raise DanqingError(
                f"{path}: is a control-LoRA for another family: '{layer}' is {list(shape)}, and the file has {sizes}"
            )
        done[f"{layer}.weight"] = _product(weight, up, down)
    lone = [key for key in entries if key.endswith(".down") and f"{key[: -len('.down')]}.up" not in entries]
    if lone:
        raise DanqingError(f"{path}: has '{lone[0]}' without its '.up'; the file is not whole")
    rest = {key: _entry(base[key]) for key in wanted if key in base and key not in done}
    return done | rest


def _product(weight: torch.Tensor, up: Entry, down: Entry) -> Entry:
    def load() -> torch.Tensor:
        change = up.load().float().flatten(1) @ down.load().float().flatten(1)
        return (whole(weight).detach().cpu().float() + change.view(weight.shape)).to(weight.dtype)

    return Entry(tuple(weight.shape), weight.dtype, load)


def _entry(tensor: torch.Tensor) -> Entry:
    return Entry(tuple(tensor.shape), tensor.dtype, lambda: whole(tensor).detach().cpu())


def _added(entries: Entries, model: Model, path: Path) -> Entries:
    """A file of differences with its base: every tensor that the U-Net has too is added to the U-Net's."""
    base = model.denoiser.state_dict(keep_vars=True)
    done = dict(entries)
    for key in entries.keys() & base.keys():
        if entries[key].shape != tuple(base[key].shape):
            raise DanqingError(
                f"{path}: is a ControlNet for another family, told as a difference from its U-Net: "
                f"'{key}' is {list(base[key].shape)} in the model, and {list(entries[key].shape)} in the file"
            )
        done[key] = _sum(base[key], entries[key])
    return done


def _sum(weight: torch.Tensor, change: Entry) -> Entry:
    def load() -> torch.Tensor:
        return (whole(weight).detach().cpu().float() + change.load().float()).to(weight.dtype)

    return Entry(change.shape, weight.dtype, load)


# --- T2I-Adapter ------------------------------------------------------------------------------------------------------


def _t2i_adapter(file: TensorFile, path: Path, base: UNetConfig) -> tuple[T2IAdapter, Entries]:
    prefix = "adapter."
    inner = {key[len(prefix) :]: entry for key, entry in file.entries.items() if key.startswith(prefix)}
    entries = inner or dict(file.entries)
    if "style_embedding" in entries:
        raise DanqingError(f"{path}: is a T2I style adapter, which this version does not support")
    light = "body.0.out_conv.weight" in entries
    if "body.0.resnets.0.block1.weight" not in entries:
        layers = max(count_children(entries, "body") // 4, 1)
        entries, left = layouts.t2i_adapter_table(layers, light).to_canonical(entries)
        if left:
            raise DanqingError(f"{path}: {len(left)} of its tensors are no T2I-Adapter's, such as '{min(left)}'")
    config = _adapter_config(entries, _config(file), light, path)
    ends = skip_channels(base) | {"mid_block": base.channels[-1]}
    wanted = tuple(ends[place] for place in places(config, base))
    if wanted != config.channels:
        raise DanqingError(
            f"{path}: is a T2I-Adapter for a U-Net of channels {list(config.channels)}; the model wants {list(wanted)}. "
            "Choose one of the model's own family"
        )
    with without_weights():
        return T2IAdapter(config), entries


def _adapter_config(
    entries: Mapping[str, Entry], config: Mapping[str, Any], light: bool, path: Path
) -> T2IAdapterConfig:
    first = entries.get("body.0.in_conv.weight" if light else "conv_in.weight")
    count = count_children(entries, "body")
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    ends = [entries.get(f"body.{i}.{last}") for i in range(count)]
    if first is None or not ends or any(end is None or len(end.shape) != 4 for end in [first, *ends]):
        raise DanqingError(f"{path}: is a T2I-Adapter with layers missing; download it again")
    pixels = first.shape[1]
    side = config.get("downscale_factor")
    if type(side) is int and side > 0 and pixels % side**2 == 0:
        hint_channels = pixels // side**2
    elif pixels in _PIXELS:
        hint_channels, side = _PIXELS[pixels]
    else:
        raise DanqingError(
            f"{path}: takes {pixels} numbers for a patch of pixels: not a T2I-Adapter that Danqing knows"
        )
    xl = config["adapter_type"] == "full_adapter_xl" if "adapter_type" in config else side == 16
    return T2IAdapterConfig(
        "light" if light else "xl" if xl else "full",
        hint_channels,
        tuple(end.shape[0] for end in ends if end is not None),
        count_children(entries, "body.0.resnets"),
        side,
    )


# --- ControlNet-LLLite ------------------------------------------------------------------------------------------------


def _lllite(file: TensorFile, path: Path, config: UNetConfig) -> tuple[LLLite, Entries]:
    """The network, without weights, and its entries. Layers go by latent diffusion's names, or by diffusers'."""
    known = _attention_layers(config)
    layers: dict[str, LLLiteLayer] = {}
    entries: dict[str, Entry] = {}
    for key, entry in file.entries.items():
        prefix, _, rest = key.partition(".")
        layer = prefix.removeprefix("lllite_unet_")
        if layer not in known:
            raise DanqingError(f"{path}: is a ControlNet-LLLite for another family: the model has no layer '{layer}'")
        name, width = known[layer]
        entries[f"layers.{name.replace('.', '_')}.{rest}"] = entry
        if name not in layers:
            layers[name] = _lllite_layer(file, prefix, width, path)
    with without_weights():
        return LLLite(layers), entries


def _lllite_layer(file: TensorFile, prefix: str, width: int, path: Path) -> LLLiteLayer:
    shapes = [file.shapes.get(f"{prefix}.{part}.weight") for part in ("conditioning1.0", "conditioning1.2", "down.0")]
    first, second, down = shapes
    if not first or not second or not down:
        raise DanqingError(f"{path}: is not a whole ControlNet-LLLite: of '{prefix}' a part is missing")
    deepest = f"{prefix}.conditioning1.4.weight" in file.entries
    return LLLiteLayer(width, 2 * first[0], down[0], 3 if deepest else 2 if second[-1] == 4 else 1)


def _attention_layers(config: UNetConfig) -> dict[str, tuple[str, int]]:
    """Every name, with `_` for `.`, of what makes queries, keys and values of pixels -> (canonical name, width)."""
    with without_weights():
        net = UNet(config)
    table = layouts.unet_table(Depths(config.down_depth, config.mid_depth, config.up_depth))
    found: dict[str, tuple[str, int]] = {}
    for name, module in net.named_modules():
        if not isinstance(module, Attention):
            continue
        for part in ("to_q", "to_k", "to_v") if name.endswith("attn1") else ("to_q",):
            layer, width = f"{name}.{part}", module.to_q.in_features
            entry = Entry((width, width), torch.float32, lambda: torch.empty(0))
            foreign = next(iter(table.to_foreign({f"{layer}.weight": entry})[0]), layer).removesuffix(".weight")
            for known in (layer, foreign):
                found[known.replace(".", "_")] = layer, width
    return found
