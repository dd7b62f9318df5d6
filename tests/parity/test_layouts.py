"""Layouts against diffusers: its own conversion functions, its network classes' names, its pipelines on our folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
from small import entries, random_model, same, small_family, states

from danqing.checkpoints import layouts, sidecars
from danqing.checkpoints.checkpoint import networks
from danqing.checkpoints.load import load
from danqing.checkpoints.save import convert, save, write_tokenizer
from danqing.families import FAMILIES


def read(found: layouts.Entries) -> dict[str, torch.Tensor]:
    return {key: entry.load() for key, entry in found.items()}


def numbered(names: list[str]) -> dict[str, torch.Tensor]:
    """A tensor for each name, of its own value: a swapped pair cannot hide."""
    return {name: torch.tensor([float(i)]) for i, name in enumerate(names)}


def wrong(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    """How many tensors differ in name, shape or any bit."""
    both = ours.keys() & theirs.keys()
    return len(ours.keys() ^ theirs.keys()) + sum(
        ours[key].shape != theirs[key].shape or not torch.equal(ours[key], theirs[key]) for key in both
    )


@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner"])
def test_full_unet_names_against_diffusers_conversion(name: str, parity) -> None:
    family = FAMILIES[name]
    unet = family.denoiser
    canonical = numbered(list(networks(family)["unet"].state_dict()))
    table = layouts.unet_table(layouts.Depths(unet.down_depth, unet.mid_depth, unet.up_depth))
    foreign, left = table.to_foreign(entries(canonical))
    assert not left
    config = {"layers_per_block": 2, "addition_embed_type": "text_time" if unet.size_ids else None}
    reference = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": value for key, value in read(foreign).items()}, config
    )
    back, odd = table.to_canonical(foreign)
    assert not odd
    parity(f"U-Net layout {name}", "diffusers convert_ldm_unet_checkpoint", wrong(read(back), reference), 0)
    parity(f"U-Net layout {name}, there and back", "itself", wrong(read(back), canonical), 0)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner", "ssd-1b", "vega"])
def test_depths_are_read_off_the_names(name: str) -> None:
    unet = FAMILIES[name].denoiser
    depths = layouts.Depths(unet.down_depth, unet.mid_depth, unet.up_depth)
    canonical = numbered(list(networks(FAMILIES[name])["unet"].state_dict()))
    foreign, _ = layouts.unet_table(depths).to_foreign(entries(canonical))
    assert layouts.unet_depths(dict.fromkeys(foreign, (1,))) == depths


def test_vae_against_diffusers_conversion(parity) -> None:
    family = small_family("sd1")
    vae = random_model(family).autoencoder.state_dict()
    table = layouts.vae_table(4, family.autoencoder.layers)
    foreign, left = table.to_foreign(entries(vae))
    assert not left
    assert foreign["encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    config = {"down_block_types": ["x"] * 4, "up_block_types": ["x"] * 4}
    reference = convert_ldm_vae_checkpoint({f"first_stage_model.{k}": v for k, v in read(foreign).items()}, config)
    back, _ = table.to_canonical(foreign)
    parity("VAE layout", "diffusers convert_ldm_vae_checkpoint", wrong(read(back), reference), 0)
    parity("VAE layout, there and back", "itself", wrong(read(back), vae), 0)


@pytest.mark.parametrize("layers", [23, 32])
def test_open_clip_against_diffusers_conversion(layers: int, parity) -> None:
    generator = torch.Generator().manual_seed(layers)
    width = 8

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        "positional_embedding": random(77, width),
        "token_embedding.weight": random(20, width),
        "ln_final.weight": random(width),
        "ln_final.bias": random(width),
        "text_projection": random(width, width),
        "logit_scale": torch.tensor(4.6),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        state |= {
            f"{block}.attn.in_proj_weight": random(3 * width, width),
            f"{block}.attn.in_proj_bias": random(3 * width),
            f"{block}.attn.out_proj.weight": random(width, width),
            f"{block}.attn.out_proj.bias": random(width),
            f"{block}.mlp.c_fc.weight": random(4 * width, width),
            f"{block}.mlp.c_fc.bias": random(4 * width),
            f"{block}.mlp.c_proj.weight": random(width, 4 * width),
            f"{block}.mlp.c_proj.bias": random(width),
        } | {f"{block}.{norm}.{kind}": random(width) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    prefix = "conditioner.embedders.1.model."
    reference = convert_open_clip_checkpoint(None, {f"{prefix}{k}": v for k, v in state.items()}, prefix=prefix)
    reference = {key: value for key, value in reference.items() if not key.endswith("position_ids")}
    table = layouts.open_clip_table(layers, True)
    ours, left = table.to_canonical(entries(state))
    assert list(left) == ["logit_scale"]
    parity(
        f"OpenCLIP layout, {layers} layers", "diffusers convert_open_clip_checkpoint", wrong(read(ours), reference), 0
    )
    back, _ = table.to_foreign(ours)
    assert same(read(back | left), state)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_our_configurations_build_diffusers_networks(name: str, parity) -> None:
    """The JSON that we write builds, in diffusers and transformers, networks of our names and shapes, full-size."""
    family = FAMILIES[name]
    nets = networks(family)
    with torch.device("meta"):
        theirs = {
            "unet": (UNet2DConditionModel if family.text_encoders else UNet2DModel).from_config(
                sidecars.unet_json(family.denoiser, 64)
            ),
            "vae": (VQModel if family.autoencoder.codebook else AutoencoderKL).from_config(
                sidecars.vae_json(family.autoencoder, 512)
            ),
        }
        for encoder in family.text_encoders:
            kind = CLIPTextModel if encoder.config.projection is None else CLIPTextModelWithProjection
            theirs[encoder.name] = kind(CLIPTextConfig(**sidecars.clip_json(encoder)))
    errors = 0
    for part, net in nets.items():
        ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        shapes = {key: tuple(value.shape) for key, value in theirs[part].state_dict().items()}
        if part.startswith("text_encoder") and not any(key.startswith("text_model.") for key in shapes):
            shapes = {f"text_model.{key}": value for key, value in shapes.items()}
        errors += len(ours.items() ^ shapes.items())
    parity(f"names and shapes, {name}", "diffusers and transformers classes", errors, 0)


def tokenizer(folder: Path, family) -> CLIPTokenizer:
    write_tokenizer(folder, FAMILIES["sd1"].text_encoders[0])
    return CLIPTokenizer.from_pretrained(folder)


def their_pipeline(family, folder: Path):
    """diffusers' own pipeline with random weights at the family's sizes, saved by diffusers."""
    torch.manual_seed(0)
    parts = {
        "unet": UNet2DConditionModel.from_config(sidecars.unet_json(family.denoiser, 8)),
        "vae": AutoencoderKL.from_config(sidecars.vae_json(family.autoencoder, 64)),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    }
    for encoder in family.text_encoders:
        kind = CLIPTextModel if encoder.config.projection is None else CLIPTextModelWithProjection
        parts[encoder.name] = kind(CLIPTextConfig(**sidecars.clip_json(encoder)))
        suffix = encoder.name.removeprefix("text_encoder")
        parts[f"tokenizer{suffix}"] = tokenizer(folder.parent / f"tok{suffix}", family)
    if family.size_ids == "none":
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(**parts)


def their_states(pipe, family) -> dict[str, torch.Tensor]:
    result = {}
    for part in ("unet", "vae", *(encoder.name for encoder in family.text_encoders)):
        for key, value in getattr(pipe, part).state_dict().items():
            bare = part.startswith("text_encoder") and not key.startswith(("text_model.", "text_projection"))
            result[f"{part}.{'text_model.' if bare else ''}{key}"] = value
    return result


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_we_read_what_diffusers_writes(name: str, shard: str, tmp_path: Path, parity) -> None:
    family = small_family(name)
    pipe = their_pipeline(family, tmp_path / "theirs")
    pipe.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    model = load(tmp_path / "theirs")
    assert model.family.denoiser == family.denoiser
    assert model.family.autoencoder == family.autoencoder
    assert [e.config for e in model.family.text_encoders] == [e.config for e in family.text_encoders]
    assert set(model.tokenizers) == {encoder.name for encoder in family.text_encoders}
    parity(
        f"reading a diffusers folder, {name}",
        "diffusers save_pretrained",
        wrong(states(model), their_states(pipe, family)),
        0,
    )


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_diffusers_reads_what_we_write(name: str, tmp_path: Path, parity) -> None:
    family = small_family(name)
    model = random_model(family)
    save(model, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "ours")
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(tmp_path / "ours")
    parity(
        f"writing a diffusers folder, {name}",
        "diffusers from_pretrained",
        wrong(states(model), their_states(pipe, family)),
        0,
    )
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if name == "sd2-v" else "epsilon")
    ids = pipe.tokenizer("a red apple, 一个").input_ids
    assert ids[:5] == [49406, 320, 736, 3055, 267]
    assert ids[-1] == 49407


def test_old_names_of_diffusers_vae_attention(tmp_path: Path) -> None:
    vae = random_model(small_family("sd1")).autoencoder.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in vae.items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        renamed[key] = value
    found, left = layouts.DIFFUSERS_VAE.to_canonical(entries(renamed))
    assert not left
    assert same(read(found), vae)
