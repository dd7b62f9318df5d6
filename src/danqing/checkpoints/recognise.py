"""What a file is, from its names and shapes alone: the kind of thing, the configurations, the family.

Everything here is a table or reads one. Nothing reads tensor data but `prediction_of`, which looks at one small
named tensor when a Stable Diffusion 2 file leaves its prediction type in doubt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from danqing.checkpoints.layouts import HEAD, Shape, count_children
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Family, Prediction, Process
from danqing.models.autoencoder import AutoencoderConfig
from danqing.models.clip import CLIPTextConfig
from danqing.models.unet import UNetConfig

FAMILY_KEY = "danqing.family"
"""The safetensors metadata key under which Danqing's own files carry their family's row."""
TOKENIZER_KEY = "danqing.tokenizer."
"""With a text encoder's name behind it: the metadata key of a vocabulary of its own, the texts of its files as JSON."""


# --- kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, what to call it, and a pattern that one of its keys matches."""

    name: str
    title: str
    pattern: str
    advice: str = ""


KINDS: tuple[Kind, ...] = (
    Kind(
        "controlnet",
        "a ControlNet",
        r"(^|control_model\.)(zero_convs|input_hint_block)\.0\.|^controlnet_|^lora_controlnet$",
    ),
    Kind("ip-adapter", "an IP-Adapter", r"^(ip_adapter|image_proj)\.", "use it by --image-prompts"),
    Kind("photomaker", "a PhotoMaker", r"^id_encoder\.", "use it by --image-prompts"),
    Kind(
        "lora",
        "a LoRA",
        r"[._]lora_(down|up|mid|A|B)\b|_lora\.(down|up)\.|lora_linear_layer|^lora_(unet|te\d?)_|^lycoris_"
        r"|\.(hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_(blocks|diag)|dora_scale|lora_magnitude_vector)$",
        "use it as an adapter: <lora:name:1> in the prompt",
    ),
    Kind("lllite", "a ControlNet-LLLite", r"^lllite_unet_"),
    Kind("t2i-adapter", "a T2I-Adapter", r"^(adapter\.)?body\.0\.(in_conv|resnets|block1)\.|^style_embedding$"),
    Kind(
        "hypernetwork",
        "a hypernetwork",
        r"^\d+\.[01]\.linear",
        "use it as an adapter: <hypernet:name:1> in the prompt",
    ),
    Kind(
        "embedding",
        "a textual inversion embedding",
        r"^string_to_param\.|^emb_params$|^clip_[lg]$|^text_encoders_[01]$",
        "put it into the folder embeddings, and its name into a prompt",
    ),
    Kind(
        "taesd",
        "a TAESD preview decoder",
        r"^taesd_(en|de)coder\.|^(encoder|decoder)\.layers\.\d+\.conv\.0\.|^\d\.conv\.0\.weight$",
    ),
    Kind(
        "upscaler", "an upscaler", r"^(conv_first|model\.0|RRDB_trunk\.0\.RDB1\.conv1\.0|body\.0\.rdb1\.conv1)\.weight$"
    ),
    Kind("animatediff", "an AnimateDiff motion module", r"motion_modules\.0\."),
    Kind("sd3", "a Stable Diffusion 3 model", r"joint_blocks\.0\."),
    Kind("chroma", "a Chroma model", r"distilled_guidance_layer\."),
    Kind("flux", "a Flux model", r"double_blocks\.0\.|single_transformer_blocks\.0\."),
    Kind("pixart", "a PixArt model", r"(^|diffusion_model\.)t_block\.1\.weight|^adaln_single\."),
    Kind("auraflow", "an AuraFlow model", r"double_layers\.0\.attn\.w1q"),
    Kind("cascade", "a Stable Cascade model", r"^clip_txt_mapper\.|^down_blocks\.1\.0\.channelwise\."),
    Kind("lumina", "a Lumina or Z-Image model", r"(^|diffusion_model\.)cap_embedder\.0\.weight"),
    Kind("video", "a Stable Video Diffusion model", r"diffusion_model\.input_blocks\.\d+\.\d+\.time_stack\."),
    Kind("depth", "a depth-to-image model", r"^depth_model\."),
    Kind("unclip", "an unCLIP model", r"^embedder\.model\.|^noise_augmentor\."),
    Kind("altdiffusion", "an AltDiffusion model", r"^cond_stage_model\.roberta\."),
    Kind("upscale", "a Stable Diffusion upscaling model", r"^model\.diffusion_model\.label_emb\.weight$"),
    Kind("ldsr", "a latent-diffusion upscaler", r"^first_stage_model\.quantize\.embedding\.weight$"),
    Kind("checkpoint", "a checkpoint", r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$"),
    Kind(
        "denoiser",
        "a U-Net alone",
        r"^input_blocks\.0\.0\.weight$|^(unet\.)?down_blocks\.0\.resnets\.0\.",
        "a whole checkpoint has text encoders and an autoencoder too",
    ),
    Kind(
        "autoencoder",
        "a VAE alone",
        r"^((first_stage_model|vae|model)\.)?decoder\.conv_in\.weight$",
        "give it by --vae",
    ),
    Kind(
        "clip-vision",
        "a CLIP image tower",
        r"^vision_model\.encoder\.layers\.0\.|^visual\.transformer\.resblocks\.0\.",
        "image prompts look through it: give it by their encoder",
    ),
    Kind(
        "text encoder",
        "a text encoder alone",
        r"text_model\.encoder\.layers\.0\.|^encoder\.layers\.0\.self_attn\.|resblocks\.0\.attn\.in_proj|^encoder\.block\.0\.layer\.0\.SelfAttention",
    ),
    Kind("other", "a diffusion model of an architecture that Danqing does not know", r"^model\.diffusion_model\."),
)
"""First come, first served."""

CHECKPOINTS = frozenset(["checkpoint", "ldsr"])
"""Whole models: a U-Net with all that it needs."""

FUTURE = frozenset(
    [
        "animatediff",
        "sd3",
        "chroma",
        "flux",
        "pixart",
        "auraflow",
        "cascade",
        "lumina",
        "video",
        "depth",
        "unclip",
        "altdiffusion",
        "upscale",
    ]
)
"""Recognised, but not supported by this version."""


def kind_of(shapes: Mapping[str, Shape]) -> Kind:
    """The kind of a file with these tensors; of name `unknown` if no row fits."""
    names = "\n".join(shapes)
    for kind in KINDS:
        if re.search(kind.pattern, names, re.MULTILINE):
            return kind
    if len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in (768, 1024, 1280) for s in shapes.values()):
        return Kind("embedding", "a textual inversion embedding", "")
    return Kind("unknown", "a file of tensors of a kind that Danqing does not know", "")


def require_checkpoint(path: Path, kind: Kind) -> None:
    """Raises DanqingError unless `kind` is a whole model; the line says what the file is."""
    if kind.name in CHECKPOINTS:
        return
    if kind.name in FUTURE:
        raise DanqingError(f"{path}: is {kind.title}, which this version does not support yet")
    raise DanqingError(f"{path}: is {kind.title}, not a checkpoint" + (f"; {kind.advice}" if kind.advice else ""))


# --- configurations from shapes ---------------------------------------------------------------------------------------


def _need(shapes: Mapping[str, Shape], key: str, rank: int) -> Shape:
    shape = shapes.get(key)
    if shape is None or len(shape) != rank:
        raise DanqingError(f"tensor '{key}' is {'missing' if shape is None else f'of shape {list(shape)}'}")
    return shape


def unet_config(shapes: Mapping[str, Shape], pooled: int | None = None, half: bool = False) -> UNetConfig:
    """The U-Net that has these canonical names and shapes; `pooled` is the pooled text vector's width if known.

    With `half` they are a way down and a middle alone, as a ControlNet's: the way up is taken to mirror them, and the
    context's width is 0 if no transformer tells it.

    Shapes do not tell the heads: SD 1.x has 8 everywhere, later families one for each 64 channels, and one without text
    one for each 32. Norm groups are 32 in all of them, where that divides the channels. Raises DanqingError if a name
    that all of them have is missing, or if it takes no text and no picture of its output's channels either.
    """
    plain = any(key.endswith(".attentions.0.to_q.weight") for key in shapes)

    def depths(block: str) -> tuple[int, ...]:
        part = {key: shape for key, shape in shapes.items() if key.startswith(f"{block}.")}
        return tuple(
            count_children(part, f"{block}.attentions.{j}.transformer_blocks")
            or int(f"{block}.attentions.{j}.to_q.weight" in part)
            for j in range(count_children(part, f"{block}.resnets"))
        )

    levels = count_children(shapes, "down_blocks")
    channels = tuple(_need(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels))
    middle = depths("mid_block")
    contexts = {shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight") and len(shape) == 2}
    ends = _need(shapes, "conv_in.weight", 4)[1], 4 if half else _need(shapes, "conv_out.weight", 4)[0]
    if plain and ends[0] != 2 * ends[1]:
        raise DanqingError(f"its U-Net takes no text, and {ends[0]} channels: it is no upscaler")
    if len(contexts) != (0 if plain else 1) and not (half and not contexts):
        raise DanqingError(f"its cross-attention layers take contexts of {len(contexts)} different widths")
    linear = any(len(shape) == 2 for key, shape in shapes.items() if key.endswith(".proj_in.weight"))
    added = shapes.get("add_embedding.linear_1.weight", (0, 0))[-1]
    pooled_width, size_ids = _pooled_and_ids(added, pooled)
    down = tuple(depths(f"down_blocks.{i}") for i in range(levels))
    up = tuple(depths(f"up_blocks.{i}") for i in range(count_children(shapes, "up_blocks")))
    try:
        return UNetConfig(
            in_channels=ends[0],
            out_channels=ends[1],
            channels=channels,
            down_depth=down,
            mid_depth=middle[0] if middle else None,
            up_depth=tuple((*blocks, *blocks[-1:]) for blocks in reversed(down)) if half else up,
            heads=tuple(max(1, c // (HEAD if plain else 64)) for c in channels) if linear or plain else (8,) * levels,
            context_width=contexts.pop() if contexts else 0,
            linear_projection=linear,
            pooled_width=pooled_width,
            size_ids=size_ids,
            groups=math.gcd(32, *channels),
            guidance_width=shapes.get("time_embedding.cond_proj.weight", (0, 0))[-1],
        )
    except ValueError as error:
        raise DanqingError(f"its U-Net is incomplete: {error}") from error


def _pooled_and_ids(width: int, pooled: int | None) -> tuple[int, int]:
    """(pooled width, size ids) of SDXL's added embedding: 1280 + 6 * 256 for the base, 1280 + 5 * 256 for the refiner."""
    for ids in (6, 5):
        if width - ids * 256 == (1280 if pooled is None else pooled):
            return width - ids * 256, ids
    return width, 0


def vae_config(shapes: Mapping[str, Shape]) -> AutoencoderConfig:
    """The autoencoder that has these canonical names and shapes. Raises DanqingError if one is missing."""
    levels = count_children(shapes, "encoder.down_blocks")
    channels = tuple(_need(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels))
    return AutoencoderConfig(
        channels=channels,
        groups=math.gcd(32, *channels),
        layers=count_children(shapes, "encoder.down_blocks.0.resnets"),
        latent_channels=_need(shapes, "decoder.conv_in.weight", 4)[1],
        quant_convolutions="post_quant_conv.weight" in shapes,
        codebook=shapes.get("quantize.embedding.weight", (0,))[0],
    )


def clip_config(shapes: Mapping[str, Shape], activation: str) -> CLIPTextConfig:
    """The text tower that has these canonical names and shapes; CLIP's heads have 64 channels each."""
    vocabulary, width = _need(shapes, "text_model.embeddings.token_embedding.weight", 2)
    return CLIPTextConfig(
        vocabulary=vocabulary,
        width=width,
        intermediate=_need(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=count_children(shapes, "text_model.encoder.layers"),
        heads=max(1, width // 64),
        positions=_need(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        activation=activation,
        projection=shapes.get("text_projection.weight", (None,))[0],
        end_token=vocabulary - 1,
    )


# --- families ---------------------------------------------------------------------------------------------------------

_Config = TypeVar("_Config", UNetConfig, AutoencoderConfig, CLIPTextConfig)
_UNTOLD: dict[type, tuple[str, ...]] = {
    UNetConfig: ("heads", "groups", "pooled_width", "size_ids", "size_id_width"),
    AutoencoderConfig: ("groups", "scale", "shift", "mean", "std"),
    CLIPTextConfig: ("heads", "activation", "end_token"),
}
"""What shapes do not tell, or not alone."""


_STYLE: dict[type, tuple[str, ...]] = {
    UNetConfig: (),
    AutoencoderConfig: ("scale", "shift", "mean", "std"),
    CLIPTextConfig: ("activation",),
}
"""What a network of unusual size still has in common with its family."""


def _taken(config: _Config, known: _Config, names: Mapping[type, tuple[str, ...]]) -> _Config:
    changes = {name: getattr(known, name) for name in names[type(config)]}
    if isinstance(config, UNetConfig) and "heads" in changes and len(changes["heads"]) != len(config.channels):
        changes.pop("heads")  # a U-Net of fewer or more levels has its own
    return replace(config, **changes)


def _fits(config: _Config, known: _Config, exact: bool) -> bool:
    """Whether `config` is `known`, as far as one can tell."""
    if exact or config == known:
        return config == known
    if isinstance(config, UNetConfig) and isinstance(known, UNetConfig) and _added(config) != _added(known):
        return False
    return _taken(config, known, _UNTOLD) == known


def _added(config: UNetConfig) -> int:
    return config.pooled_width + config.size_ids * config.size_id_width


@dataclass(frozen=True)
class Configs:
    """The configurations of a checkpoint's networks. `None`: not in the file."""

    unet: UNetConfig
    vae: AutoencoderConfig | None
    text: Mapping[str, CLIPTextConfig]
    exact: frozenset[str] = frozenset()
    """The components whose configuration came with them whole; of the others it is read off their shapes."""


def differences(family: Family, found: Configs) -> list[str]:
    """Where what was found is not `family`'s, in words: at most one line a network."""
    rows: dict[str, Any] = {"unet": family.denoiser, "vae": family.autoencoder}
    rows |= {encoder.name: encoder.config for encoder in family.text_encoders}
    lines = [f"{name} is not part of it" for name in found.text if name not in rows]
    for name, config in {"unet": found.unet, "vae": found.vae, **found.text}.items():
        if config is None or name not in rows or _fits(config, rows[name], name in found.exact):
            continue
        full = config if name in found.exact else _taken(config, rows[name], _UNTOLD)
        pairs = [(part.name, getattr(full, part.name), getattr(rows[name], part.name)) for part in fields(full)]
        part, here, there = next(
            (pair for pair in pairs if pair[1] != pair[2]), ("added embedding", "other", "the same")
        )
        lines.append(f"{name}: {part} is {here}, not {there}")
    return lines


def _kin(found: Configs) -> list[Family]:
    """The families that a network of unusual size is most like."""
    unet = found.unet
    if not unet.context_width:
        base = FAMILIES["ldsr"]
    elif unet.size_ids or unet.pooled_width or "text_encoder_2" in found.text:
        base = FAMILIES["sdxl-refiner" if "text_encoder" not in found.text and found.text else "sdxl"]
    else:
        base = FAMILIES["sd2" if unet.linear_projection else "sd1"]
    extra = unet.in_channels - unet.out_channels
    same = [row for row in FAMILIES.values() if row.text_encoders == base.text_encoders]
    return [row for row in same if row.denoiser.in_channels - row.denoiser.out_channels == extra] or [base]


def adapted(family: Family, found: Configs) -> Family:
    """`family` with the sizes that were found; `family` itself where they are its own."""

    def sized(name: str, known: _Config, config: _Config | None) -> _Config:
        if config is None or _fits(config, known, name in found.exact):
            return known
        return config if name in found.exact else _taken(config, known, _STYLE)

    encoders = tuple(
        replace(row, config=sized(row.name, row.config, found.text.get(row.name))) for row in family.text_encoders
    )
    return replace(
        family,
        denoiser=sized("unet", family.denoiser, found.unet),
        autoencoder=sized("vae", family.autoencoder, found.vae),
        text_encoders=encoders,
    )


def family_rows(found: Configs) -> list[Family]:
    """The rows that these networks may belong to, the likeliest first; a row made to measure if none fits."""
    rows = [row for row in FAMILIES.values() if not differences(row, found)]
    return rows or [adapted(row, found) for row in _kin(found)]


def with_process(rows: list[Family], process: Process) -> Family:
    """The row that has this process, or is nearest to having it and gets it."""
    same = [row for row in rows if row.process == process]
    alike = [row for row in rows if row.process.prediction == process.prediction]
    family = (same or alike or rows)[0]
    return family if family.process == process else replace(family, process=process)


_FAMILY_JSON = TypeAdapter(Family)


def family_json(family: Family) -> str:
    """`family` as the JSON that Danqing's own files carry."""
    return _FAMILY_JSON.dump_json(family).decode()


def family_from_json(text: str, where: str) -> Family:
    """The inverse of `family_json`. Raises DanqingError if `text` is none."""
    try:
        return _FAMILY_JSON.validate_json(text)
    except (ValidationError, ValueError) as error:
        raise DanqingError(f"{where}: its metadata '{FAMILY_KEY}' is damaged: {str(error).splitlines()[0]}") from error


# --- prediction type --------------------------------------------------------------------------------------------------

_WORDS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "sample": "sample",
    "x0": "sample",
    "flow": "flow",
    "flow_prediction": "flow",
    "edm": "edm",
}
DOUBTFUL_TENSOR = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
"""In SD 2.x its standard deviation is above 0.09 in v-prediction models and below in the others (ComfyUI's test)."""


def prediction_word(word: str, where: str) -> Prediction:
    """The prediction type that tools call `word`. Raises DanqingError if none does."""
    if word.casefold() not in _WORDS:
        raise DanqingError(
            f"{where}: prediction type '{word[:40]}' is unknown; choose one of: epsilon, v, sample, flow, edm"
        )
    return _WORDS[word.casefold()]


@dataclass(frozen=True)
class Evidence:
    """All that may tell a checkpoint's prediction type."""

    path: Path
    marks: frozenset[str] = frozenset()
    """Marker tensors: `v_pred`, `ztsnr`, `edm_mean`, `edm_vpred.sigma_max`."""
    metadata: Mapping[str, str] | None = None
    scheduler: Mapping[str, Any] | None = None
    read: Callable[[], Tensor] | None = None
    """`DOUBTFUL_TENSOR`, of a Stable Diffusion 2 that could be either."""


MARKS = frozenset({"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"})


def process_of(evidence: Evidence, base: Process) -> tuple[Process, str]:
    """(process, how it is known). Configurations and metadata come before guesses.

    Sources in this order: diffusers' scheduler, marker tensors, modelspec metadata, AUTOMATIC1111's `.yaml` beside
    the file, the named tensor, the family's usual. Raises DanqingError for a configuration Danqing has no process for.
    """
    if evidence.scheduler:
        return _scheduled(evidence, base), "scheduler_config.json"
    if "edm_vpred.sigma_max" in evidence.marks:
        raise DanqingError(f"{evidence.path}: is a v-prediction EDM model, which this version does not support yet")
    if "edm_mean" in evidence.marks:
        return replace(base, prediction="edm"), "marker edm_mean"
    if "v_pred" in evidence.marks:
        zero = "ztsnr" in evidence.marks
        return replace(base, prediction="v", zero_terminal_snr=zero), "marker v_pred" + (" with ztsnr" if zero else "")
    metadata = evidence.metadata or {}
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        word = metadata.get(key, "").casefold()
        if word in _WORDS:
            return replace(base, prediction=_WORDS[word]), f"metadata {key}"
    if metadata.get("modelspec.architecture", "").endswith("768-v"):
        return replace(base, prediction="v"), "metadata modelspec.architecture"
    side = evidence.path.with_suffix(".yaml")
    if evidence.path.is_file() and side.is_file() and side.stat().st_size < 1 << 20:
        text = side.read_text("utf-8", "replace")
        is_v = re.search(r"^\s*parameterization\s*:\s*[\"']?v[\"']?\s*(#.*)?$", text, re.MULTILINE) is not None
        return replace(base, prediction="v" if is_v else "epsilon"), side.name
    if evidence.read is not None:
        spread = float(evidence.read().float().std())
        return replace(base, prediction="v" if spread > 0.09 else "epsilon"), f"{DOUBTFUL_TENSOR} spreads {spread:.3f}"
    return base, "the family's usual"


def _scheduled(evidence: Evidence, base: Process) -> Process:
    config, where = dict(evidence.scheduler or {}), f"{evidence.path}: scheduler_config.json"
    word = str(config.get("prediction_type", "epsilon"))
    name = str(config.get("_class_name", ""))
    if name.startswith("EDM"):
        return replace(base, prediction="edm", sigma_data=_number(config, "sigma_data", base.sigma_data, where))
    if name.startswith("FlowMatch") or word == "flow_prediction":
        return replace(base, prediction="flow", shift=_number(config, "shift", 1.0, where))
    schedule = config.get("beta_schedule", "scaled_linear")
    if schedule != "scaled_linear" or config.get("trained_betas") is not None:
        raise DanqingError(f"{where}: beta_schedule '{schedule}' is not supported; only scaled_linear is")
    return replace(
        base,
        prediction=prediction_word(word, where),
        steps=int(_number(config, "num_train_timesteps", base.steps, where)),
        beta_start=_number(config, "beta_start", base.beta_start, where),
        beta_end=_number(config, "beta_end", base.beta_end, where),
        zero_terminal_snr=config.get("rescale_betas_zero_snr") is True,
    )


def _number(config: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = config.get(key, default)
    if not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise DanqingError(f"{where}: {key} should be a number above 0, not {str(value)[:40]}")
    return float(value)
