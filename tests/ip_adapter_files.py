"""Small IP-Adapters, CLIP image towers and PhotoMakers of random weights, as the files that people have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig
from danqing.models.ip_adapter import IPAdapter, IPAdapterConfig
from danqing.models.photomaker import PhotoMaker, PhotoMakerConfig
from danqing.models.unet import UNetConfig, cross_attentions

VISION = CLIPVisionConfig(width=64, intermediate=96, layers=3, heads=1, picture=32, patch=8, projection=48)
"""One head of 64 channels and quick_gelu or gelu, as an unknown width is read."""
VISION = replace(VISION, activation="gelu")


def config_of(kind: str, context: int) -> IPAdapterConfig:
    return {
        "plain": IPAdapterConfig("plain", 48, context),
        "plus": IPAdapterConfig("plus", 64, context, tokens=6, width=96, layers=4, heads=2),
        "full": IPAdapterConfig("full", 64, context),
        "face": IPAdapterConfig("face", 512, context, inner=1024),
        "face plus": IPAdapterConfig("face plus", 64, context, width=96, layers=4, heads=2, inner=1024),
        "instant": IPAdapterConfig("plus", 512, context, tokens=5, width=64, layers=4, heads=1),
    }[kind]


def spread(network: nn.Module, seed: int, scale: float = 0.15) -> dict[str, Tensor]:
    """Weights of which every one has its say."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor.detach() + scale * torch.randn(tensor.shape, generator=generator)
        for key, tensor in network.state_dict().items()
    }


def ip_adapter(kind: str, unet: UNetConfig, seed: int = 1) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spread(IPAdapter(config_of(kind, unet.context_width), cross_attentions(unet)), seed)


def save_ip_adapter(path: Path, kind: str, unet: UNetConfig, seed: int = 1) -> Path:
    """In safetensors' layout, or for a name that ends in .bin in the nested dictionaries of torch's."""
    state = ip_adapter(kind, unet, seed)
    if path.suffix == ".bin":
        groups = ("image_proj", "ip_adapter")
        torch.save({g: {k[len(g) + 1 :]: v for k, v in state.items() if k.startswith(g + ".")} for g in groups}, path)
    else:
        save_file(state, path)
    return path


def tower(seed: int = 5) -> CLIPVision:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIPVision(VISION)
    network.load_state_dict(spread(network, seed, 0.05))
    return network.requires_grad_(False).eval()


def save_tower(path: Path, seed: int = 5) -> Path:
    save_file(tower(seed).state_dict(), path)
    return path


def photomaker(context: int, faces: bool, seed: int = 7) -> PhotoMaker:
    config = PhotoMakerConfig(
        VISION,
        context - VISION.projection,
        faces,
        face_inner=64,
        tokens=2 if faces else 1,
        layers=2,
        head_width=min(context, 128),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PhotoMaker(config)
    network.load_state_dict(spread(network, seed, 0.05))
    return network.requires_grad_(False).eval()
