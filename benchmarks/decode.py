"""The autoencoder's decoding beside diffusers' AutoencoderKL with the same weights: time and memory.

    python benchmarks/decode.py --size 512 --dtype bfloat16 --runs 3

Each measurement is a process of its own, ours and the peer's in turn. Time is the median decode after the first; memory
is the process's own (anonymous), sampled from outside, above what it had when the weights were there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from memory import measured


def weights(dtype: str) -> dict:
    import torch

    from danqing.families import SD1
    from danqing.measure.random_model import randomise
    from danqing.models.autoencoder import Autoencoder
    from danqing.runtime.blank import without_weights

    with without_weights():
        network = Autoencoder(SD1.autoencoder)
    return dict(randomise(network, getattr(torch, dtype), 1).state_dict())


def ours(dtype: str) -> object:
    from danqing.families import SD1
    from danqing.models.autoencoder import Autoencoder
    from danqing.runtime.blank import without_weights

    with without_weights():
        network = Autoencoder(SD1.autoencoder)
    network.load_state_dict(weights(dtype), assign=True)
    network.requires_grad_(False)
    scale = network.config.scale
    return lambda raw: network.decode(raw * scale)


def diffusers(dtype: str) -> object:
    import torch
    from diffusers import AutoencoderKL

    from danqing.checkpoints.sidecars import vae_json
    from danqing.families import SD1

    with torch.device("meta"):
        network = AutoencoderKL.from_config(vae_json(SD1.autoencoder, 512))
    network.load_state_dict(weights(dtype), assign=True)
    network.requires_grad_(False).eval()
    return lambda raw: network.decode(raw.to(getattr(torch, dtype))).sample.float()


def one(who: str, dtype: str, size: int, runs: int) -> None:
    from danqing.runtime.allocator import keep_memory

    keep_memory()
    import torch

    decode = {"danqing": ours, "diffusers": diffusers}[who](dtype)
    raw = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    print("STAGE weights", flush=True)
    time.sleep(0.1)
    seconds = []
    with torch.no_grad():
        for _ in range(runs + 1):
            begin = time.perf_counter()
            pixels = decode(raw)
            seconds.append(time.perf_counter() - begin)
    print("STAGE decoded", flush=True)
    print("RESULT", statistics.median(seconds[1:] or seconds), float(pixels.square().mean()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3, help="decodes of a process, after the first")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each")
    parser.add_argument("--one", choices=["danqing", "diffusers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.dtype, args.size, args.runs)
        return
    command = [sys.executable, __file__, "--size", str(args.size), "--dtype", args.dtype, "--runs", str(args.runs)]
    figures: dict[str, list[tuple[float, float]]] = {"danqing": [], "diffusers": []}
    for _ in range(args.rounds):
        for who, rows in figures.items():
            peaks, said = measured([*command, "--one", who])
            rows.append((float(said[0]), peaks["decoded"][0] - peaks["weights"][0]))
    result = {who: [statistics.median(column) for column in zip(*rows)] for who, rows in figures.items()}
    for who, (seconds, memory) in result.items():
        print(f"{who:10} {args.size} {args.dtype:9} {seconds:6.2f} s   {memory:5.2f} GB over the weights")
    ratios = [a / b for a, b in zip(*result.values())]
    print(f"danqing / diffusers: time {ratios[0]:.2f}, memory {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
