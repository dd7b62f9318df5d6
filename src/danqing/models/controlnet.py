"""ControlNet (Zhang, Rao & Agrawala 2023): a copy of a U-Net's way down that is shown a picture, its hint.

What it makes enters the U-Net's skip connections and its middle through 1x1 convolutions that begin at zero. Modules
are named as diffusers' ControlNetModel and ControlNetUnionModel name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.layers import Conv2d, per_row
from danqing.models.unet import Embedding, Encoder, UNet, UNetConfig, sinusoid, skip_channels

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class ControlNetConfig:
    unet: UNetConfig
    """The U-Net whose way down and middle are copied; its way up is not looked at."""
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    """Per scale of the hint's embedding, from the pixels; each but the first halves the size."""
    bgr: bool = False
    """Whether it was trained on hints whose channels run from blue to red."""
    pooled: bool = False
    """Whether what it makes is averaged over each level's pixels, and the place is lost (ControlNet 1.1's shuffle)."""
    tasks: int = 0
    """How many kinds of hint a union network tells apart; 0 is a network of one kind."""
    task_width: int = 320
    task_layers: int = 1
    task_heads: int = 8

    @property
    def downscale(self) -> int:
        """Pixels of the hint to one of the latents, along a side."""
        return int(2 ** (len(self.hint_widths) - 1))


class HintEmbedding(nn.Module):
    """Pixels to the latents' size: (B, hint_channels, H, W) -> (B, C, H / downscale, W / downscale)."""

    def __init__(self, c_in: int, widths: tuple[int, ...], c_out: int) -> None:
        super().__init__()
        self.conv_in = Conv2d(c_in, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in pairwise(widths):
            self.blocks.append(Conv2d(a, a, 3, padding=1))
            self.blocks.append(Conv2d(a, b, 3, stride=2, padding=1))
        self.conv_out = Conv2d(widths[-1], c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)  # type: ignore[no-any-return]


class _QuickGELU(nn.Module):
    """x times its sigmoid, as CLIP's (Hendrycks & Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TaskBlock(nn.Module):
    """One transformer layer over a handful of vectors, as CLIP's: (B, T, C) -> (B, T, C).

    Its attention runs along the batch, for so the published network was written and trained. A picture must not depend
    on its neighbours, so it is called with one picture (B = 1), where a vector attends to itself alone.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "gelu": _QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        inner = self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](inner)  # type: ignore[no-any-return]


class ControlNet(Encoder):
    """What a hint adds to a U-Net: called with the same latents, step and text as the U-Net itself.

    Made in evaluation mode, as the U-Net is; its zero convolutions are zero until weights are loaded or trained.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self.control = config
        unet, width = config.unet, config.unet.channels[0]
        self.controlnet_cond_embedding = HintEmbedding(config.hint_channels, config.hint_widths, width)
        if config.tasks:
            self.task_embedding = nn.Parameter(torch.randn(config.tasks, config.task_width) * config.task_width**0.5)
            self.transformer_layes = nn.ModuleList(  # the published files' spelling
                TaskBlock(config.task_width, config.task_heads) for _ in range(config.task_layers)
            )
            self.spatial_ch_projs = _zero(nn.Linear(config.task_width, width))
            self.control_add_embedding = Embedding(config.tasks * unet.size_id_width, 4 * width)
        self.controlnet_down_blocks = nn.ModuleList(_zero(Conv2d(c, c, 1)) for c in skip_channels(unet).values())
        self.controlnet_mid_block = _zero(Conv2d(unet.channels[-1], unet.channels[-1], 1))
        _zero(self.controlnet_cond_embedding.conv_out)
        self.eval()

    def hint(self, picture: Tensor) -> Tensor:
        """A hint (B, hint_channels, H, W), from 0 to 1 (-1 where an inpainting one is masked), as `forward` takes it.

        It does not depend on the step: make it once for a picture.
        """
        return self.controlnet_cond_embedding(picture.flip(1) if self.control.bgr else picture)  # type: ignore[no-any-return]

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        hints: Sequence[Tensor],
        *,
        tasks: Sequence[int] = (),
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is to be added, by canonical name: to the skip connections, in their order, and `mid_block`'s last.

        hints: what `hint` made of one picture (B or 1, C, H, W); a union network takes several, and `tasks` says of
        which kind each is (from 0). All else is as `UNet.forward` takes it.
        """
        embedding = self.embed(timestep, pooled, time_ids, guidance)
        mask = None if mask is None else mask[:, None, None, :]
        hidden = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        if self.control.tasks:
            embedding = embedding + self._kinds(tasks, embedding)
            hidden = hidden + self._fused(hidden, hints, tasks)
        else:
            hidden = hidden + hints[0]
        skips = [hidden]
        for block in self.down_blocks:
            hidden, left = block(hidden, embedding, context, mask, None)
            skips += left
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, embedding, context, mask, None)
        names = [*skip_channels(self.config), "mid_block"]
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        made = [layer(x) for layer, x in zip(layers, [*skips, hidden])]
        if self.control.pooled:
            made = [x.mean((2, 3), keepdim=True) for x in made]
        return dict(zip(names, made))

    def _kinds(self, tasks: Sequence[int], like: Tensor) -> Tensor:
        """Which kinds of hint there are, as every residual block is told it: (1, E)."""
        flags = torch.zeros(self.control.tasks, device=like.device)
        flags[list(tasks)] = 1
        told = sinusoid(flags, self.config.size_id_width).flatten()[None].to(like.dtype)
        return self.control_add_embedding(told)  # type: ignore[no-any-return]

    def _fused(self, hidden: Tensor, hints: Sequence[Tensor], tasks: Sequence[int]) -> Tensor:
        """The hints' sum, each shifted by what the transformer makes of all of them and of the latents."""
        rows = len(hidden)
        means = [hint.mean((2, 3)) + self.task_embedding[task] for hint, task in zip(hints, tasks)]
        means = [mean.expand(rows, -1) for mean in [*means, hidden.mean((2, 3))]]
        x = torch.stack(means, 1)  # (B, hints + 1, C)
        for layer in self.transformer_layes:
            x = per_row(layer, x)
        shift = per_row(self.spatial_ch_projs, x[:, : len(hints)]).sum(1)
        total = hints[0] if len(hints) == 1 else torch.stack(list(hints)).sum(0)
        return total + shift[:, :, None, None]


def from_unet(unet: UNet, hint_channels: int = 3, *, bgr: bool = False) -> ControlNet:
    """A fresh ControlNet to be trained: a copy of the U-Net's way down that as yet adds nothing.

    Weights are copied, in the U-Net's own type and on its device, and want gradients (Zhang et al. 2023, section 3.1).
    """
    network = ControlNet(ControlNetConfig(unet.config, hint_channels, bgr=bgr))
    network.to(unet.conv_in.weight.device, unet.conv_in.weight.dtype)
    weights, own = unet.state_dict(), network.state_dict()
    network.load_state_dict({name: weights.get(name, tensor) for name, tensor in own.items()})
    return network.requires_grad_(True)


def _zero(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
