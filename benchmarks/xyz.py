"""An X/Y/Z plot beside its pictures painted one by one, warm, in one process, interleaved.

    python benchmarks/xyz.py --size 128 --steps 4

Prints each pass's seconds and the ratio of medians: plot / single pictures; its goal is at most 1.
"""

from __future__ import annotations

import argparse
import statistics
import time

from danqing.runtime.allocator import keep_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="a checkpoint; unset is the bundled model")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    keep_memory()
    import danqing
    from danqing.pipeline.plot import paint_plot, xyz

    model = danqing.load(args.model)
    request = danqing.TextToImage(
        prompt="a red apple", negative_prompt="blurry", width=args.size, height=args.size, steps=args.steps, seed=1
    )
    plot = xyz(request, "CFG=2-6 [3]", "Prompt S/R=apple,pear,plum")

    def whole() -> None:
        for _ in paint_plot(plot, model, say=lambda line: None):
            pass

    def singles() -> None:
        for cell in plot.cells:
            danqing.paint(cell.requests[0], model, say=lambda line: None)

    seconds: dict[str, list[float]] = {"plot": [], "singles": []}
    whole()
    for _ in range(args.runs):
        for name, work in (("plot", whole), ("singles", singles)):
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:8} {medians[name]:7.3f} s ({min(times):.3f} to {max(times):.3f}), {plot.count} pictures")
    print(f"plot / single pictures: {medians['plot'] / medians['singles']:.3f}")


if __name__ == "__main__":
    main()
