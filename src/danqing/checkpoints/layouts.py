"""How each foreign layout names and shapes its tensors: tables of invertible rules, applied in both directions.

The canonical form is a dictionary of component (`unet`, `vae`, `text_encoder`, `text_encoder_2`) -> {diffusers'
name: tensor}. A `Rule` pairs a foreign prefix with a canonical one; what follows the prefix is carried along. Rules
with levels and numbers in them are written out from the network's depths, so that the tables hold no arithmetic
that could differ between the two directions.

Sources of the foreign names: CompVis/latent-diffusion (`openaimodel.py`, `model.py`), mlfoundations/open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from danqing.checkpoints.files import Entry

Entries = dict[str, Entry]
Shape = tuple[int, ...]


# --- operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """An invertible change of one tensor's shape, in both directions."""

    name: str
    shape_in: Callable[[Shape], Shape] = lambda shape: shape
    shape_out: Callable[[Shape], Shape] = lambda shape: shape
    into: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Foreign to canonical."""
    out: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Canonical to foreign."""


def _turned(shape: Shape) -> Shape:
    return shape[::-1]


def _flat(shape: Shape) -> Shape:
    return shape[:2] if len(shape) > 2 and math.prod(shape[2:]) == 1 else shape


def _pixel(shape: Shape) -> Shape:
    return (*shape, 1, 1) if len(shape) == 2 else shape


KEEP = Op("keep")
TRANSPOSE = Op("transpose", _turned, _turned, lambda t: t.T.contiguous(), lambda t: t.T.contiguous())
"""Matrices that OpenCLIP multiplies from the right."""
CONV1X1 = Op(
    "1x1 convolution", _flat, _pixel, lambda t: t.reshape(_flat(t.shape)), lambda t: t.reshape(_pixel(t.shape))
)
"""Linear layers that latent diffusion writes as 1x1 convolutions; vectors (biases) pass."""
FUSED = Op("fused")
"""One foreign tensor holds several canonical ones, one below the other (OpenCLIP's in_proj)."""
CONV1D = Op(
    "1-D convolution",
    _flat,
    lambda shape: (*shape, 1) if len(shape) == 2 else shape,
    lambda t: t.reshape(_flat(t.shape)),
    lambda t: t[..., None] if t.dim() == 2 else t,
)
"""Linear layers over pixels as 1-D convolutions; vectors (biases) pass."""
HEADS = Op("heads")
"""As FUSED, of a 1-D convolution, and by heads: one head's query, key and value rows, then the next head's."""
_JOINED = (FUSED, HEADS)
HEAD = 32
"""Channels of a head wherever latent diffusion's U-Net has no text (`num_head_channels`): shapes do not tell them."""
NOWHERE = Op("nowhere")
"""Has no canonical place: a buffer that is no weight, or a part that the family does without."""


@dataclass(frozen=True)
class Rule:
    foreign: str
    canonical: tuple[str, ...]
    op: Op = KEEP


def rule(foreign: str, canonical: str | tuple[str, ...], op: Op = KEEP) -> Rule:
    return Rule(foreign, (canonical,) if isinstance(canonical, str) else canonical, op)


@dataclass(frozen=True)
class Table:
    """A component's rules. Where prefixes nest, the longest holds; where rules share a side, the first is written."""

    rules: tuple[Rule, ...]

    @cached_property
    def _by_foreign(self) -> dict[str, Rule]:
        return {rule.foreign: rule for rule in reversed(self.rules)}

    @cached_property
    def _by_canonical(self) -> dict[str, Rule]:
        return {name: rule for rule in reversed(self.rules) for name in rule.canonical}

    def to_canonical(self, entries: Mapping[str, Entry]) -> tuple[Entries, Entries]:
        """(canonical entries, those that no rule names)."""
        found: Entries = {}
        left: Entries = {}
        for key, entry in entries.items():
            rule, tail = _longest(self._by_foreign, key)
            if rule is None or rule.op is NOWHERE or (rule.op in _JOINED and (tail or not _splits(entry, rule))):
                left[key] = entry
            elif rule.op in _JOINED:
                found |= _split_heads(entry, rule.canonical) if rule.op is HEADS else _split(entry, rule.canonical)
            elif f"{rule.canonical[0]}{tail}" in found:
                left[key] = entry
            else:
                found[f"{rule.canonical[0]}{tail}"] = _changed(entry, rule.op, rule.op.shape_in, rule.op.into)
        return found, left

    def to_foreign(self, entries: Mapping[str, Entry]) -> tuple[Entries, Entries]:
        """(foreign entries, those that no rule names)."""
        found: Entries = {}
        left: Entries = {}
        for key, entry in entries.items():
            rule, tail = _longest(self._by_canonical, key)
            if rule is None or (rule.op in _JOINED and (tail or not _joins(entries, rule.canonical))):
                left[key] = entry
            elif rule.op in _JOINED:
                if key == rule.canonical[0]:
                    join = _join_heads if rule.op is HEADS else _join
                    found[rule.foreign] = join([entries[name] for name in rule.canonical])
            else:
                found[f"{rule.foreign}{tail}"] = _changed(entry, rule.op, rule.op.shape_out, rule.op.out)
        return found, left


def _longest(rules: Mapping[str, Rule], key: str) -> tuple[Rule | None, str]:
    """The rule of `key`'s longest prefix (whole names between dots), and what follows the prefix."""
    end = len(key)
    while end > 0:
        if key[:end] in rules:
            return rules[key[:end]], key[end:]
        end = key.rfind(".", 0, end)
    return (rules[""], f"{key}") if "" in rules else (None, key)


def _changed(entry: Entry, op: Op, shape: Callable[[Shape], Shape], change: Callable[[Tensor], Tensor]) -> Entry:
    return entry if op is KEEP else Entry(shape(entry.shape), entry.dtype, lambda: change(entry.load()))


def _splits(entry: Entry, rule: Rule) -> bool:
    parts, by_heads = len(rule.canonical), rule.op is HEADS
    whole = not by_heads or len(_flat(entry.shape)) <= 2
    return bool(entry.shape) and whole and entry.shape[0] % (parts * HEAD if by_heads else parts) == 0


def _joins(entries: Mapping[str, Entry], names: Iterable[str]) -> bool:
    parts = [entries.get(name) for name in names]
    return len({(part.shape, part.dtype) if part else None for part in parts}) == 1


def _split(entry: Entry, names: tuple[str, ...]) -> Entries:
    rows = entry.shape[0] // len(names)

    def part(index: int) -> Entry:
        return Entry((rows, *entry.shape[1:]), entry.dtype, lambda: entry.load().narrow(0, index * rows, rows))

    return {name: part(index) for index, name in enumerate(names)}


def _join(parts: list[Entry]) -> Entry:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Entry(shape, parts[0].dtype, lambda: torch.cat([part.load() for part in parts]))


def _split_heads(entry: Entry, names: tuple[str, ...]) -> Entries:
    rows = entry.shape[0] // len(names)

    def part(index: int) -> Entry:
        def load() -> Tensor:
            whole = entry.load()
            return whole.reshape(-1, len(names), HEAD, *whole.shape[1:2])[:, index].flatten(0, 1)

        return Entry((rows, *entry.shape[1:2]), entry.dtype, load)

    return {name: part(index) for index, name in enumerate(names)}


def _join_heads(parts: list[Entry]) -> Entry:
    rows, *columns = parts[0].shape

    def load() -> Tensor:
        heads = torch.stack([part.load().reshape(-1, HEAD, *columns) for part in parts], 1).flatten(0, 2)
        return heads[..., None] if columns else heads

    return Entry((rows * len(parts), *columns, *([1] if columns else [])), parts[0].dtype, load)


# --- latent diffusion's U-Net -----------------------------------------------------------------------------------------

_UNET_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_UNET_ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)


@dataclass(frozen=True)
class Depths:
    """How many transformer blocks follow each residual block (0: none): all that the names' arithmetic needs."""

    down: tuple[tuple[int, ...], ...]
    mid: int | None
    up: tuple[tuple[int, ...], ...]
    plain: bool = False
    """Whether attention stands in the transformers' place, as where there is no text."""


def count_children(keys: Iterable[str], prefix: str) -> int:
    """How many numbered children `prefix` has: `prefix.0`, `prefix.1` ..."""
    return len({key[len(prefix) + 1 :].split(".", 1)[0] for key in keys if key.startswith(f"{prefix}.")})


def unet_depths(keys: Mapping[str, Shape]) -> Depths:
    """The depths of a latent-diffusion U-Net, read off its names (without their `model.diffusion_model.`)."""
    parts = _by_block(keys)

    def depth(block: str) -> int:
        part = parts.get(block, {})
        return count_children(part, f"{block}.1.transformer_blocks") or int(f"{block}.1.qkv.weight" in part)

    down: list[list[int]] = [[]]
    for i in range(1, 200):
        block = f"input_blocks.{i}"
        if f"{block}.0.op.weight" in keys:
            down.append([])
        elif f"{block}.0.in_layers.2.weight" in keys:
            down[-1].append(depth(block))
        else:
            break
    up: list[list[int]] = [[]]
    for i in range(200):
        block = f"output_blocks.{i}"
        if f"{block}.0.in_layers.2.weight" not in keys:
            break
        up[-1].append(depth(block))
        if f"{block}.1.conv.weight" in keys or f"{block}.2.conv.weight" in keys:
            up.append([])
    mid = None
    if "middle_block.0.in_layers.2.weight" in keys:
        part = parts.get("middle_block.1", {})
        mid = count_children(part, "middle_block.1.transformer_blocks") or int("middle_block.1.qkv.weight" in part)
    plain = any(key.endswith(".1.qkv.weight") for key in keys)
    return Depths(tuple(map(tuple, down)), mid, tuple(map(tuple, up)), plain)


def _by_block(keys: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Keys by their first two names, so that counting looks at a block's own only."""
    parts: dict[str, dict[str, Shape]] = {}
    for key, shape in keys.items():
        parts.setdefault(".".join(key.split(".", 2)[:2]), {})[key] = shape
    return parts


def unet_table(depths: Depths) -> Table:
    """Latent diffusion's U-Net (SD 1.x, 2.x, XL, refiner, inpainting ...) to diffusers' UNet2DConditionModel.

    Its input blocks count residual blocks and downsamplers together; its output blocks count residual blocks, each
    with its transformer and, at a level's end, the upsampler behind them.
    """
    rules = [rule(*pair) for pair in _UNET_ENDS]

    def resnet(foreign: str, canonical: str) -> None:
        rules.extend(rule(f"{foreign}.{a}", f"{canonical}.{b}") for a, b in _UNET_RESNET)

    def attention(foreign: str, canonical: str) -> None:
        if not depths.plain:
            rules.append(rule(foreign, canonical))
            return
        rules.append(rule(f"{foreign}.norm", f"{canonical}.group_norm"))
        rules.append(rule(f"{foreign}.proj_out", f"{canonical}.to_out.0", CONV1D))
        for kind in ("weight", "bias"):
            names = tuple(f"{canonical}.to_{part}.{kind}" for part in "qkv")
            rules.append(rule(f"{foreign}.qkv.{kind}", names, HEADS))

    block = 1
    for level, blocks in enumerate(depths.down):
        for j, depth in enumerate(blocks):
            resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{j}")
            if depth:
                attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{j}")
            block += 1
        rules.append(rule(f"input_blocks.{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
        block += 1
    if depths.mid is not None:
        resnet("middle_block.0", "mid_block.resnets.0")
        if depths.mid:
            attention("middle_block.1", "mid_block.attentions.0")
        resnet("middle_block.2", "mid_block.resnets.1")
    block = 0
    for level, blocks in enumerate(depths.up):
        for j, depth in enumerate(blocks):
            resnet(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{j}")
            if depth:
                attention(f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{j}")
            if j == len(blocks) - 1:
                place = 2 if depth else 1
                rules.append(rule(f"output_blocks.{block}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
            block += 1
    return Table(tuple(rules))


# --- what steers a U-Net by a picture ---------------------------------------------------------------------------------

_UNION = ("task_embedding", "transformer_layes", "spatial_ch_projs", "control_add_embedding")


def controlnet_table(depths: Depths, hint_layers: int) -> Table:
    """ControlNet's own layout (lllyasviel/ControlNet, `cldm.py`) to diffusers' ControlNetModel.

    Its hint's `hint_layers` convolutions are counted with the activations between them. Union networks have no layout
    but diffusers', whose names for their own parts are kept.
    """
    skips = sum(len(blocks) + 1 for blocks in depths.down)  # the first convolution stands for the last downsampler
    embedding, last = "controlnet_cond_embedding", hint_layers - 1
    hint = {0: "conv_in", last: "conv_out"} | {i: f"blocks.{i - 1}" for i in range(1, last)}
    return Table(
        (
            *unet_table(depths).rules,
            *(rule(f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}") for i in range(skips)),
            rule("middle_block_out.0", "controlnet_mid_block"),
            *(rule(f"input_hint_block.{2 * i}", f"{embedding}.{name}") for i, name in hint.items()),
            *(rule(name, name) for name in _UNION),
        )
    )


def t2i_adapter_table(layers: int, light: bool) -> Table:
    """T2I-Adapter's own layout (TencentARC/T2I-Adapter, `adapter.py`) to what diffusers' T2IAdapter has within.

    Its full adapters count the residual blocks of all levels through, `layers` to a level; its light ones do not.
    """
    if light:
        rules = [rule(f"body.{i}.body", f"body.{i}.resnets") for i in range(4)]
        return Table((rule("", ""), *rules))
    rules = [rule("conv_in", "conv_in")]
    for i in range(4):
        rules.append(rule(f"body.{layers * i}.in_conv", f"body.{i}.in_conv"))
        rules += [rule(f"body.{layers * i + j}", f"body.{i}.resnets.{j}") for j in range(layers)]
    return Table(tuple(rules))


# --- latent diffusion's autoencoder -----------------------------------------------------------------------------------

_VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def vae_table(levels: int, layers: int) -> Table:
    """Latent diffusion's autoencoders, KL and VQ, to diffusers'; the decoder counts its levels the other way."""
    rules = [rule(name, name) for name in ("quant_conv", "post_quant_conv", "quantize")]

    def resnet(foreign: str, canonical: str) -> None:
        rules.append(rule(foreign, canonical))
        rules.append(rule(f"{foreign}.nin_shortcut", f"{canonical}.conv_shortcut"))

    for part in ("encoder", "decoder"):
        rules += [rule(f"{part}.{name}", f"{part}.{name}") for name in ("conv_in", "conv_out")]
        rules.append(rule(f"{part}.norm_out", f"{part}.conv_norm_out"))
        for j in (0, 1):
            resnet(f"{part}.mid.block_{j + 1}", f"{part}.mid_block.resnets.{j}")
        for a, b in _VAE_ATTENTION:
            op = KEEP if a == "norm" else CONV1X1
            rules.append(rule(f"{part}.mid.attn_1.{a}", f"{part}.mid_block.attentions.0.{b}", op))
    for i in range(levels):
        up = levels - 1 - i
        for j in range(layers):
            resnet(f"encoder.down.{i}.block.{j}", f"encoder.down_blocks.{i}.resnets.{j}")
        for j in range(layers + 1):
            resnet(f"decoder.up.{up}.block.{j}", f"decoder.up_blocks.{i}.resnets.{j}")
        rules.append(rule(f"encoder.down.{i}.downsample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"))
        rules.append(rule(f"decoder.up.{up}.upsample.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv"))
    return Table(tuple(rules))


def vae_levels(keys: Mapping[str, Shape]) -> tuple[int, int]:
    """(levels, residual blocks per encoder level) of a latent-diffusion autoencoder, read off its names."""
    return count_children(keys, "encoder.down") or count_children(keys, "decoder.up"), (
        count_children(keys, "encoder.down.0.block") or max(count_children(keys, "decoder.up.0.block") - 1, 0)
    )


DIFFUSERS_VAE = Table(
    (
        rule("", ""),
        *(
            rule(f"{part}.mid_block.attentions.0.{a}", f"{part}.mid_block.attentions.0.{b}", CONV1X1)
            for part in ("encoder", "decoder")
            for a, b in ((b, b) for _, b in _VAE_ATTENTION[1:])
        ),
        *(
            rule(f"{part}.mid_block.attentions.0.{a}", f"{part}.mid_block.attentions.0.{b}", CONV1X1)
            for part in ("encoder", "decoder")
            for a, b in _OLD_ATTENTION
        ),
    )
)
"""diffusers' own autoencoder, with the attention's names from before its version 0.17."""


def diffusers_unet_table(keys: Iterable[str]) -> Table:
    """diffusers' own U-Nets; without text, with their attentions' names from before its version 0.17 if so in `keys`."""
    places = sorted({key.removesuffix(".query.weight") for key in keys if key.endswith(".query.weight")})
    old = (rule(f"{place}.{a}", f"{place}.{b}", CONV1X1) for place in places for a, b in _OLD_ATTENTION)
    return Table((rule("", ""), *old))


# --- text encoders ----------------------------------------------------------------------------------------------------

_TEXT_PARTS = ("embeddings", "encoder", "final_layer_norm")


def clip_table(bare: bool, projection: bool) -> Table:
    """transformers' CLIPTextModel; `bare` is without `text_model.` (old files, and those of transformers 5)."""
    prefix = "" if bare else "text_model."
    return Table(
        (
            *(rule(f"{prefix}{part}", f"text_model.{part}") for part in _TEXT_PARTS),
            rule(f"{prefix}embeddings.position_ids", (), NOWHERE),
            *([rule("text_projection", "text_projection")] if projection else []),
        )
    )


_RESBLOCK = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
)


def open_clip_table(layers: int, projection: bool) -> Table:
    """OpenCLIP's text tower to transformers' CLIPTextModelWithProjection.

    `layers` may be fewer than the file has (SD 2.x uses 23 of 24): no rule names the others.
    """
    rules = [
        rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        rule("ln_final", "text_model.final_layer_norm"),
    ]
    if projection:
        rules.append(rule("text_projection", "text_projection.weight", TRANSPOSE))
        rules.append(rule("text_projection.weight", "text_projection.weight"))
    return Table((*rules, *_resblocks(layers, "text_model")))


def open_clip_vision_table(layers: int) -> Table:
    """OpenCLIP's image tower, without its `visual.`, to transformers' CLIPVisionModelWithProjection."""
    rules = [
        rule("class_embedding", "vision_model.embeddings.class_embedding"),
        rule("conv1", "vision_model.embeddings.patch_embedding"),
        rule("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        rule("ln_pre", "vision_model.pre_layrnorm"),
        rule("ln_post", "vision_model.post_layernorm"),
        rule("proj", "visual_projection.weight", TRANSPOSE),
    ]
    return Table((*rules, *_resblocks(layers, "vision_model")))


def _resblocks(layers: int, tower: str) -> list[Rule]:
    """OpenCLIP's layers, alike in both towers."""
    rules = []
    for i in range(layers):
        foreign, canonical = f"transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
        rules += [rule(f"{foreign}.{a}", f"{canonical}.{b}") for a, b in _RESBLOCK]
        for kind in ("weight", "bias"):
            names = tuple(f"{canonical}.self_attn.{part}_proj.{kind}" for part in "qkv")
            rules.append(rule(f"{foreign}.attn.in_proj_{kind}", names, FUSED))
    return rules


# --- EMA --------------------------------------------------------------------------------------------------------------

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."


def ema_name(key: str) -> str:
    """Where latent diffusion keeps the moving average of `model.diffusion_model.KEY`: all dots but the first gone."""
    return f"{EMA_PREFIX}diffusion_model{key.replace('.', '')}"
