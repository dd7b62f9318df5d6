"""Small random-weight diffusers pipelines, saved as the folders that people have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from danqing.checkpoints.save import write_tokenizer
from danqing.families import SDXL, TextEncoder


def _tokenizer(folder: Path, encoder: TextEncoder) -> CLIPTokenizer:
    write_tokenizer(folder, encoder)
    return CLIPTokenizer.from_pretrained(folder)


def _text(width: int, projection: int | None, act: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        **changes,
    }
    return UNet2DConditionModel(**settings).eval()


def _vae(scale: float) -> AutoencoderKL:
    blocks = 4
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=scale,
    ).eval()


def _scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def _opened(kind: type[Any], folder: Path) -> Any:
    """As people have it: what is in the folder is explicit, and carries over to other schedulers."""
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd1(folder: Path, prediction: str = "epsilon") -> Any:
    """A small StableDiffusionPipeline, saved to `folder`."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=_text(32, None),
        tokenizer=_tokenizer(folder / "tokenizer", SDXL.text_encoders[0]),
        unet=_unet(),
        scheduler=_scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return _opened(StableDiffusionPipeline, folder)


def sdxl(folder: Path) -> Any:
    """A small StableDiffusionXLPipeline, saved to `folder`."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=_text(32, None),
        text_encoder_2=_text(64, 64, "gelu"),
        tokenizer=_tokenizer(folder / "tokenizer", SDXL.text_encoders[0]),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", SDXL.text_encoders[1]),
        unet=_unet(
            cross_attention_dim=96,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64 + 6 * 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=_scheduler("epsilon"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return _opened(StableDiffusionXLPipeline, folder)
