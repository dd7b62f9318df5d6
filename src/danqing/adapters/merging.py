"""Token merging: attention over fewer tokens, the most alike of them merged (Bolya & Hoffman 2023, ToMe for SD).

Paper: arXiv 2303.17604, section 3. As in AUTOMATIC1111, the tokens that others are merged into are the first of each
sx by sy of them, and only a block's attention of the tokens to each other is shortened.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Attention, BlockPatch, Patches, with_attention
from danqing.models.unet import UNetConfig, level_size, transformer_blocks
from danqing.request_parts import TokenMerging
from danqing.sampling.predict import PatchSource


@dataclass(frozen=True, eq=False)
class Matching:
    """Which of T tokens are merged into which. Indices are whole numbers."""

    places: Tensor
    """(D,): the tokens that others are merged into."""
    kept: Tensor
    """(B, K): the others that stay."""
    merged: Tensor
    """(B, R): those that are merged, and..."""
    target: Tensor
    """(B, R): ... into which of the D."""

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, T, C) -> (B, heads, K + D, C): what is kept, then the places' means."""
        into, rest = x[:, :, self.places], _taken(x, self.kept)
        if self.merged.shape[1]:
            target = self.target[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            into = into.scatter_reduce(2, target, _taken(x, self.merged), "mean", include_self=True)
        return torch.cat([rest, into], 2)

    def unmerge(self, x: Tensor) -> Tensor:
        """(B, heads, K + D, C) -> (B, heads, T, C): what was merged gets what it was merged into."""
        batch, kept = self.kept.shape
        count = kept + len(self.places) + self.merged.shape[1]
        where = torch.empty(batch, count, dtype=torch.int64, device=x.device)
        where[:, self.places] = torch.arange(kept, x.shape[2], device=x.device)
        where.scatter_(1, self.kept, torch.arange(kept, device=x.device).expand(batch, -1))
        where.scatter_(1, self.merged, self.target + kept)
        return _taken(x, where)


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """The tokens `indices` (B, N) of `x` (B, heads, T, C)."""
    return x.gather(2, indices[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def matching(tokens: Tensor, size: tuple[int, int], ratio: float, sx: int = 2, sy: int = 2) -> Matching | None:
    """Which of the tokens (B, T, C) of a picture of `size` = (height, width) to merge, T = height x width.

    `ratio` of them are, as far as there are tokens to be merged; None where that is none. A token is merged into the
    place that is most like it (by cosine), and those are merged first that are most alike.
    """
    height, width = size
    numbers = torch.arange(height * width, device=tokens.device).view(height, width)
    places = numbers[: height // sy * sy : sy, : width // sx * sx : sx].flatten()
    others = torch.ones(height * width, dtype=torch.bool, device=tokens.device)
    others[places] = False
    rest = numbers.flatten()[others]
    count = min(int(height * width * ratio), len(rest))
    if count <= 0 or not len(places):
        return None
    unit = F.normalize(tokens, dim=-1)
    likeness, target = (unit[:, rest] @ unit[:, places].transpose(1, 2)).max(-1)  # (B, T - D) twice
    order = likeness.argsort(dim=1, descending=True, stable=True)
    first, last = order[:, :count], order[:, count:]
    return Matching(places, rest[last], rest[first], target.gather(1, first))


def merging_source(merging: TokenMerging, config: UNetConfig) -> PatchSource:
    """What `predictor(patches=...)` is given for token merging, at the levels down to `max_downsample`."""
    levels = merged_blocks(merging, config)

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        height, width = scaled.shape[-2:]
        blocks: dict[str, BlockPatch] = {
            name: partial(_shortened, name, level_size(height, width, level), merging) for name, level in levels.items()
        }
        return Patches(blocks=blocks)

    return source


def merged_blocks(merging: TokenMerging, config: UNetConfig) -> dict[str, int]:
    """The transformer blocks that it acts in, and their levels; none at a ratio of 0."""
    blocks = transformer_blocks(config) if merging.ratio else {}
    return {name: level for name, level in blocks.items() if 2**level <= merging.max_downsample}


def _shortened(name: str, size: tuple[int, int], merging: TokenMerging, run: Any, arguments: tuple[Any, ...]) -> Tensor:
    """A transformer block whose attention of the tokens to each other is over fewer of them."""
    found = matching(arguments[0], size, merging.ratio, merging.sx, merging.sy)
    if found is None:
        return run(*arguments)  # type: ignore[no-any-return]

    def attention(plain: Attention, query: Tensor, key: Tensor, value: Tensor, *told: Tensor) -> Tensor:
        # merging is a mean, so it is the same before the layer's projections and after them
        return found.unmerge(plain(found.merge(query), found.merge(key), found.merge(value)))

    return run(*with_attention(arguments, f"{name}.attn1", attention))  # type: ignore[no-any-return]
