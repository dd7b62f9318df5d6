"""Small random-weight models of every family, for the checkpoint tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from danqing.checkpoints.checkpoint import networks
from danqing.checkpoints.files import Entry
from danqing.families import FAMILIES, Family, Model


def small_family(name: str) -> Family:
    """The row, with 32 to 64 channels and the same names as the full networks but for transformer depth.

    Where there is no text, a head has its 32 channels: latent diffusion's files are laid out by heads.
    """
    row = FAMILIES[name]
    unet = row.denoiser
    levels = len(unet.channels)
    width = 16 * len(row.text_encoders)
    pooled = 16 if unet.pooled_width else 0
    encoders = tuple(
        replace(
            encoder,
            pad_token=min(encoder.pad_token, 98),
            config=replace(
                encoder.config, vocabulary=100, width=16, intermediate=32, layers=3, heads=2, positions=77,
                projection=16 if encoder.config.projection else None, end_token=99,
            ),
        )
        for encoder in row.text_encoders
    )  # fmt: skip
    unet = replace(
        unet,
        channels=(32, 64, 64, 64)[:levels],
        down_depth=tuple(tuple(min(d, 2) for d in depth) for depth in unet.down_depth),
        mid_depth=min(unet.mid_depth, 2) if unet.mid_depth else unet.mid_depth,
        up_depth=tuple(tuple(min(d, 2) for d in depth) for depth in unet.up_depth),
        heads=((2, 4, 4, 4) if row.text_encoders else (1, 2, 2, 2))[:levels],
        context_width=width,
        pooled_width=pooled,
        size_id_width=8 if unet.size_ids else unet.size_id_width,
        groups=8,
    )
    vae = row.autoencoder
    vae = replace(
        vae, channels=(8, 16, 16, 16)[: len(vae.channels)], layers=1, groups=4, codebook=min(vae.codebook, 20)
    )
    return replace(row, denoiser=unet, autoencoder=vae, text_encoders=encoders)


def random_model(family: Family, dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    generator = torch.Generator().manual_seed(seed)
    nets = networks(family)
    for net in nets.values():
        state = {
            key: (0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for key, tensor in net.state_dict().items()
        }
        net.load_state_dict(state, assign=True)
        net.requires_grad_(False)
    texts = {encoder.name: nets[encoder.name] for encoder in family.text_encoders}
    return Model(family, nets["unet"], nets["vae"], texts, name="small")


def states(model: Model) -> dict[str, torch.Tensor]:
    nets = {"unet": model.denoiser, "vae": model.autoencoder, **model.text_encoders}
    return {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a
    )


def entries(state: dict[str, torch.Tensor]) -> dict[str, Entry]:
    return {key: Entry(tuple(t.shape), t.dtype, lambda t=t: t) for key, t in state.items()}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    from danqing.checkpoints.files import open_file

    file = open_file(path)
    return {key: file.read(key) for key in file.entries}
