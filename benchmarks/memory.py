"""Peak memory of one picture, stage by stage, beside the weights' size.

    python benchmarks/memory.py /tmp/sd15.safetensors --size 512 --dtype bfloat16

Resident memory as the kernel counts it, the mapped file's pages and torch's own code included.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

from danqing.runtime.allocator import keep_memory


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    keep_memory()
    import danqing
    import danqing.pipeline.paint
    from danqing.runtime.memory import weight_bytes

    print(f"imports          {peak():5.2f} GB")
    model = danqing.load(args.path, device="cpu", dtype=args.dtype)
    weights = weight_bytes(model.denoiser, model.autoencoder, *model.text_encoders.values()) / 1e9
    print(f"weights          {weights:5.2f} GB")
    print(f"loaded           {peak():5.2f} GB")
    fields = {"width": args.size, "height": args.size, "steps": args.steps, "seed": 1}
    for event in danqing.stream("a castle", model, negative_prompt="blurry", **fields):
        stage = "decoded" if event.pictures else f"step {event.step}"
        print(f"{stage:16} {peak():5.2f} GB")
    print(f"over the weights {peak() - weights:5.2f} GB")


if __name__ == "__main__":
    main()
