"""A batch of 8 beside 8 single pictures, warm, in one process, interleaved.

    python benchmarks/batch.py --size 128 --steps 4

Prints pictures per second and the ratio of medians: batch / singles; its goal is at least 1.
"""

from __future__ import annotations

import argparse
import statistics
import time

from danqing.runtime.allocator import keep_memory

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="a checkpoint; unset is the bundled model")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    keep_memory()
    import danqing

    model = danqing.load(args.model)
    fields = {"width": args.size, "height": args.size, "steps": args.steps}

    def paint(batch: int, seed: int) -> None:
        danqing.paint("a red apple", model, say=lambda line: None, batch_size=batch, seed=seed, **fields)

    speeds: dict[str, list[float]] = {"batch of 8": [], "singles": []}
    paint(BATCH, 1)
    for _ in range(args.runs):
        for name, batch in (("batch of 8", BATCH), ("singles", 1)):
            begin = time.perf_counter()
            for seed in range(1, BATCH + 1, batch):
                paint(batch, seed)
            speeds[name].append(BATCH / (time.perf_counter() - begin))
    medians = {name: statistics.median(rates) for name, rates in speeds.items()}
    for name, rates in speeds.items():
        print(f"{name:10} {medians[name]:7.3f} pictures/s ({min(rates):.3f} to {max(rates):.3f})")
    print(f"batch of 8 / singles: {medians['batch of 8'] / medians['singles']:.3f}")


if __name__ == "__main__":
    main()
