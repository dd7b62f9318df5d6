"""Files of the LoRA family with random numbers, for tests: spelled as each program spells them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"
PIXEL = "up_blocks.0.attentions.1.proj_in"
NORM = "down_blocks.1.resnets.0.norm1"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"


def random(*shape: int, seed: int = 0, size: float = 0.1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def lora(shape: tuple[int, ...], rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """`lora_down.weight` and `lora_up.weight` for a weight of that shape."""
    ones = [1] * (len(shape) - 2)
    return {
        "lora_down.weight": random(rank, *shape[1:], seed=seed),
        "lora_up.weight": random(shape[0], rank, *ones, seed=seed + 1),
    }


def kohya(layer: str, text: str = "lora_te_") -> str:
    return (text if layer.startswith("text_model") else "lora_unet_") + layer.replace(".", "_")


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def keyed(layers: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Canonical layer -> parts, as kohya's keys."""
    return {f"{kohya(layer)}.{part}": tensor for layer, parts in layers.items() for part, tensor in parts.items()}
