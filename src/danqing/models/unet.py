"""The U-Net of Stable Diffusion 1.x, 2.x, XL and their distilled kin (Rombach et al. 2022, Podell et al. 2023).

Modules are named as diffusers' UNet2DConditionModel names them, without text as its UNet2DModel does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d, GroupNorm, Linear, PixelAttention, ResBlock, Upsample, per_row
from danqing.models.patches import Patches
from danqing.runtime.attention import attention
from danqing.runtime.dense import gated_feed_forward, linear


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 4
    """4; 9 for inpainting (latents, mask, masked latents), 8 for instruct-pix2pix; 6 (latents, picture) for LDSR."""
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Per level, from the finest."""
    down_depth: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1), (1, 1), (0, 0))
    """Transformer blocks after each residual block of each down level; 0 is a residual block alone."""
    mid_depth: int | None = 1
    """Transformer blocks of the middle; 0 is one residual block alone (SSD-1B, Vega); None is no middle block."""
    up_depth: tuple[tuple[int, ...], ...] = ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    """Per up level, from the coarsest."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads per level (the middle has the last level's)."""
    context_width: int = 768
    """0 is no text: in a transformer's place stands one attention of the pixels to each other (a depth of 1)."""
    linear_projection: bool = False
    """Whether transformers enter and leave by a linear layer (SD 2.x, XL) or a 1x1 convolution (SD 1.x)."""
    pooled_width: int = 0
    """Width of the pooled vector; 0 when there is none. SDXL: 1280."""
    size_ids: int = 0
    """How many numbers `time_ids` holds: 6 for SDXL, 5 for its refiner, 0 otherwise."""
    size_id_width: int = 256
    guidance_width: int = 0
    """Width of the guidance embedding of LCM models; 0 when there is none."""
    groups: int = 32

    def __post_init__(self) -> None:
        levels = {len(self.channels), len(self.down_depth), len(self.up_depth), len(self.heads)}
        if len(levels) != 1:
            raise ValueError("channels, down_depth, up_depth and heads must have one entry per level")


def sinusoid(x: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, cosines first (Vaswani et al. 2017, section 3.5): x (N,) -> (N, width) float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=x.device, dtype=torch.float32) * (-math.log(10000) / half))
    angles = x.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """A CFG scale's embedding, by w = scale - 1 (Meng et al. 2023; Luo et al. 2023): (N,) -> (N, width) float32."""
    half = width // 2
    step = -math.log(10000) / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=scale.device, dtype=torch.float32) * step)
    angles = 1000 * (scale.float() - 1)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width % 2))


class Embedding(nn.Module):
    """Two linear layers: (B, width) -> (B, out), one row at a time. `condition` (B, condition_width) is added first."""

    def __init__(self, width: int, out: int, condition_width: int = 0) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)
        if condition_width:
            self.cond_proj = nn.Linear(condition_width, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            x = x + per_row(self.cond_proj, condition)
        return per_row(self.linear_2, F.silu(per_row(self.linear_1, x)))


class Attention(nn.Module):
    """Attention of tokens (B, T, C) to themselves or to a context (B or 1, S, C')."""

    def __init__(self, name: str, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context_width or width, width, bias=False)
        self.to_v = Linear(context_width or width, width, bias=False)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, hidden: Tensor, context: Tensor | None, mask: Tensor | None, patches: Patches | None) -> Tensor:
        context = hidden if context is None else context
        change = None if patches is None else patches.contexts.get(self.name)
        for_keys, for_values = (context, context) if change is None else change(context, context)
        ask = None if patches is None else patches.queries.get(self.name)
        query, key, value = (
            self.to_q(hidden if ask is None else ask(hidden)),
            self.to_k(for_keys),
            self.to_v(for_values),
        )  # (B, T, C), (B or 1, S, C) twice
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        rows = max(len(query), len(key))
        query, key, value = (t.expand(rows, -1, -1, -1) for t in (query, key, value))
        patch = None if patches is None else patches.attention.get(self.name)
        if patch is None:
            out = attention(query, key, value, mask)
        else:
            out = patch(partial(_plain, mask), query, key, value, hidden, context)
        return self.to_out[0](out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _plain(mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention that a patch is given: the mask holds for the context's own keys, not for a patch's."""
    return attention(query, key, value, mask if mask is not None and mask.shape[-1] == key.shape[2] else None)


class GEGLU(nn.Module):
    """A gated linear unit (Shazeer 2020): (..., width) -> (..., inner)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, -1)
        return hidden * F.gelu(gate)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Tokens (B, T, C) -> (B, T, C), each for itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # the middle is where diffusers has a dropout: the names count it
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        inner, _, outer = self.net
        made = gated_feed_forward(x, inner.proj, outer)  # type: ignore[arg-type]
        return self.net(x) if made is None else made  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Tokens (B, T, C) attend to themselves, then to the context, then pass a feed-forward layer."""

    def __init__(self, name: str, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(f"{name}.attn1", width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(f"{name}.attn2", width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None) -> Tensor:
        hidden = hidden + self.attn1(self.norm1(hidden), None, None, patches)
        hidden = hidden + _run(self.attn2.name, self.attn2, patches, self.norm2(hidden), context, mask, patches)
        return hidden + self.ff(self.norm3(hidden))  # type: ignore[no-any-return]


class PixelLinear(nn.Conv2d):
    """A 1x1 convolution as the linear layer that it is: (B, T, C) -> (B, T, C')."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Transformer(nn.Module):
    """Transformer blocks over the pixels of (B, C, H, W), added to them."""

    def __init__(self, name: str, width: int, heads: int, depth: int, config: UNetConfig) -> None:
        super().__init__()
        self.name = name
        projection = Linear if config.linear_projection else PixelLinear
        self.norm = GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = projection(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(f"{name}.transformer_blocks.{i}", width, heads, config.context_width) for i in range(depth)
        )
        self.proj_out = projection(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None) -> Tensor:
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))  # (B, H W, C); no copy if channels-last
        for i, block in enumerate(self.transformer_blocks):
            tokens = _run(f"{self.name}.transformer_blocks.{i}", block, patches, tokens, context, mask, patches)
        tokens = self.proj_out(tokens).unflatten(1, x.shape[-2:])  # (B, H, W, C)
        return x + tokens.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Plain(PixelAttention):
    """What stands in a transformer's place where there is no text."""

    def __init__(self, width: int, heads: int, config: UNetConfig) -> None:
        super().__init__(width, config.groups, 1e-5, heads)

    def forward(self, x: Tensor, *told: object) -> Tensor:
        return super().forward(x)


class Level(nn.Module):
    """Residual blocks, each with its transformer where there is one: what all parts of the U-Net are made of."""

    def __init__(
        self, name: str, pairs: list[tuple[int, int]], depths: tuple[int, ...], heads: int, config: UNetConfig
    ) -> None:
        """`pairs` are each residual block's channels (in, out); `depths` the transformer blocks after it."""
        super().__init__()
        self.name = name
        embedding_width = 4 * config.channels[0]
        self.resnets = nn.ModuleList(ResBlock(a, b, config.groups, 1e-5, embedding_width) for a, b in pairs)
        # by number, not in a list: a residual block may have none
        self.attentions = nn.ModuleDict(
            {
                str(j): Transformer(f"{name}.attentions.{j}", pairs[j][1], heads, depth, config)
                if config.context_width
                else Plain(pairs[j][1], heads, config)
                for j, depth in enumerate(depths)
                if depth
            }
        )

    def pair(
        self, j: int, hidden: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None
    ) -> Tensor:
        """The `j`-th residual block and its transformer."""
        return _run(  # type: ignore[no-any-return]
            f"{self.name}.resnets.{j}", partial(self._pair, j), patches, hidden, embedding, context, mask, patches
        )

    def _pair(
        self, j: int, hidden: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None
    ) -> Tensor:
        hidden = self.resnets[j](hidden, embedding)
        if str(j) in self.attentions:
            hidden = self.attentions[str(j)](hidden, context, mask, patches)
        return hidden


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class DownBlock(Level):
    """(B, C_in, H, W) -> (B, C_out, H', W') and the skips that leave it, finest first."""

    def __init__(self, name: str, c_in: int, level: int, config: UNetConfig) -> None:
        c_out, depths = config.channels[level], config.down_depth[level]
        pairs = [(c_in if j == 0 else c_out, c_out) for j in range(len(depths))]
        super().__init__(name, pairs, depths, config.heads[level], config)
        last = level == len(config.channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out)])

    def forward(
        self, hidden: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        skips = []
        for j in range(len(self.resnets)):
            hidden = self.pair(j, hidden, embedding, context, mask, patches)
            hidden, skip = _leave(f"{self.name}.resnets.{j}", hidden, patches)
            skips.append(skip)
        for downsampler in self.downsamplers:
            hidden, skip = _leave(f"{self.name}.downsamplers.0", downsampler(hidden), patches)
            skips.append(skip)
        return hidden, tuple(skips)


class MidBlock(Level):
    """(B, C, H, W) -> (B, C, H, W) at the coarsest level."""

    def __init__(self, depth: int, config: UNetConfig) -> None:
        width = config.channels[-1]
        pairs = [(width, width)] * (2 if depth else 1)
        super().__init__("mid_block", pairs, (depth, 0)[: len(pairs)], config.heads[-1], config)

    def forward(
        self, hidden: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None, patches: Patches | None
    ) -> Tensor:
        for j in range(len(self.resnets)):
            hidden = self.pair(j, hidden, embedding, context, mask, patches)
        return hidden


class UpBlock(Level):
    """(B, C_in, H, W) and its skips, finest first -> (B, C_out, *size)."""

    def __init__(self, name: str, c_in: int, skips: list[int], level: int, config: UNetConfig) -> None:
        """`skips` are the skips' channels in the order in which they are joined; `level` counts from the coarsest."""
        c_out, depths = config.channels[-1 - level], config.up_depth[level]
        pairs = [((c_in if j == 0 else c_out) + skip, c_out) for j, skip in enumerate(skips)]
        super().__init__(name, pairs, depths, config.heads[-1 - level], config)
        last = level == len(config.channels) - 1
        self.upsamplers = nn.ModuleList([] if last else [Upsample(c_out)])

    def forward(
        self,
        hidden: Tensor,
        skips: tuple[Tensor, ...],
        embedding: Tensor,
        context: Tensor,
        mask: Tensor | None,
        patches: Patches | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        change = None if patches is None else patches.skip_scale.get(self.name)
        for j, skip in enumerate(reversed(skips)):
            if change is not None:
                hidden, skip = change(hidden, skip)
            if len(skip) < len(hidden):
                skip = skip.expand(len(hidden), -1, -1, -1).contiguous(memory_format=torch.channels_last)
            hidden = self.pair(j, torch.cat([hidden, skip], 1), embedding, context, mask, patches)
            hidden = _add(f"{self.name}.resnets.{j}", hidden, patches)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden, size)
        return hidden


def skip_channels(config: UNetConfig) -> dict[str, int]:
    """The skip connections' channels by the canonical names of the layers that they leave, in that order."""
    skips = {"conv_in": config.channels[0]}
    for i, width in enumerate(config.channels):
        skips |= {f"down_blocks.{i}.resnets.{j}": width for j in range(len(config.down_depth[i]))}
        if i < len(config.channels) - 1:
            skips[f"down_blocks.{i}.downsamplers.0"] = width
    return skips


def transformer_blocks(config: UNetConfig) -> dict[str, int]:
    """The transformer blocks' canonical names, in the order in which they run, and the level of each, 0 the finest."""
    if not config.context_width:
        return {}
    last = len(config.channels) - 1
    sides = [(f"down_blocks.{i}", i, depths) for i, depths in enumerate(config.down_depth)]
    sides += [("mid_block", last, (config.mid_depth or 0,))]
    sides += [(f"up_blocks.{i}", last - i, depths) for i, depths in enumerate(config.up_depth)]
    return {
        f"{name}.attentions.{j}.transformer_blocks.{k}": level
        for name, level, depths in sides
        for j, depth in enumerate(depths)
        for k in range(depth)
    }


def cross_attentions(config: UNetConfig) -> dict[str, int]:
    """The cross-attentions' canonical names with their widths, in the order in which IP-Adapter's files count them:
    diffusers' of its attention processors, where the middle comes last."""
    found = sorted(transformer_blocks(config).items(), key=lambda item: item[0].startswith("mid_block"))
    return {f"{name}.attn2": config.channels[level] for name, level in found}


def level_size(height: int, width: int, level: int) -> tuple[int, int]:
    """Latents' (height, width) at a level: each halves the sides, rounded up."""
    return math.ceil(height / 2**level), math.ceil(width / 2**level)


class Encoder(nn.Module):
    """The way down of the U-Net, its middle, and what they are told: what a ControlNet is a copy of."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels, 4 * config.channels[0]
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = Embedding(channels[0], width, config.guidance_width)
        added = config.pooled_width + config.size_ids * config.size_id_width
        self.add_embedding = Embedding(added, width) if added else None
        self.down_blocks = nn.ModuleList(
            DownBlock(f"down_blocks.{i}", channels[max(i - 1, 0)], i, config) for i in range(len(channels))
        )
        self.mid_block = None if config.mid_depth is None else MidBlock(config.mid_depth, config)

    def embed(
        self, timestep: Tensor, pooled: Tensor | None, time_ids: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        """The vector that every residual block is told: (B or 1, E)."""
        dtype = self.conv_in.weight.dtype
        condition = None
        if guidance is not None:
            condition = guidance_embedding(guidance, self.config.guidance_width).to(dtype)
        embedding: Tensor = self.time_embedding(sinusoid(timestep, self.config.channels[0]).to(dtype), condition)
        if self.add_embedding is None:
            return embedding
        parts = [] if pooled is None else [pooled]
        if time_ids is not None:
            parts.append(sinusoid(time_ids.flatten(), self.config.size_id_width).reshape(len(time_ids), -1))
        rows = max(len(part) for part in parts)
        added = torch.cat([part.to(dtype).expand(rows, -1) for part in parts], -1)
        return embedding + self.add_embedding(added)  # type: ignore[no-any-return]


class UNet(Encoder):
    """Predicts what the family's `Process` says (noise, velocity ...) of noisy latents.

    Made in evaluation mode, in which a picture's bits do not depend on its batch; `train()` trades that for speed.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        channels = config.channels
        left, c_in = list(skip_channels(config).values()), channels[-1]  # the skips are joined from the last
        self.up_blocks = nn.ModuleList()
        for i, c_out in enumerate(reversed(channels)):
            taken = [left.pop() for _ in config.up_depth[i]]
            self.up_blocks.append(UpBlock(f"up_blocks.{i}", c_in, taken, i, config))
            c_in = c_out

        self.conv_norm_out = GroupNorm(config.groups, channels[0], eps=1e-5)
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)
        self.eval()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        patches: Patches | None = None,
    ) -> Tensor:
        """The network's raw output (B, out_channels, H, W).

        latents (B, in_channels, H, W) of any size; timestep (B,), fractions welcome; context (B, T, C), not looked at
        where there is no text; `mask` (B, T) bool, True where the context counts; `pooled` (B, P) and `time_ids`
        (B, size_ids) for SDXL; `guidance` (B,) is the CFG scale that an LCM is told. Each may have B = 1 for all
        pictures alike, which is also the cheapest: what the branches of a guided step have in common is computed once,
        with SD 1.5 all that comes before the first look at the context.

        What `patches.blocks` wraps: a down block's (hidden, embedding, context, mask, patches) -> (hidden, skips);
        the middle's, alike but -> hidden; an up block's (hidden, skips, embedding, context, mask, patches, size) ->
        hidden; a residual block's with its transformer, as the middle's; a transformer block's, and of its layers
        `attn2`'s, (tokens, context, mask, patches) -> tokens.
        """
        embedding = self.embed(timestep, pooled, time_ids, guidance)
        mask = None if mask is None else mask[:, None, None, :]
        latents = latents.contiguous(memory_format=torch.channels_last)  # and so is all that comes of them
        hidden, skip = _leave("conv_in", self.conv_in(latents), patches)
        skips = [skip]
        for i, block in enumerate(self.down_blocks):
            name = f"down_blocks.{i}"
            hidden, left = _run(name, block, patches, hidden, embedding, context, mask, patches)
            hidden = _add(name, hidden, patches)
            skips += left
        if self.mid_block is not None:
            hidden = _run("mid_block", self.mid_block, patches, hidden, embedding, context, mask, patches)
        hidden = _add("mid_block", hidden, patches)
        for i, block in enumerate(self.up_blocks):
            name, count = f"up_blocks.{i}", len(self.config.up_depth[i])
            taken, skips = tuple(skips[-count:]), skips[:-count]
            # odd sizes were rounded up on the way down: the next level's skips say what size it had
            size = tuple(skips[-1].shape[-2:]) if skips else None
            hidden = _run(name, block, patches, hidden, taken, embedding, context, mask, patches, size)
            hidden = _add(name, hidden, patches)
        return self.conv_out(F.silu(self.conv_norm_out(hidden), inplace=True))  # type: ignore[no-any-return]


def _run(name: str, block: Callable[..., Any], patches: Patches | None, *arguments: Any) -> Any:
    """The block, within its wrapper where there is one."""
    wrap = None if patches is None else patches.blocks.get(name)
    return block(*arguments) if wrap is None else wrap(block, arguments)


def _add(name: str, hidden: Tensor, patches: Patches | None) -> Tensor:
    """The main flow after the block, with its residual."""
    residual = None if patches is None else patches.residuals.get(name)
    return hidden if residual is None else hidden + residual


def _leave(name: str, hidden: Tensor, patches: Patches | None) -> tuple[Tensor, Tensor]:
    """What leaves a layer of the down path: the main flow, and the skip connection, which has additions of its own."""
    hidden = _add(name, hidden, patches)
    extra = None if patches is None else patches.skips.get(name)
    return hidden, hidden if extra is None else hidden + extra
