"""Names: from the keys of a LoRA file, whoever wrote it, to the model's own layers.

A key is a layer and a part (`lora_down.weight`, `alpha` ...). Parts are brought to kohya's and LyCORIS' spelling by
`SPELLINGS`; layers are found in a table made of the model's canonical names and the other names that they go by.

Sources of the foreign names: kohya-ss/sd-scripts networks/lora.py, KohakuBlueleaf/LyCORIS lycoris/kohya.py and
wrapper.py, huggingface/peft utils/save_and_load.py, huggingface/diffusers loaders/lora_conversion_utils.py and
utils/state_dict_utils.py, Nerogar/OneTrainer modules/util/convert/lora.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from danqing.checkpoints.files import Entry
from danqing.checkpoints.layouts import Depths, unet_table
from danqing.families import Family
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights

Parts = dict[str, Entry]
"""Of one layer: part -> tensor."""

SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\.processor\.", "."),  # diffusers' attention processors
        (r"\.self_attn\.to_([qkv])_lora\.", r".self_attn.\1_proj.lora."),  # diffusers' text encoders before 0.18
        (r"\.self_attn\.to_out_lora\.", ".self_attn.out_proj.lora."),
        (r"\.to_([qkv])_lora\.", r".to_\1.lora."),  # and its U-Nets
        (r"\.to_out_lora\.", ".to_out.0.lora."),
        (r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight$", r".lora_\1.weight"),
        (r"\.(?:lora|lora_linear_layer)\.alpha$", ".alpha"),
        (r"\.lora_A\.(?:\w+\.)?weight$", ".lora_down.weight"),  # PEFT, with or without its adapter's name
        (r"\.lora_B\.(?:\w+\.)?weight$", ".lora_up.weight"),
        (r"\.lora_magnitude_vector(?:\.(?!weight$)\w+)?(?:\.weight)?$", ".magnitude"),
        (r"\.(ia3_l|hada_\w+?|lokr_\w+?)\.\w+$", r".\1"),
    )
)
"""(pattern, replacement), each tried on every key, in this order."""

PARTS: tuple[str, ...] = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    *("oft_blocks", "rescale", "weight", "on_input", "ia3_l", "diff", "diff_b", "w_norm", "b_norm"),
    *("alpha", "scale", "dora_scale", "magnitude"),
)
_PART = re.compile(rf"^(.+?)\.({'|'.join(map(re.escape, sorted(PARTS, key=len, reverse=True)))})$")

_UNET_PREFIXES = ("lora_unet_", "unet_", "lycoris_", "diffusion_model_", "model_diffusion_model_", "")
_TEXT_PREFIXES = {
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_", "clip_l_", "lycoris_", ""),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "clip_g_"),
}
_ALONE = ("lora_te_", "lora_te1_", "text_encoder_", "lycoris_", "")
"""What a second text encoder goes by too where there is no first (SDXL's refiner)."""


@dataclass(frozen=True)
class Layer:
    """A module of a model that has weights."""

    network: str
    """`unet`, `text_encoder`, `text_encoder_2`."""
    name: str
    """Canonical, without `.weight`."""
    shape: tuple[int, ...]
    """Of its weight."""
    has_bias: bool
    block: str
    """`IN00` ... `M00` ... `OUT11`, as people who set block weights count them; `BASE` for all others."""


def split(key: str) -> tuple[str, str]:
    """A file's key -> (its layer's name with `_` for `.`, the part); the part is empty where it is none that is known.

    `unet.down_blocks.0...attn1.processor.to_q_lora.down.weight` -> (`unet_down_blocks_0...attn1_to_q`,
    `lora_down.weight`).
    """
    key = key.removeprefix("base_model.model.")
    for pattern, new in SPELLINGS:
        key = pattern.sub(new, key)
    match = _PART.match(key)
    return (match[1].replace(".", "_"), match[2]) if match else (key, "")


def by_layer(entries: Mapping[str, Entry]) -> tuple[dict[str, Parts], list[str]]:
    """(layer's foreign name -> its parts, the keys that say once more what another key said)."""
    layers: dict[str, Parts] = {}
    again = []
    for key, entry in entries.items():
        layer, part = split(key)
        parts = layers.setdefault(layer, {})
        if part in parts:
            again.append(key)
        parts[part] = entry
    return layers, again


@lru_cache(maxsize=8)
def layers_of(family: Family) -> Mapping[str, Layer]:
    """Every name, with `_` for `.`, that a layer of the family's U-Net or text encoders goes by -> that layer."""
    with without_weights():
        unet = UNet(family.denoiser)
        texts = {encoder.name: CLIPText(encoder.config) for encoder in family.text_encoders}
    table: dict[str, Layer] = {}
    depths = Depths(family.denoiser.down_depth, family.denoiser.mid_depth, family.denoiser.up_depth)
    foreign = unet_table(depths)
    for name, shape, bias in _weighted(unet):
        key = f"{name}.weight"
        entry = Entry(shape, torch.float32, _nothing)
        other = next(iter(foreign.to_foreign({key: entry})[0]), key).removesuffix(".weight")
        _add(table, Layer("unet", name, shape, bias, _block(other)), _UNET_PREFIXES, (name, other))
    first = family.text_encoders[0].name if family.text_encoders else ""
    for encoder in family.text_encoders:
        prefixes = _TEXT_PREFIXES[encoder.name]
        if encoder.name == first != "text_encoder":
            prefixes = (*prefixes, *_ALONE)
        for name, shape, bias in _weighted(texts[encoder.name]):
            # unprefixed as transformers 5 has them; `transformer.` in OneTrainer's and ComfyUI's
            names = (name, name.removeprefix("text_model."), f"transformer.{name}")
            _add(table, Layer(encoder.name, name, shape, bias, "BASE"), prefixes, names)
    return table


def _nothing() -> Tensor:
    return torch.empty(0)


def _weighted(net: nn.Module) -> Iterable[tuple[str, tuple[int, ...], bool]]:
    """(canonical name, shape of the weight, whether there is a bias) of every module that has a weight."""
    for name, module in net.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            yield name, tuple(weight.shape), module._parameters.get("bias") is not None


def _add(table: dict[str, Layer], layer: Layer, prefixes: Iterable[str], names: Iterable[str]) -> None:
    for name in dict.fromkeys(names):
        forms = [name.replace(".", "_")]
        if name.endswith(".to_out.0"):  # diffusers' processors had no list there
            forms.append(forms[0].removesuffix("_0"))
        for form in forms:
            for prefix in prefixes:
                table.setdefault(f"{prefix}{form}", layer)


def _block(foreign: str) -> str:
    """The block of a layer by its name in latent diffusion's U-Net."""
    match = re.match(r"(input|output)_blocks\.(\d+)\.", foreign)
    if match:
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"
    return "M00" if foreign.startswith("middle_block.") else "BASE"
