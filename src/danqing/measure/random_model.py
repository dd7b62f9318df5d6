"""Full-size models of random weights: speed does not ask what was learnt."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

from danqing.families import Family, Model
from danqing.models.autoencoder import Autoencoder
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet
from danqing.runtime.blank import without_weights

Network = TypeVar("Network", bound=nn.Module)


def randomise(network: Network, dtype: torch.dtype, seed: int) -> Network:
    """Weights of a spread that keeps values finite: 1 / sqrt(fan in), norms at one, biases at zero."""
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed))
    state = {}
    for index, (name, shaped) in enumerate(network.state_dict().items()):
        if shaped.ndim == 1:
            state[name] = torch.full(shaped.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
            continue
        count = shaped.numel()
        drawn = pool[7919 * index % (len(pool) // 2) :][:count]
        flat = drawn.repeat(math.ceil(count / len(drawn)))[:count]
        spread = 0.02 if "embedding" in name else 1 / math.sqrt(math.prod(shaped.shape[1:]))
        state[name] = (flat * spread).to(dtype).view(shaped.shape)
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def random_model(family: Family, dtype: torch.dtype = torch.float16, seed: int = 0) -> Model:
    """A full-size model of `family` with random weights."""
    with without_weights():
        denoiser, autoencoder = UNet(family.denoiser), Autoencoder(family.autoencoder)
        encoders = {encoder.name: CLIPText(encoder.config) for encoder in family.text_encoders}
    return Model(
        family=family,
        denoiser=randomise(denoiser, dtype, seed),
        autoencoder=randomise(autoencoder, dtype, seed + 1),
        text_encoders={name: randomise(net, dtype, seed + 2 + i) for i, (name, net) in enumerate(encoders.items())},
        name=f"random-{family.name}",
    )
