"""From the shell to the file: `danqing txt2img` with the bundled model and 20 steps, as a whole process.

    python benchmarks/shell.py --runs 7
    python benchmarks/shell.py --busy 2                             # beside so many processes that never rest
    python benchmarks/shell.py --beside OMP_WAIT_POLICY=PASSIVE     # and, in turns, with this in the environment

Prints the seconds' median, least and most, and the median of the processor's seconds. Modules are compiled once and kept,
as installed ones are, whatever PYTHONDONTWRITEBYTECODE says.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

PAINT = ("txt2img", "a red apple", "--seed", "1", "--steps", "20", "--overwrite", "-o")


def once(folder: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the processor's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "danqing", *PAINT, str(Path(folder, "apple.png"))]
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, env=known | environment, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that run beside")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=VALUE", help="another environment")
    asked = parser.parse_args()
    ways = {"as it is": {}, **{text: dict([text.split("=", 1)]) for text in asked.beside}}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        once(folder, {})  # files come into the memory
        for _ in range(asked.busy):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.kill)
        for _ in range(asked.runs):
            for name, environment in ways.items():
                found[name].append(once(folder, environment))
    for name, runs in found.items():
        seconds = [one for one, _ in runs]
        print(
            f"{name:30} {statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{statistics.median(used for _, used in runs):6.2f} of the processor"
        )


if __name__ == "__main__":
    main()
