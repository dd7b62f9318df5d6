"""HyperTile: the attention of a large picture's pixels to each other in tiles (tfernd's HyperTile).

Sizes, depths and defaults are AUTOMATIC1111's (extensions-builtin/hypertile). Where `swap_size` leaves a choice of tile
sizes, it is drawn anew at each step and layer: by these alone, so that a picture depends neither on its batch nor on
what was painted before it.
"""

from __future__ import annotations

import math
import zlib
from functools import partial

import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Attention, AttentionPatch, Patches
from danqing.models.unet import UNetConfig, level_size, transformer_blocks
from danqing.request_parts import HyperTile
from danqing.sampling.predict import PatchSource

_LEAST = 128
"""Pixels of the smallest tile."""


def hypertile_source(tile: HyperTile, config: UNetConfig, cell: int = 8) -> PatchSource:
    """What `predictor(patches=...)` is given for HyperTile; a latent's cell is `cell` pixels wide and high."""

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        height, width = scaled.shape[-2:]
        attention: dict[str, AttentionPatch] = {}
        for name, (h, w, tall, wide) in splits(tile, config, height, width, cell).items():
            rows, columns = (_drawn(counts, f"{at.step}/{name}/{side}") for side, counts in (("y", tall), ("x", wide)))
            if rows * columns > 1:
                attention[f"{name}.attn1"] = partial(_in_tiles, h, w, rows, columns)
        return Patches(attention=attention) if attention else None

    return source


def splits(
    tile: HyperTile, config: UNetConfig, height: int, width: int, cell: int = 8
) -> dict[str, tuple[int, int, list[int], list[int]]]:
    """Transformer block -> (its height and width in tokens, into how many rows and columns of tiles it may be cut).

    For latents of `height` x `width`. A block's depth counts its level from the finest that has any, the middle as one
    more; a tile's sides are 2^depth times as many tokens as it is cells of the latents, which are divided by a power of
    2.
    """
    blocks = transformer_blocks(config)
    finest = min(blocks.values(), default=0)
    deepest = max((level for name, level in blocks.items() if not name.startswith("mid_block")), default=finest)
    common = math.gcd(height, width)
    side = max(_LEAST // cell, min(common & -common, tile.tile_size // cell))
    found: dict[str, tuple[int, int, list[int], list[int]]] = {}
    for name, level in blocks.items():
        depth = (deepest + 1 if name.startswith("mid_block") else level) - finest
        if depth <= tile.max_depth:
            h, w = level_size(height, width, level)
            least = side * 2**depth
            found[name] = h, w, _counts(h, least, tile.swap_size), _counts(w, least, tile.swap_size)
    return found


def _counts(length: int, least: int, most: int) -> list[int]:
    """Into how many parts of at least `least` a side can be cut: the `most` largest of these numbers."""
    parts = [part for part in range(min(least, length), length + 1) if length % part == 0]
    return [length // part for part in parts[: max(most, 1)]]


def _drawn(choices: list[int], address: str) -> int:
    return choices[zlib.crc32(address.encode()) % len(choices)]


def _in_tiles(
    height: int,
    width: int,
    rows: int,
    columns: int,
    plain: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    context: Tensor,
) -> Tensor:
    """Each tile's attention to itself; tokens that are not the whole picture's, and no others, are left together."""
    if query.shape[2] != height * width or key.shape[2] != height * width:
        return plain(query, key, value)
    grid = (rows, height // rows, columns, width // columns)

    def cut(t: Tensor) -> Tensor:  # (B, heads, T, D) -> (B tiles, heads, T / tiles, D)
        return torch.unflatten(t, 2, grid).permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)

    out = torch.unflatten(plain(cut(query), cut(key), cut(value)), 0, (-1, rows, columns))
    out = torch.unflatten(out, 4, grid[1::2])
    return out.permute(0, 3, 1, 4, 2, 5, 6).flatten(2, 5)
