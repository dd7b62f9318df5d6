"""Latent-diffusion super-resolution against diffusers: the networks, the file's layout, and a whole picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
from small import entries, random_model, same, small_family

from danqing.checkpoints import layouts, sidecars
from danqing.checkpoints.load import load
from danqing.checkpoints.save import save
from danqing.families import Model
from danqing.pipeline import ldsr
from danqing.pipeline.ldsr import LatentUpscaler

Parity = Callable[[str, str, float, float], None]


@pytest.fixture
def model() -> Model:
    return random_model(small_family("ldsr"))


def reference_unet(model: Model) -> UNet2DModel:
    unet = UNet2DModel.from_config(sidecars.unet_json(model.family.denoiser, 64))
    unet.load_state_dict(model.denoiser.state_dict())
    return unet.eval()


def reference_vae(model: Model) -> VQModel:
    vae = VQModel.from_config(sidecars.vae_json(model.family.autoencoder, 64))
    vae.load_state_dict(model.autoencoder.state_dict())
    return vae.eval()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 24), (64, 40)])
def test_unet_without_text(size: tuple[int, int], model: Model, parity: Parity) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, *size, generator=generator)
    for time in (1.0, 501.0):
        ours = model.denoiser(x, torch.tensor([time]), torch.zeros(1, 0, 0))
        theirs = reference_unet(model)(x, time).sample
        name = f"U-Net without text, {size[0]}x{size[1]}, step {time:g}"
        parity(name, "diffusers UNet2DModel", relative(ours, theirs), 1e-5)


@torch.no_grad()
def test_vq_autoencoder(model: Model, parity: Parity) -> None:
    generator = torch.Generator().manual_seed(2)
    reference = reference_vae(model)
    pixels = torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1
    theirs = reference.encode(pixels).latents
    posterior = model.autoencoder.encode(pixels)
    parity("VQ autoencoder, encode", "diffusers VQModel", relative(posterior.mode(), theirs), 1e-5)
    assert torch.equal(posterior.sample(torch.randn(2, 3, 8, 12)), posterior.mode())
    latents = torch.randn(2, 3, 8, 12, generator=generator) / 10
    ours = model.autoencoder.decode(latents)
    parity("VQ autoencoder, decode", "diffusers VQModel", relative(ours, reference.decode(latents).sample), 1e-5)


def test_the_joined_attention_of_latent_diffusion(model: Model, parity: Parity) -> None:
    """Written down as openaimodel.py reads it: per head, its queries, keys and values one below the other."""
    config = model.family.denoiser
    state = model.denoiser.state_dict()
    table = layouts.unet_table(layouts.Depths(config.down_depth, config.mid_depth, config.up_depth, plain=True))
    foreign, left = table.to_foreign(entries(state))
    assert not left
    weight = foreign["middle_block.1.qkv.weight"].load()
    bias = foreign["middle_block.1.qkv.bias"].load()
    proj = foreign["middle_block.1.proj_out.weight"].load()
    assert (weight.shape, bias.shape, proj.shape) == ((192, 64, 1), (192,), (64, 64, 1))
    x = torch.randn(1, 64, 5, generator=torch.Generator().manual_seed(3))
    qkv = torch.nn.functional.conv1d(x, weight, bias).reshape(2, 3 * 32, 5)
    query, key, value = qkv.split(32, dim=1)
    found = (value @ ((key.transpose(1, 2) @ query) / 32**0.5).softmax(1)).reshape(1, 64, 5)
    theirs = torch.nn.functional.conv1d(found, proj, foreign["middle_block.1.proj_out.bias"].load()) + x
    ours = model.denoiser.mid_block.attentions["0"]
    ours.group_norm = torch.nn.Identity()
    parity("attention without text, joined", "openaimodel.py", relative(ours(x[..., None])[..., 0], theirs), 1e-5)
    back, odd = table.to_canonical(foreign)
    assert not odd
    assert same({name: entry.load() for name, entry in back.items()}, state)


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_whole_picture(eta: float, model: Model, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldsr, "LEAST", 64)
    model.autoencoder.decoder.conv_out.weight.mul_(5)  # random weights are grey otherwise
    scheduler = DDIMScheduler.from_config(sidecars.scheduler_json(model.family))
    pipe = LDMSuperResolutionPipeline(reference_vae(model), reference_unet(model), scheduler)
    pipe.set_progress_bar_config(disable=True)
    image = photograph(64, 64)
    with torch.random.fork_rng(devices=[]):
        # the pipeline gives its generator to the start noise alone; the sampler's comes from the global one
        generator = torch.manual_seed(ldsr.SEED)
        theirs = pipe(image, num_inference_steps=4, eta=eta, generator=generator, output_type="pt").images
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    ours = LatentUpscaler(model, steps=4, eta=eta)(pixels)
    assert ours.shape == (1, 3, 256, 256)
    assert float(ours.std()) > 0.02
    parity(f"LDSR, eta {eta:g}", "diffusers LDMSuperResolutionPipeline", float((ours - theirs).abs().max()), 1 / 255)


def test_folders_both_ways(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path / "ours", layout="diffusers")
    pipe = LDMSuperResolutionPipeline.from_pretrained(tmp_path / "ours")
    assert same(dict(pipe.unet.state_dict()), dict(model.denoiser.state_dict()))
    assert same(dict(pipe.vqvae.state_dict()), dict(model.autoencoder.state_dict()))
    pipe.save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs")
    assert replace(found.family, spacing=None) == replace(model.family, spacing=None)
    assert same(dict(found.denoiser.state_dict()), dict(model.denoiser.state_dict()))
