"""diffusers' and transformers' configuration files, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from danqing.errors import DanqingError
from danqing.families import Family, TextEncoder
from danqing.models.autoencoder import AutoencoderConfig
from danqing.models.clip import CLIPTextConfig
from danqing.models.unet import UNetConfig

Config = Mapping[str, Any]

_UNET_PLAIN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "addition_embed_type": (None, "text_time"),
    "center_input_sample": (False,),
    "dual_cross_attention": (False,),
    "only_cross_attention": (False,),
    "time_embedding_type": ("positional",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "time_embedding_act_fn": (None,),
    "attention_type": ("default",),
}
"""What of diffusers' U-Net options a Stable Diffusion U-Net has; any other value is another network."""


def _plain(config: Config, allowed: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for key, values in allowed.items():
        value = config.get(key, values[0])
        if isinstance(value, (dict, list)) or value not in values:
            raise DanqingError(f"{where}: option {key} = {str(value)[:60]} is not supported by this version")


def _whole(config: Config, key: str, default: int, where: str) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value < 1 << 20:
        raise DanqingError(f"{where}: {key} should be a whole number above 0, not {str(value)[:40]}")
    return value


def exact_unet(derived: UNetConfig, config: Config, pooled: int | None, where: str) -> UNetConfig:
    """What shapes tell of the U-Net, completed by its `config.json`. Raises DanqingError for unsupported options.

    `pooled` is the pooled text vector's width, where the text encoder is there to tell.
    diffusers' `attention_head_dim` is the number of heads, by an old mistake that all its files carry on; only in a
    U-Net without text is it what it says.
    """
    _plain(config, _UNET_PLAIN, where)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if not derived.context_width:
        _plain(
            config, {"downsample_type": ("conv",), "upsample_type": ("conv",), "attn_norm_num_groups": (None,)}, where
        )
        width = _whole(config, "attention_head_dim", 8, where)
        heads = [max(c // width, 1) for c in derived.channels]
    heads = list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(derived.channels)
    suited = len(heads) == len(derived.channels) and all(type(h) is int and h > 0 for h in heads)
    if not suited or any(c % h for c, h in zip(derived.channels, heads)):
        raise DanqingError(f"{where}: {str(heads)[:60]} heads do not suit {list(derived.channels)} channels")
    groups = _whole(config, "norm_num_groups", 32, where)
    if any(c % groups for c in derived.channels):
        raise DanqingError(f"{where}: {groups} norm groups do not suit {list(derived.channels)} channels")
    changes: dict[str, Any] = {"heads": tuple(heads), "groups": groups}
    if config.get("addition_embed_type") == "text_time":
        width = _whole(config, "addition_time_embed_dim", 256, where)
        added = derived.pooled_width + derived.size_ids * derived.size_id_width
        vector, ids = _shared(added, width, pooled or 1280)
        changes |= {"pooled_width": vector, "size_ids": ids, "size_id_width": width}
    return replace(derived, **changes)


def _shared(added: int, width: int, pooled: int) -> tuple[int, int]:
    """(pooled width, size ids): how the added embedding's input divides. SD 1.x's kin may have a pooled vector alone."""
    for ids in (6, 5, 0):
        if added - ids * width == pooled:
            return pooled, ids
    return max(added - 6 * width, 0), 6


def exact_vae(derived: AutoencoderConfig, config: Config, where: str) -> AutoencoderConfig:
    """What shapes tell of the autoencoder, completed by `vae/config.json`."""
    where = f"{where}: vae/config.json"
    _plain(config, {"act_fn": ("silu", "swish"), "mid_block_add_attention": (True,)}, where)
    changes: dict[str, Any] = {"groups": _whole(config, "norm_num_groups", 32, where)}
    if derived.codebook:  # diffusers writes a scaling factor for these too, and does not use it
        _plain(config, {"norm_type": ("group",), "lookup_from_codebook": (False,)}, where)
        return replace(derived, **changes, scale=1.0)
    for name, key, default in (("scale", "scaling_factor", 0.18215), ("shift", "shift_factor", 0.0)):
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
            raise DanqingError(f"{where}: {key} should be a number, not {str(value)[:40]}")
        changes[name] = float(value)
    for name, key in (("mean", "latents_mean"), ("std", "latents_std")):
        values = config.get(key)
        if values is not None:
            suited = isinstance(values, list) and len(values) == derived.latent_channels
            if not suited or not all(isinstance(value, (int, float)) for value in values):
                raise DanqingError(f"{where}: {key} should be {derived.latent_channels} numbers")
            changes[name] = tuple(map(float, values))
    return replace(derived, **changes)


def exact_clip(derived: CLIPTextConfig, config: Config, where: str) -> CLIPTextConfig:
    """What shapes tell of a text encoder, completed by its `config.json`.

    An `eos_token_id` of 2 is an old mistake that stands for the vocabulary's last token (transformers).
    """
    where = f"{where}: text encoder's config.json"
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise DanqingError(f"{where}: activation '{str(activation)[:40]}' is not supported by this version")
    heads = _whole(config, "num_attention_heads", derived.heads, where)
    if derived.width % heads:
        raise DanqingError(f"{where}: {heads} heads do not suit a width of {derived.width}")
    end = config.get("eos_token_id")
    end = derived.vocabulary - 1 if end in (None, 2) else end
    if type(end) is not int or not 0 <= end < derived.vocabulary:
        raise DanqingError(f"{where}: eos_token_id {str(end)[:40]} is not in the vocabulary of {derived.vocabulary}")
    return replace(derived, activation=activation, heads=heads, end_token=end)


# --- out --------------------------------------------------------------------------------------------------------------


def unet_json(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """diffusers' `unet/config.json`."""
    cross = [any(depth) for depth in config.down_depth]
    down = [max(depth) or 1 for depth in config.down_depth]
    down[-1] = max(config.down_depth[-1]) or config.mid_depth or 1  # diffusers' middle has the last level's depth
    up = [
        (list(depth) if len(set(depth)) > 1 else depth[0]) if any(depth) else usual
        for depth, usual in zip(config.up_depth, reversed(down))
    ]
    added = bool(config.pooled_width)
    result: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.30.0",
        "act_fn": "silu",
        "addition_embed_type": "text_time" if added else None,
        "addition_time_embed_dim": config.size_id_width if added else None,
        "attention_head_dim": list(config.heads) if len(set(config.heads)) > 1 else config.heads[0],
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "cross_attention_dim": config.context_width,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": len(config.down_depth[0]),
        "mid_block_type": {None: None, 0: "UNetMidBlock2D"}.get(config.mid_depth, "UNetMidBlock2DCrossAttn"),
        "norm_eps": 1e-05,
        "norm_num_groups": config.groups,
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": (
            config.pooled_width + config.size_ids * config.size_id_width if added else None
        ),
        "sample_size": sample_size,
        "time_cond_proj_dim": config.guidance_width or None,
        "transformer_layers_per_block": down[0] if len(set(down)) == 1 else down,
        "up_block_types": ["CrossAttnUpBlock2D" if any(depth) else "UpBlock2D" for depth in config.up_depth],
        "use_linear_projection": config.linear_projection,
    }
    if not config.context_width:
        return _without_text(result, config)
    if up != down[::-1]:
        result["reverse_transformer_layers_per_block"] = up
    return result


_WITH_TEXT = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "cross_attention_dim",
    "projection_class_embeddings_input_dim",
    "time_cond_proj_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
)
"""What diffusers' U-Net without text has no field for."""


def _without_text(full: dict[str, Any], config: UNetConfig) -> dict[str, Any]:
    def types(full: list[str]) -> list[str]:
        return [name.replace("CrossAttn", "Attn") for name in full]

    return {key: value for key, value in full.items() if key not in _WITH_TEXT} | {
        "_class_name": "UNet2DModel",
        "attention_head_dim": config.channels[-1] // config.heads[-1],
        "down_block_types": types(full["down_block_types"]),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": types(full["up_block_types"]),
    }


def vae_json(config: AutoencoderConfig, sample_size: int) -> dict[str, Any]:
    """diffusers' `vae/config.json`."""
    levels = len(config.channels)
    result: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.30.0",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "sample_size": sample_size,
        "scaling_factor": config.scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    if config.shift:
        result["shift_factor"] = config.shift
    if not config.quant_convolutions:
        result |= {"use_quant_conv": False, "use_post_quant_conv": False}
    if config.mean and config.std:
        result |= {"latents_mean": list(config.mean), "latents_std": list(config.std)}
    if config.codebook:
        sizes = {"num_vq_embeddings": config.codebook, "vq_embed_dim": config.latent_channels}
        result |= {"_class_name": "VQModel", **sizes}
    return result


def clip_json(encoder: TextEncoder) -> dict[str, Any]:
    """transformers' `config.json` of a CLIP text encoder."""
    config = encoder.config
    projected = config.projection is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": max(config.end_token - 1, 0),
        "dropout": 0.0,
        "eos_token_id": config.end_token,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": config.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": min(encoder.pad_token, config.vocabulary - 1),
        "projection_dim": config.projection if projected else config.width,
        "vocab_size": config.vocabulary,
    }


def scheduler_json(family: Family) -> dict[str, Any]:
    """diffusers' `scheduler/scheduler_config.json`; a family's `spacing` of None leaves it to each scheduler class."""
    process, spacing = family.process, family.spacing
    if process.prediction == "edm":
        low, high = process.edm_range
        return {
            "_class_name": "EDMDPMSolverMultistepScheduler",
            "num_train_timesteps": process.steps,
            "prediction_type": "epsilon",
            "sigma_data": process.sigma_data,
            "sigma_max": high,
            "sigma_min": low,
            "sigma_schedule": "karras",
        }
    if process.prediction == "flow":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": process.steps,
            "shift": process.shift,
        }
    return {
        "_class_name": (
            "DDIMScheduler" if process.zero_terminal_snr or family.variant == "upscale" else "PNDMScheduler"
        ),
        "beta_end": process.beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": process.beta_start,
        "clip_sample": False,
        "num_train_timesteps": process.steps,
        "prediction_type": {"v": "v_prediction"}.get(process.prediction, process.prediction),
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        **({"timestep_spacing": spacing} if spacing else {}),
        **({"rescale_betas_zero_snr": True} if process.zero_terminal_snr else {}),
    }


def model_index(family: Family, tokenizers: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' `model_index.json`; `tokenizers` maps text encoders to their tokenizers' folders."""
    scheduler = scheduler_json(family)["_class_name"]
    result: dict[str, Any] = {"_diffusers_version": "0.30.0"}
    for encoder in family.text_encoders:
        kind = "CLIPTextModel" if encoder.config.projection is None else "CLIPTextModelWithProjection"
        result[encoder.name] = ["transformers", kind]
        result[tokenizers[encoder.name]] = ["transformers", "CLIPTokenizer"]
    result |= {
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family.variant == "upscale":
        result["unet"], result["vqvae"] = ["diffusers", "UNet2DModel"], ["diffusers", "VQModel"]
        del result["vae"]
        return result | {"_class_name": "LDMSuperResolutionPipeline"}
    if family.size_ids == "none":
        pipe = {"inpaint": "StableDiffusionInpaintPipeline", "pix2pix": "StableDiffusionInstructPix2PixPipeline"}
        result |= {
            "_class_name": pipe.get(family.variant, "StableDiffusionPipeline"),
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
        return result
    pipe = {"inpaint": "StableDiffusionXLInpaintPipeline", "pix2pix": "StableDiffusionXLInstructPix2PixPipeline"}
    result |= {"_class_name": pipe.get(family.variant, "StableDiffusionXLPipeline")}
    result["force_zeros_for_empty_prompt"] = family.zero_empty_negative
    if family.size_ids == "refiner":
        result |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
        result |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    return result
