"""A tiny Stable Diffusion 1.x of random weights: it paints noise, quickly."""

from __future__ import annotations

from dataclasses import replace

import torch

from danqing.families import CLIP_L, SD1, Defaults, Model, TextEncoder, variant
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet

TINY = variant(
    SD1,
    "tiny",
    "tiny random weights",
    text_encoders=(TextEncoder("text_encoder", replace(CLIP_L, width=64, intermediate=128, layers=2, heads=2)),),
    denoiser_channels=(32, 64, 64),
    denoiser_down_depth=((0, 0), (1, 1), (1, 1)),
    denoiser_up_depth=((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    denoiser_heads=(2, 2, 2),
    denoiser_context_width=64,
    autoencoder=AutoencoderConfig(channels=(32, 32, 64, 64), layers=1),
    defaults=Defaults(width=128, height=128, steps=10),
)


def tiny_model(device: torch.device, dtype: torch.dtype) -> Model:
    """The same random weights every time; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TINY.text_encoders[0]
        denoiser, autoencoder, text = UNet(TINY.denoiser), Autoencoder(TINY.autoencoder), CLIPText(encoder.config)
    for network in (denoiser, autoencoder, text):
        network.to(device, dtype).requires_grad_(False)
    return Model(TINY, denoiser, autoencoder, {encoder.name: text}, name="tiny-random")
