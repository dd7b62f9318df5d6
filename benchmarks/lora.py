"""From a LoRA file of rank 32 to a U-Net that has it in its weights, beside diffusers' load_lora_weights and fuse_lora.

    python benchmarks/lora.py --runs 3
    python benchmarks/lora.py --size tiny

Both sides have the U-Net of SD 1.5 with random float32 weights, and kohya's file of its 192 attention layers. Each
measurement is a process of its own; ours and the peer's alternate. The goal is a ratio of at most 0.5.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from danqing.families import SD1, Family

TINY = replace(SD1, denoiser=replace(SD1.denoiser, channels=(32, 64, 64, 64), context_width=64))
FAMILIES = {"full": SD1, "tiny": TINY}


def write_lora(path: Path, family: Family, rank: int = 32) -> None:
    """kohya's file of every linear layer and 1x1 convolution of the transformers."""
    from safetensors.torch import save_file

    from danqing.adapters.keys import layers_of

    tensors = {}
    for layer in set(layers_of(family).values()):
        if layer.network == "unet" and ".attentions." in layer.name and "norm" not in layer.name:
            key, ones = f"lora_unet_{layer.name.replace('.', '_')}", layer.shape[2:]
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, layer.shape[1], *ones) * 0.02
            tensors[f"{key}.lora_up.weight"] = torch.randn(layer.shape[0], rank, *ones) * 0.02
            tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)


def ours(path: Path, family: Family) -> float:
    from danqing.adapters.apply import Use, apply
    from danqing.adapters.lora import read
    from danqing.families import Model
    from danqing.models.autoencoder import Autoencoder
    from danqing.models.unet import UNet
    from danqing.runtime.blank import without_weights

    with without_weights():
        unet, autoencoder = UNet(family.denoiser), Autoencoder(family.autoencoder)
    unet.to_empty(device="cpu").requires_grad_(False)
    for parameter in unet.parameters():
        parameter.uniform_(-0.02, 0.02)
    model = Model(family, unet, autoencoder, {})
    begin = time.perf_counter()
    apply(model, [Use(read(path, family))], lambda line: None)
    return time.perf_counter() - begin


def diffusers(path: Path, family: Family) -> float:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    config = family.denoiser
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=config.channels, cross_attention_dim=config.context_width, attention_head_dim=8
        )
    unet = unet.to_empty(device="cpu").requires_grad_(False)
    for parameter in unet.parameters():
        parameter.uniform_(-0.02, 0.02)
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    begin = time.perf_counter()
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["unet"])
    return time.perf_counter() - begin


def touch_memory() -> None:
    """Have the machine's free memory at hand: a virtual one gets its pages from its host when they are first used."""
    torch.ones(6 << 28)


SIDES = {"ours": ours, "diffusers": diffusers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=FAMILIES, default="full")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        touch_memory()
        print(SIDES[asked.side](asked.file, FAMILIES[asked.size]))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        write_lora(file, FAMILIES[asked.size])
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(asked.runs):
            for side, found in times.items():
                command = [sys.executable, __file__, "--size", asked.size, "--side", side, "--file", str(file)]
                found.append(
                    float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                )
    medians = {side: statistics.median(found) for side, found in times.items()}
    for side, found in times.items():
        print(f"{side}: {medians[side]:.2f} s (of {', '.join(f'{each:.2f}' for each in found)})")
    print(f"ratio: {medians['ours'] / medians['diffusers']:.2f}")


if __name__ == "__main__":
    main()
