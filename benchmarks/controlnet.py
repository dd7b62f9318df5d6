"""What a ControlNet adds to one step of classifier-free guidance, full size, random weights: ours beside diffusers'.

Both run in turns in one process, eager and channels-last; the medians, the spread (slowest less fastest) and the
ratio (ours / theirs; below 1 is faster) are printed. The hint is embedded once in a run here, in every step there.

    python benchmarks/controlnet.py --family sd1 --dtype bf16 --runs 7 --size 512
"""

from __future__ import annotations

import argparse

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from step import NAMES, Call, compare, fill

from danqing.checkpoints.sidecars import unet_json
from danqing.families import FAMILIES
from danqing.measure.inputs import inputs
from danqing.models.controlnet import ControlNet, ControlNetConfig
from danqing.runtime.blank import without_weights
from danqing.runtime.devices import DTYPES


def calls(family: str, dtype: torch.dtype, size: int) -> tuple[Call, Call]:
    """Both networks over the same weights, one copy in memory, and the same input."""
    config = FAMILIES[family].denoiser
    with without_weights():
        ours = ControlNet(ControlNetConfig(config))
        unet = UNet2DConditionModel.from_config(unet_json(config, size // 8))
        theirs = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    fill(ours, theirs, dtype)
    given = inputs(FAMILIES[family], 2, size, dtype)
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)
    embedded, both = [ours.hint(hint)], hint.expand(2, -1, -1, -1)
    return (
        lambda: ours(given.latents, given.timestep, given.context, embedded, **given.told)["mid_block"],
        lambda: (
            theirs(
                given.latents, given.timestep, given.context, both, added_cond_kwargs=given.added or None
            ).mid_block_res_sample
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=NAMES, default="fp32")
    parser.add_argument("--family", choices=["sd1", "sdxl"], default="sd1")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, help="pixels along each side; the family's default unless given")
    options = parser.parse_args()
    size = options.size or FAMILIES[options.family].defaults.width
    name = f"ControlNet {options.family} {options.dtype} {size}x{size}"
    compare(name, *calls(options.family, DTYPES[options.dtype], size), options.runs)


if __name__ == "__main__":
    main()
