"""Small random-weight diffusers pipelines, saved as the folders that people have."""

from __future__ import annotations

import gzip
import json
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

import danqing

MERGES = Path(danqing.__file__).parent / "assets" / "clip_bpe.txt.gz"


def _tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer as transformers has it, from the bundled merges."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = [line for line in gzip.decompress(MERGES.read_bytes()).decode().splitlines() if len(line.split()) == 2]
    merges = [line for line in merges if not line.startswith("#") and "version" not in line][:48894]
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    codes += [256 + i for i in range(256 - len(codes))]
    letters = [chr(code) for code in codes]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(line.split()) for line in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77)


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


def sd1(folder: Path, prediction: str = "epsilon") -> StableDiffusionPipeline:
    """A small StableDiffusionPipeline, saved to `folder`."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=_text(32, None),
        tokenizer=_tokenizer(folder / "tokenizer", "<|endoftext|>"),
        unet=_unet(),
        scheduler=_scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """A small StableDiffusionXLPipeline, saved to `folder`."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=_text(32, None),
        text_encoder_2=_text(64, 64, "gelu"),
        tokenizer=_tokenizer(folder / "tokenizer", "<|endoftext|>"),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", "!"),
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
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline
