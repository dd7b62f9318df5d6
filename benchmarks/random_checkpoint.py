"""Full-size checkpoints of random weights: what hubs cannot be asked for here, for timing and for trying.

python benchmarks/random_checkpoint.py sd1 /tmp/sd15.safetensors
python benchmarks/random_checkpoint.py sdxl /tmp/sdxl --dtype float32
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from danqing.checkpoints.save import save
from danqing.families import find_family
from danqing.measure.random_model import random_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
