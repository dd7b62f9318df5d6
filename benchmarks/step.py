"""One step of classifier-free guidance (one picture, two prompts) at full size and random weights: ours beside diffusers'.

Both run in turns in one process over one copy of the weights, eager and channels-last; besides the medians, the spread
(slowest less fastest) and the ratio (ours / theirs; below 1 is faster), how far their outputs are apart is printed.
`danqing benchmark step` is the way of other peers, of memory and of FLOPs.

    python benchmarks/step.py --family sd1 --dtype bf16 --runs 7 --size 512
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel

from danqing.checkpoints.sidecars import unet_json
from danqing.families import FAMILIES
from danqing.measure.inputs import inputs
from danqing.measure.machine import clock
from danqing.measure.random_model import randomise
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights
from danqing.runtime.devices import DTYPES
from danqing.runtime.packed import keep_packed

Call = Callable[[], torch.Tensor]
NAMES = ("fp32", "bf16")


def fill(ours: torch.nn.Module, theirs: torch.nn.Module, dtype: torch.dtype) -> None:
    """The same random weights for both networks: one copy in memory."""
    randomise(ours, dtype, 0).to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs.eval()


def calls(family: str, dtype: torch.dtype, size: int) -> tuple[Call, Call]:
    config = FAMILIES[family].denoiser
    with without_weights():
        ours, theirs = UNet(config), UNet2DConditionModel.from_config(unet_json(config, size // 8))
    fill(ours, theirs, dtype)
    keep_packed(ours)
    given = inputs(FAMILIES[family], 2, size, dtype)
    return (
        lambda: ours(given.latents[:1], given.timestep, given.context, **given.told),
        lambda: (
            theirs(
                given.latents[:1].repeat(2, 1, 1, 1),
                given.timestep,
                given.context,
                added_cond_kwargs=given.added or None,
            ).sample
        ),
    )


@torch.no_grad()
def compare(name: str, mine: Call, reference: Call, runs: int) -> None:
    """Time both in turns, and print."""
    for _ in range(3):  # by the third everything is in its place
        found, wanted = mine().float(), reference().float()
    gap = float((found - wanted).norm() / wanted.norm())
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(clock(mine, "cpu")[0])
        theirs.append(clock(reference, "cpu")[0])
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}, {torch.get_num_threads()} threads, median of {runs}: "
        f"danqing {a:.2f} s (spread {max(ours) - min(ours):.2f}), "
        f"diffusers {b:.2f} s (spread {max(theirs) - min(theirs):.2f}), ratio {a / b:.2f}; outputs differ by {gap:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=[*NAMES, "all"], default="all")
    parser.add_argument("--family", choices=["sd1", "sdxl"], default="sd1")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, help="pixels along each side; the family's default unless given")
    options = parser.parse_args()
    size = options.size or FAMILIES[options.family].defaults.width
    for dtype in NAMES if options.dtype == "all" else [options.dtype]:
        mine, reference = calls(options.family, DTYPES[dtype], size)
        compare(f"{options.family} {dtype} {size}x{size}", mine, reference, options.runs)
        del mine, reference
        gc.collect()


if __name__ == "__main__":
    main()
