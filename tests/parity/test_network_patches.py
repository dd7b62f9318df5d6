"""What acts inside the network, against diffusers' own and against formulas computed anew: same weights, same answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from danqing.adapters.attention_guidance import blur
from danqing.adapters.freeu import freeu_source
from danqing.adapters.hypertile import hypertile_source
from danqing.adapters.merging import merging_source
from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.unet import UNet, UNetConfig
from danqing.request_parts import FreeU, HyperTile, TokenMerging
from danqing.sampling.predict import PatchSource
from tests.parity.test_networks import SMALL, error, reference_unet, share_weights, unet_inputs

DIFFUSERS = f"diffusers {diffusers.__version__}"
BOUND = 1e-5
Parity = Callable[[str, str, float, float], None]
WIDE = replace(SMALL, channels=(32, 64, 128))
"""Four times as wide at the bottom as at the top, as Stable Diffusion is."""


def both(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    torch.manual_seed(0)
    ours, theirs = UNet(config), UNet2DConditionModel(**reference_unet(config))
    share_weights(ours, theirs)
    return ours, theirs


def asked(source: PatchSource, mine: dict[str, Any], step: float = 0) -> dict[str, Any]:
    """The U-Net's arguments with what the source makes of them."""
    given = Conditioning(mine["context"])
    return mine | {"patches": source(mine["latents"], torch.zeros(1), At(1.0, step), given)}


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (9, 14)], ids=["even", "odd"])
def test_freeu(size: tuple[int, int], parity: Parity) -> None:
    ours, theirs = both(SMALL)
    mine, given = unet_inputs(SMALL, size)
    free = theirs(**given).sample
    theirs.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.4)
    wanted = theirs(**given).sample
    assert error(free, wanted) > 1e-2
    source = freeu_source(FreeU(b1=1.3, b2=1.4, s1=0.6, s2=0.4, version=1), SMALL, 10, "diffusers")
    parity("FreeU", f"{DIFFUSERS} enable_freeu", error(ours(**asked(source, mine)), wanted), BOUND)


def by_channels(freeu: FreeU, config: UNetConfig, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """FreeU by its paper: equations 3 and 4 for the backbone, 5 and 6 for the skip, one picture and channel at a time."""
    stages = {4 * config.channels[0]: (freeu.b1, freeu.s1), 2 * config.channels[0]: (freeu.b2, freeu.s2)}
    if hidden.shape[1] not in stages:
        return hidden, skip
    b, s = stages[hidden.shape[1]]
    raised, filtered = hidden.clone(), skip.clone()
    for picture in range(len(hidden)):
        mean = hidden[picture].mean(0)
        alpha = (b - 1) * (mean - mean.min()) / (mean.max() - mean.min()) + 1 if freeu.version == 2 else b
        for channel in range(hidden.shape[1] // 2):
            raised[picture, channel] = hidden[picture, channel] * alpha
        for channel in range(skip.shape[1]):
            spectrum = torch.fft.fft2(skip[picture, channel].double())
            for row in (0, -1):  # the middle 2x2 of a shifted spectrum: frequencies 0 and the one below
                for column in (0, -1):
                    spectrum[row, column] *= s
            filtered[picture, channel] = torch.fft.ifft2(spectrum).real.float()
    return raised, filtered


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_freeu_by_channels(version: int, parity: Parity) -> None:
    ours, _ = both(WIDE)
    mine, _ = unet_inputs(WIDE, (8, 12))
    freeu = FreeU(b1=1.2, b2=1.5, s1=0.7, s2=0.3, version=version)
    found = ours(**asked(freeu_source(freeu, WIDE, 10), mine))
    wanted = ours(**replaced_cat(ours, freeu, mine))
    assert error(ours(**mine), wanted) > 1e-2
    subject = f"FreeU, version {version}, by channels"
    parity(subject, "its paper's equations, computed by loops", error(found, wanted), BOUND)


def replaced_cat(ours: UNet, freeu: FreeU, mine: dict[str, Any]) -> dict[str, Any]:
    from danqing.models.patches import Patches

    names = [f"up_blocks.{i}" for i in range(len(WIDE.channels))]
    return mine | {"patches": Patches(skip_scale=dict.fromkeys(names, lambda h, s: by_channels(freeu, WIDE, h, s)))}


# --- token merging ----------------------------------------------------------------------------------------------------


def merged_attention(attention: Any, tokens: Tensor, x: Tensor, size: tuple[int, int], merging: TokenMerging) -> Tensor:
    """Self-attention over merged tokens by arXiv 2303.17604, one picture at a time, with lists and loops.

    Every first token of an sx by sy region stays; of the others those most alike to one of them are merged into it by
    the mean, `ratio` of all tokens; after the attention each gets what it was merged into.
    """
    height, width = size
    out = []
    for picture, row in zip(x, tokens):
        stay = [
            i * width + j
            for i in range(0, height // merging.sy * merging.sy, merging.sy)
            for j in range(0, width // merging.sx * merging.sx, merging.sx)
        ]
        others = [n for n in range(height * width) if n not in stay]
        unit = row / row.norm(dim=-1, keepdim=True)
        scores = unit[others] @ unit[stay].T
        best = scores.max(1)
        ranked = sorted(range(len(others)), key=lambda n: -float(best.values[n]))[: int(len(row) * merging.ratio)]
        into: dict[int, int] = {others[n]: stay[int(best.indices[n])] for n in ranked}
        groups = {place: [place, *(n for n, target in into.items() if target == place)] for place in stay}
        groups |= {n: [n] for n in others if n not in into}
        short = torch.stack([picture[members].mean(0) for members in groups.values()])
        answer = attention(short[None], None, None, None)[0]
        places = {n: number for number, members in enumerate(groups.values()) for n in members}
        out.append(torch.stack([answer[places[n]] for n in range(height * width)]))
    return torch.stack(out)


class Merged(nn.Module):
    """A transformer block of ours, with merged self-attention in its place."""

    def __init__(self, block: Any, size: tuple[int, int], merging: TokenMerging) -> None:
        super().__init__()
        self.block, self.size, self.merging = block, size, merging

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None, patches: object) -> Tensor:
        block = self.block
        inner = merged_attention(block.attn1, tokens, block.norm1(tokens), self.size, self.merging)
        hidden = tokens + inner
        hidden = hidden + block.attn2(block.norm2(hidden), context, mask, None)
        return hidden + block.ff(block.norm3(hidden))


@torch.no_grad()
@pytest.mark.parametrize(
    "merging",
    [TokenMerging(ratio=0.5, max_downsample=2), TokenMerging(ratio=0.9, max_downsample=4, sx=3, sy=2)],
    ids=["half", "nearly all"],
)
def test_token_merging(merging: TokenMerging, parity: Parity) -> None:
    ours, _ = both(SMALL)
    mine, _ = unet_inputs(SMALL, (10, 12))
    plain, found = ours(**mine), ours(**asked(merging_source(merging, SMALL), mine))
    for name, module in list(ours.named_modules()):
        if not name.endswith("transformer_blocks"):
            continue
        level = (
            next(i for i, width in enumerate(SMALL.channels) if f"down_blocks.{i}" in name)
            if "down" in name
            else (len(SMALL.channels) - 1 if "mid" in name else len(SMALL.channels) - 1 - int(name.split(".")[1]))
        )
        if 2**level > merging.max_downsample:
            continue
        size = (math.ceil(10 / 2**level), math.ceil(12 / 2**level))
        for index, block in enumerate(module):
            module[index] = Merged(block, size, merging)
    wanted = ours(**mine)
    assert error(plain, wanted) > 1e-4
    parity("token merging", "its paper's steps, computed by loops", error(found, wanted), BOUND)


# --- HyperTile --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hypertile(parity: Parity) -> None:
    ours, _ = both(SMALL)
    mine, _ = unet_inputs(SMALL, (32, 64))
    tile = HyperTile(tile_size=128, swap_size=1, max_depth=3)
    found = ours(**asked(hypertile_source(tile, SMALL), mine))
    plain = ours(**mine)
    finest = next(i for i, depth in enumerate(SMALL.down_depth) if any(depth))
    h, w = 32 >> finest, 64 >> finest
    least = 16  # cells of 128 pixels; one level deeper they are twice as many tokens, more than there are

    def tiled(attention: Any) -> Callable[..., Tensor]:
        whole = type(attention).forward

        def forward(hidden: Tensor, context: Tensor | None, mask: Tensor | None, patches: object) -> Tensor:
            out = torch.empty_like(hidden)
            pixels, painted = hidden.unflatten(1, (h, w)), out.view(len(hidden), h, w, -1)
            for y in range(0, h, least):
                for x in range(0, w, least):
                    part = pixels[:, y : y + least, x : x + least]
                    answer = whole(attention, part.flatten(1, 2), None, None, None)
                    painted[:, y : y + least, x : x + least] = answer.view_as(part)
            return out

        return forward

    sides = (f"down_blocks.{finest}.", f"up_blocks.{len(SMALL.channels) - 1 - finest}.")
    for name, module in ours.named_modules():
        if name.endswith(".attn1") and name.startswith(sides):
            module.forward = tiled(module)
    wanted = ours(**mine)
    assert error(plain, wanted) > 1e-4
    parity("HyperTile", "attention tile by tile, computed by loops", error(found, wanted), BOUND)


def test_blur(parity: Parity) -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_sag import pipeline_stable_diffusion_sag as reference

    x = torch.randn(2, 4, 9, 13, generator=torch.Generator().manual_seed(1))
    wanted = reference.gaussian_blur_2d(x, kernel_size=9, sigma=1.7)
    parity("SAG's blur", f"{DIFFUSERS} gaussian_blur_2d", error(blur(x, 1.7), wanted), BOUND)
    assert blur(x, 0.0) is x
