"""Peak memory and time of one picture with a budget and without, each in a process of its own.

    python benchmarks/random_checkpoint.py sdxl /tmp/sdxl.safetensors
    python benchmarks/memory.py /tmp/sdxl.safetensors --size 1024 --memory 3GB

Memory is sampled from outside, as the kernel counts it: the process's own (anonymous) and the mapped files' pages, which
the system takes back when it needs them. The last column is the picture's hash: it should be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

EVERY = 0.01
"""Seconds between samples."""


def paint(path: Path, memory: str | None, dtype: str, size: int, steps: int) -> None:
    from danqing.runtime.allocator import keep_memory

    keep_memory()  # as the command line does
    import danqing
    import danqing.pipeline.paint

    begin = time.perf_counter()
    model = danqing.load(path, device="cpu", dtype=dtype, memory=memory)
    marks = [f"loaded {time.perf_counter() - begin:.2f} s"]
    print("STAGE loaded", flush=True)
    fields = {"width": size, "height": size, "steps": steps, "seed": 1}
    for event in danqing.stream("a castle", model, negative_prompt="blurry", **fields):
        stage = "decoded" if event.pictures else f"step {event.step}"
        marks.append(f"{stage} {time.perf_counter() - begin:.2f} s")
        print(f"STAGE {stage}", flush=True)
    digest = hashlib.sha256(event.pictures[0].image.tobytes()).hexdigest()[:12]
    print(f"RESULT {time.perf_counter() - begin:.3f} {digest} {', '.join(marks)}", flush=True)


def resident(pid: int) -> tuple[float, float]:
    """(anonymous, mapped files) in GB."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        anonymous, mapped = (int(lines[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile"))
    except (OSError, KeyError):  # it has ended
        return 0.0, 0.0
    return anonymous, mapped


def measured(command: list[str]) -> tuple[dict[str, list[float]], list[str]]:
    """Stage -> the most (anonymous, mapped) memory until it ended; the last words of the process."""
    now, ended = [0.0, 0.0], threading.Event()

    def sample(pid: int) -> None:
        while not ended.wait(EVERY):
            now[:] = [max(pair) for pair in zip(now, resident(pid))]

    begin, peaks = time.perf_counter(), dict[str, list[float]]()
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        sampler = threading.Thread(target=sample, args=(process.pid,))
        sampler.start()
        for line in process.stdout or ():
            kind, _, words = line.strip().partition(" ")
            print(f"{time.perf_counter() - begin:7.1f} s  {line.strip()}", file=sys.stderr)
            if kind == "STAGE":
                peaks[words], now[:] = list(now), [0.0, 0.0]
            elif kind == "RESULT":
                said = words.split(maxsplit=2)
        ended.set()
        sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed with code {process.returncode}")
    return peaks, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--memory", default="3GB", help="the budget that is compared with none")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", choices=["all", "budget"], help="one of the two")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        paint(args.path, None if args.one == "all" else args.one, args.dtype, args.size, args.steps)
        return
    rest = ["--size", str(args.size), "--steps", str(args.steps), "--dtype", args.dtype]
    with args.path.open("rb") as file:  # warm
        while file.read(1 << 26):
            pass
    seconds = []
    for name in ("all", args.memory):
        if args.only and (args.only == "all") != (name == "all"):
            continue
        peaks, (taken, digest, marks) = measured([sys.executable, __file__, str(args.path), *rest, "--one", name])
        seconds.append(float(taken))
        print(f"{'no budget' if name == 'all' else name}: {marks}; picture {digest}")
        for stage, (anonymous, mapped) in peaks.items():
            print(f"    {stage:10} anonymous {anonymous:5.2f} GB   mapped {mapped:5.2f} GB")
        most = [max(column) for column in zip(*peaks.values())]
        print(f"    peak       anonymous {most[0]:5.2f} GB   mapped {most[1]:5.2f} GB   time {seconds[-1]:.1f} s")
    if len(seconds) == 2:
        print(f"time with {args.memory} / without a budget: {seconds[1] / seconds[0]:.2f}")


if __name__ == "__main__":
    main()
