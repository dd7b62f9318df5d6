"""A ControlNet-LLLite of random weights for `tiny_model`, as kohya's trainer writes them."""

from __future__ import annotations

import torch
from torch import Tensor

LAYERS = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_v": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    "input_blocks_4_1_transformer_blocks_0_attn2_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
    "input_blocks_8_1_transformer_blocks_0_attn1_to_v": "down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_v",
    "middle_block_1_transformer_blocks_0_attn2_to_q": "mid_block.attentions.0.transformer_blocks.0.attn2.to_q",
}
"""Name in the file -> the model's layer."""
WIDTH, EMBEDDING, INNER = 64, 8, 12


def lllite_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    half, state = EMBEDDING // 2, {}
    for name in LAYERS:
        shapes: dict[str, tuple[int, ...]] = {"conditioning1.0": (half, 3, 4, 4)}
        if name.startswith("input_blocks_4"):  # half of the latents' size
            shapes["conditioning1.2"] = (EMBEDDING, half, 4, 4)
        else:
            shapes |= {"conditioning1.2": (half, half, 4, 4), "conditioning1.4": (EMBEDDING, half, 2, 2)}
        shapes |= {"down.0": (INNER, WIDTH), "mid.0": (INNER, INNER + EMBEDDING), "up.0": (WIDTH, INNER)}
        for part, shape in shapes.items():
            scale = torch.tensor(shape[1:]).prod() ** -0.5
            state[f"lllite_unet_{name}.{part}.weight"] = torch.randn(shape, generator=generator) * scale
            state[f"lllite_unet_{name}.{part}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1
    return state
