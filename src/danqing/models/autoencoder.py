"""The autoencoders of latent diffusion (Rombach et al. 2022): KL, and VQ, which rounds latents to a codebook's vectors.

Modules are named as diffusers' AutoencoderKL and VQModel name them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models import bands
from danqing.models.layers import Conv2d, GroupNorm, PixelAttention, ResBlock, Upsample, by_row
from danqing.runtime.tiles import tiled

EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    quant_convolutions: bool = True
    """Whether `quant_conv` and `post_quant_conv` are there (SD 1.x, 2.x, XL; not SD 3)."""
    codebook: int = 0
    """The vectors that latents are rounded to before they are decoded (VQ, van den Oord et al. 2017); 0 is none (KL)."""
    scale: float = 0.18215
    shift: float = 0.0
    """Model-space latents are (z - shift) * scale."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Per channel, where a family normalises so (Playground 2.5): (z - mean) / std * scale."""

    @property
    def moments(self) -> int:
        """The encoder's channels: mean and log variance of each latent value, or the value itself (VQ)."""
        return self.latent_channels if self.codebook else 2 * self.latent_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along each axis."""
        return 1 << (len(self.channels) - 1)


@dataclass(frozen=True)
class Posterior:
    """What the encoder says of a picture: a normal distribution per latent value, in model space."""

    mean: Tensor
    """(B, C, H, W)."""
    logvar: Tensor
    """(B, C, H, W); minus infinity where there is but one answer (VQ)."""

    def sample(self, noise: Tensor) -> Tensor:
        """Latents drawn by `noise` (B, C, H, W) of unit variance."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The likeliest latents (B, C, H, W)."""
        return self.mean


class MidBlock(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(width, groups, EPS)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Half the size; the padding is on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Residual blocks at one size, then a change of size where there is one."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(c_in if j == 0 else c_out, c_out, groups, EPS) for j in range(layers))
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> moments (B, 2 C, h, w), or latents (B, C, h, w) where there is a codebook."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = Conv2d(3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, c_out in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], c_out, config.layers, config.groups)
            if i < len(channels) - 1:
                level.downsamplers.append(Downsample(c_out))
            self.down_blocks.append(level)
        self.mid_block = MidBlock(channels[-1], config.groups)
        self.conv_norm_out = GroupNorm(config.groups, channels[-1], EPS)
        self.conv_out = Conv2d(channels[-1], config.moments, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = F.silu(self.conv_norm_out(self.mid_block(x)), inplace=True)
        return self.conv_out(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents (B, C, h, w) -> pixels (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels[::-1]
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], config.groups)
        self.up_blocks = nn.ModuleList()
        for i, c_out in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], c_out, config.layers + 1, config.groups)
            if i < len(channels) - 1:
                level.upsamplers.append(Upsample(c_out))
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(config.groups, channels[-1], EPS)
        self.conv_out = Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.conv_out.in_channels * x.shape[-2] * x.shape[-1] << 2 * (len(self.up_blocks) - 1)
        if bands.pay((layer for layer in self.modules() if isinstance(layer, nn.Conv2d)), x, cells):
            return by_row(self._in_bands, x)
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x), inplace=True))  # type: ignore[no-any-return]

    def _in_bands(self, x: Tensor) -> Tensor:
        """`forward` of one picture."""
        rows = bands.measured(self.mid_block(self.conv_in(x.contiguous(memory_format=torch.channels_last))))
        for layer in (layer for level in self.up_blocks for part in level.children() for layer in part.children()):
            if isinstance(layer, ResBlock):
                bands.res_block(layer, rows)
            elif isinstance(layer, Upsample):
                bands.upsample(layer, rows)
        return bands.normed_convolution(self.conv_norm_out, self.conv_out, rows)


QUANTIZE_ROWS = 1024
"""Vectors at a time: their distances to a codebook of 8192 are 32 MB."""


class Quantizer(nn.Module):
    """Latents (B, C, h, w) -> each cell's nearest vector of the codebook, alike."""

    def __init__(self, vectors: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vectors, width)

    def forward(self, latents: Tensor) -> Tensor:
        cells = latents.permute(0, 2, 3, 1)  # (B, h, w, C)
        book = self.embedding.weight.float()
        rows = cells.flatten(0, 2).float()
        parts = [rows[i : i + QUANTIZE_ROWS] for i in range(0, len(rows), QUANTIZE_ROWS)]
        nearest = torch.cat([torch.cdist(part, book).argmin(1) for part in parts])
        return self.embedding(nearest).view_as(cells).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Between pixels in [-1, 1] and model-space latents: scale, shift, mean and deviation are applied within.

    What comes in is cast to the weights' precision, what goes out is float32.
    Made in evaluation mode, in which a picture's bits do not depend on its batch; `train()` trades that for speed.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latent, moments = config.latent_channels, config.moments
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook, latent) if config.codebook else None
        self.quant_conv = Conv2d(moments, moments, 1) if config.quant_convolutions else None
        self.post_quant_conv = Conv2d(latent, latent, 1) if config.quant_convolutions else None
        self.eval()

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) in [-1, 1], H and W multiples of `config.downscale` -> latents' distribution."""
        return self._posterior(self._moments(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) in model space -> pixels (B, 3, H, W), [-1, 1] but for overshoot."""
        return self._pixels(self._raw(latents))

    def decode_tiled(self, latents: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
        """`decode` in tiles of `tile` latent cells that overlap by `overlap`, blended: memory for one tile, not all.

        Close to `decode`, not equal: normalisation sees a tile at a time. Raises ValueError unless overlap < tile.
        """
        return tiled(self._pixels, self._raw(latents), tile, overlap, (self.config.downscale, 1))

    def encode_tiled(self, pixels: Tensor, tile: int = 64, overlap: int = 16) -> Posterior:
        """`encode` in tiles, likewise; `tile` and `overlap` in latent cells."""
        scale = self.config.downscale
        return self._posterior(tiled(self._moments, pixels, tile * scale, overlap * scale, (1, scale)))

    def _moments(self, pixels: Tensor) -> Tensor:
        moments: Tensor = self.encoder(pixels.to(self.encoder.conv_in.weight.dtype))
        return (moments if self.quant_conv is None else self.quant_conv(moments)).float()

    def _pixels(self, latents: Tensor) -> Tensor:
        latents = latents if self.quantize is None else self.quantize(latents)
        latents = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decoder(latents).float()  # type: ignore[no-any-return]

    def _raw(self, latents: Tensor) -> Tensor:
        """From model space to the decoder's own."""
        factor, offset = self._normal(latents)
        return (latents.float() / factor + offset).to(self.decoder.conv_in.weight.dtype)

    def _posterior(self, moments: Tensor) -> Posterior:
        if self.quantize is not None:
            mean, logvar = moments, torch.full_like(moments, -torch.inf)
        else:
            mean, logvar = moments.chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
        factor, offset = self._normal(mean)
        return Posterior((mean - offset) * factor, logvar + 2 * factor.log())

    def _normal(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(factor, offset), each (1, C or 1, 1, 1) float32: model space is (z - offset) * factor."""
        config = self.config
        mean = torch.tensor(config.mean or (config.shift,), device=like.device, dtype=torch.float32)
        std = torch.tensor(config.std or (1.0,), device=like.device, dtype=torch.float32)
        return (config.scale / std).view(1, -1, 1, 1), mean.view(1, -1, 1, 1)
