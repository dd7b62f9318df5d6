"""One step of classifier-free guidance (a batch of two) at full size and random weights: ours beside diffusers'.

Both run in turns in one process, eager and channels-last; the medians, the spread (slowest less fastest) and the
ratio (ours / theirs; below 1 is faster) are printed.

    python benchmarks/step.py --family sd1 --dtype bf16 --runs 7 --size 512
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from danqing.families import FAMILIES
from danqing.models.unet import UNet, UNetConfig
from danqing.runtime.blank import without_weights

Told = dict[str, torch.Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def fill(ours: torch.nn.Module, theirs: torch.nn.Module, dtype: torch.dtype) -> None:
    """Random weights of about the size of trained ones for both networks: one copy in memory."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, empty in ours.state_dict().items():
        if empty.dim() == 1:
            weights[name] = torch.full(empty.shape, float(name.endswith("weight")), dtype=dtype)
            continue
        weight = torch.randn(empty.shape, generator=generator, dtype=dtype).mul_(empty[0].numel() ** -0.5)
        weights[name] = weight.contiguous(memory_format=torch.channels_last) if empty.dim() == 4 else weight
    ours.load_state_dict(weights, assign=True)
    theirs.load_state_dict(weights, assign=True)


def build(family: str, dtype: torch.dtype) -> tuple[UNet, UNet2DConditionModel]:
    """Both networks over the same weights: one copy in memory."""
    config = FAMILIES[family].denoiser
    with without_weights():
        ours, theirs = UNet(config), UNet2DConditionModel(**REFERENCE[family])
    fill(ours, theirs, dtype)
    return ours.eval(), theirs.eval()


def inputs(config: UNetConfig, dtype: torch.dtype, size: int) -> tuple[torch.Tensor, torch.Tensor, Told, Told | None]:
    """Latents (2, C, size / 8, size / 8), text (2, 77, W), and what SDXL is told besides: in our words, in diffusers'."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, config.in_channels, size // 8, size // 8, generator=generator, dtype=dtype)
    latents = latents.contiguous(memory_format=torch.channels_last)
    context = torch.randn(2, 77, config.context_width, generator=generator, dtype=dtype)
    if not config.size_ids:
        return latents, context, {}, None
    pooled = torch.randn(2, config.pooled_width, generator=generator, dtype=dtype)
    ids = torch.full((2, 6), float(size))
    return latents, context, {"pooled": pooled, "time_ids": ids}, {"text_embeds": pooled, "time_ids": ids}


def calls(family: str, dtype: torch.dtype, size: int) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    ours, theirs = build(family, dtype)
    latents, context, extra, added = inputs(ours.config, dtype, size)
    timestep = torch.tensor([601.0])
    return (
        lambda: ours(latents, timestep, context, **extra),
        lambda: theirs(latents, timestep, context, added_cond_kwargs=added).sample,
    )


def timed(call: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def compare(name: str, mine: Callable[[], torch.Tensor], reference: Callable[[], torch.Tensor], runs: int) -> None:
    """Time both in turns, and print."""
    found, wanted = mine().float(), reference().float()  # these warm both up
    gap = float((found - wanted).norm() / wanted.norm())
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(timed(mine))
        theirs.append(timed(reference))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}, {torch.get_num_threads()} threads, median of {runs}: "
        f"danqing {a:.2f} s (spread {max(ours) - min(ours):.2f}), "
        f"diffusers {b:.2f} s (spread {max(theirs) - min(theirs):.2f}), ratio {a / b:.2f}; outputs differ by {gap:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=[*DTYPES, "all"], default="all")
    parser.add_argument("--family", choices=list(REFERENCE), default="sd1")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, help="pixels along each side; the family's default unless given")
    options = parser.parse_args()
    size = options.size or FAMILIES[options.family].defaults.width
    for dtype in DTYPES if options.dtype == "all" else [options.dtype]:
        mine, reference = calls(options.family, DTYPES[dtype], size)
        compare(f"{options.family} {dtype} {size}x{size}", mine, reference, options.runs)
        del mine, reference
        gc.collect()


if __name__ == "__main__":
    main()
