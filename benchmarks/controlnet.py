"""What a ControlNet adds to one step of classifier-free guidance, full size, random weights: ours beside diffusers'.

Both run in turns in one process, eager and channels-last; the medians, the spread (slowest less fastest) and the
ratio (ours / theirs; below 1 is faster) are printed. The hint is embedded once in a run here, in every step there.

    python benchmarks/controlnet.py --family sd1 --dtype bf16 --runs 7 --size 512
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers import ControlNetModel
from step import DTYPES, REFERENCE, compare, fill, inputs

from danqing.families import FAMILIES
from danqing.models.controlnet import ControlNet, ControlNetConfig
from danqing.runtime.blank import without_weights

Call = Callable[[], torch.Tensor]


def calls(family: str, dtype: torch.dtype, size: int) -> tuple[Call, Call]:
    """Both networks over the same weights, one copy in memory, and the same input."""
    config = FAMILIES[family].denoiser
    told = {name: value for name, value in REFERENCE[family].items() if name != "up_block_types"}
    with without_weights():
        ours, theirs = ControlNet(ControlNetConfig(config)), ControlNetModel(**told)
    fill(ours, theirs, dtype)
    theirs.eval()
    latents, context, extra, added = inputs(config, dtype, size)
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)
    timestep, embedded, both = torch.tensor([601.0]), [ours.hint(hint)], hint.expand(2, -1, -1, -1)
    return (
        lambda: ours(latents, timestep, context, embedded, **extra)["mid_block"],
        lambda: theirs(latents, timestep, context, both, added_cond_kwargs=added).mid_block_res_sample,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=[*DTYPES], default="fp32")
    parser.add_argument("--family", choices=list(REFERENCE), default="sd1")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, help="pixels along each side; the family's default unless given")
    options = parser.parse_args()
    size = options.size or FAMILIES[options.family].defaults.width
    name = f"ControlNet {options.family} {options.dtype} {size}x{size}"
    compare(name, *calls(options.family, DTYPES[options.dtype], size), options.runs)


if __name__ == "__main__":
    main()
