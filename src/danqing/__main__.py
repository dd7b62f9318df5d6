"""The program: `danqing`, and `python -m danqing`, which `accelerate launch -m danqing train ...` needs."""

from __future__ import annotations

import gc
import sys

from danqing.runtime.allocator import keep_memory
from danqing.runtime.start import load_torch_early

WITH_TORCH = {"txt2img", "img2img", "inpaint", "outpaint", "plot", "upscale", "replay", "serve", "train", "evaluate"}
"""Commands that need torch whatever they are told, but for their help."""


def main() -> None:
    """Run the command line."""
    keep_memory()
    if WITH_TORCH & {*sys.argv[1:2]} and not {"-h", "--help"} & {*sys.argv}:
        load_torch_early()
    from danqing.cli import main as run

    try:
        run()
    finally:
        gc.freeze()  # at its end Python looks through all that there is for garbage, several times


if __name__ == "__main__":
    main()
