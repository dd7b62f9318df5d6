"""Full-size checkpoints of random weights: what hubs cannot be asked for here, for timing and for trying.

python benchmarks/random_checkpoint.py sd1 /tmp/sd15.safetensors
python benchmarks/random_checkpoint.py sdxl /tmp/sdxl --dtype float32
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import nn

from danqing.checkpoints.save import save
from danqing.families import Family, Model, find_family
from danqing.models.autoencoder import Autoencoder
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights


def randomise(network: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """Weights of a spread that keeps values finite: 1 / sqrt(fan in), norms at one, biases at zero."""
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed))
    state = {}
    for index, (name, shaped) in enumerate(network.state_dict().items()):
        if shaped.ndim == 1:
            state[name] = torch.full(shaped.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
            continue
        count = shaped.numel()
        rolled = pool.roll(7919 * index)
        flat = rolled.repeat(math.ceil(count / len(pool)))[:count]
        spread = 0.02 if "embedding" in name else 1 / math.sqrt(math.prod(shaped.shape[1:]))
        state[name] = (flat * spread).to(dtype).view(shaped.shape)
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def random_model(family: Family, dtype: torch.dtype = torch.float16, seed: int = 0) -> Model:
    """A full-size model of `family` with random weights."""
    with without_weights():
        denoiser, autoencoder = UNet(family.denoiser), Autoencoder(family.autoencoder)
        encoders = {encoder.name: CLIPText(encoder.config) for encoder in family.text_encoders}
    return Model(
        family=family,
        denoiser=randomise(denoiser, dtype, seed),
        autoencoder=randomise(autoencoder, dtype, seed + 1),
        text_encoders={name: randomise(net, dtype, seed + 2 + i) for i, (name, net) in enumerate(encoders.items())},
        name=f"random-{family.name}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("family", help="sd1, sd2, sdxl ...")
    parser.add_argument("path", type=Path, help="a .safetensors or .ckpt file, or a folder")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    args = parser.parse_args()
    model = random_model(find_family(args.family), getattr(torch, args.dtype))
    single = args.path.suffix in (".safetensors", ".ckpt")
    done = save(model, args.path, layout="ldm" if single else "diffusers")
    print(f"wrote {done.target}: {done.bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
