"""IP-Adapter against diffusers on the same files: projections, the U-Net, whole pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import danqing
from danqing.adapters.image_prompt import PicturePrompt, layers_of, prompt_source
from danqing.adapters.preprocess import to_hint
from danqing.adapters.steer import steered
from danqing.families import At
from danqing.models.clip_vision import prepare
from danqing.models.conditioning import Conditioning
from danqing.models.ip_adapter import IPAdapter
from danqing.models.unet import cross_attentions
from danqing.requests import TextToImage
from tests.ip_adapter_files import VISION, config_of, ip_adapter
from tests.parity import pipelines
from tests.parity.test_image_pipelines import NEGATIVE, PROMPT, photograph, reference

Parity = Callable[[str, str, float, float], None]
NAMES = {
    "plain": "ImageProjection",
    "plus": "IPAdapterPlusImageProjection",
    "full": "IPAdapterFullImageProjection",
    "face": "IPAdapterFaceIDImageProjection",
    "face plus": "IPAdapterFaceIDPlusImageProjection",
}


def nested(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {
        group: {key[len(group) + 1 :]: value for key, value in state.items() if key.startswith(group + ".")}
        for group in ("image_proj", "ip_adapter")
    }


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sd1")
    return pipelines.sd1(folder), folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sdxl")
    return pipelines.sdxl(folder), folder


@torch.no_grad()
@pytest.mark.parametrize("kind", NAMES)
def test_projections(kind: str, sd1: tuple[Any, Path], parity: Parity) -> None:
    pipeline, folder = sd1
    unet = danqing.load(folder, device="cpu", dtype="float32").family.denoiser
    state = ip_adapter(kind, unet)
    pipeline.unet._load_ip_adapter_weights(nested(state))
    theirs = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    ours = IPAdapter(config_of(kind, unet.context_width), cross_attentions(unet))
    ours.load_state_dict(state, strict=True)
    generator = torch.Generator().manual_seed(0)
    patches, face = torch.randn(2, 17, 64, generator=generator), torch.randn(2, 512, generator=generator)
    told = {"plain": (face[:, :48],), "face": (face,), "face plus": (face, patches)}.get(kind, (patches,))
    if kind == "face plus":
        theirs.clip_embeds = patches[:, None]
    expected, got = theirs(told[0]), ours.tokens(*told)
    error = float((got - expected).abs().max() / expected.abs().max())
    parity(f"IP-Adapter's projection, {kind}", f"diffusers {NAMES[kind]}", error, 1e-5)
    pipeline.unload_ip_adapter()


def embedded(pipeline: Any, folder: Path, kind: str, seed: int) -> dict[str, Tensor]:
    """A file of that kind on diffusers' U-Net, and CLIP's image tower beside it."""
    unet = danqing.load(folder, device="cpu", dtype="float32").family.denoiser
    state = ip_adapter(kind, unet, seed)
    pipeline.unet._load_ip_adapter_weights(nested(state))
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=VISION.width,
        intermediate_size=VISION.intermediate,
        num_hidden_layers=VISION.layers,
        num_attention_heads=VISION.heads,
        image_size=VISION.picture,
        patch_size=VISION.patch,
        projection_dim=VISION.projection,
    )
    pipeline.register_modules(image_encoder=CLIPVisionModelWithProjection(config).eval())
    return state


def painted(folder: Path, **fields: Any) -> np.ndarray:
    model = danqing.load(folder, device="cpu", dtype="float32")
    request = TextToImage(
        prompt=PROMPT, negative_prompt=NEGATIVE, sampler_name="DDIM", steps=10, cfg_scale=5.0, seed=11,
        dialect="diffusers", width=64, height=64, **fields,
    )  # fmt: skip
    (picture,) = danqing.paint(request, model, say=lambda line: None)
    return np.asarray(picture.image, dtype=np.float64)


def seen(pictures: list[Image.Image]) -> Tensor:
    """As CLIP's image tower takes them; `prepare` is held against transformers' own elsewhere."""
    return torch.cat([prepare(to_hint(picture), VISION.picture) for picture in pictures])


CASES: dict[str, tuple[str, str, int, float, bool]] = {
    "IP-Adapter, plain, SD 1": ("sd1", "plain", 1, 0.8, False),
    "IP-Adapter, plain, two pictures": ("sd1", "plain", 2, 1.0, False),
    "IP-Adapter, plus, SD 1": ("sd1", "plus", 1, 0.7, False),
    "IP-Adapter, plus, mask": ("sd1", "plus", 1, 1.0, True),
    "IP-Adapter, full": ("sd1", "full", 1, 1.0, False),
    "IP-Adapter, plain, SDXL": ("sdxl", "plain", 1, 0.9, False),
    "IP-Adapter, plus, SDXL": ("sdxl", "plus", 1, 0.9, False),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_pictures(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity: Parity
) -> None:
    family, kind, count, weight, masked = CASES[name]
    pipeline, folder = request.getfixturevalue(family)
    free = reference(pipeline, "DDIM", height=64, width=64)
    state = embedded(pipeline, folder, kind, 3)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    save_file(state, tmp_path / "adapter.safetensors")
    pipeline.image_encoder.save_pretrained(tmp_path / "tower")
    pictures = [photograph(96, 80), photograph(64, 64).rotate(90)][:count]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    pipeline.set_ip_adapter_scale(weight)
    settings: dict[str, Any] = {"ip_adapter_image": [seen(pictures)], "height": 64, "width": 64}
    asked = {
        "model": str(tmp_path / "adapter.safetensors"),
        "encoder": str(tmp_path / "tower" / "model.safetensors"),
        "images": [str(tmp_path / f"{number}.png") for number in range(count)],
        "weight": weight,
    }
    if masked:
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 40, 64))
        mask.save(tmp_path / "mask.png")
        pixels = torch.zeros(1, 1, 64, 64)
        pixels[..., :40] = 1
        settings["cross_attention_kwargs"] = {"ip_adapter_masks": [pixels]}
        asked["mask"] = str(tmp_path / "mask.png")
    expected = reference(pipeline, "DDIM", **settings)
    pipeline.unload_ip_adapter()
    got = painted(folder, image_prompts=[asked])
    assert np.abs(expected - free).max() > 8, "the adapter has no effect: nothing is compared"
    name_of = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    parity(f"{name}, whole picture", f"diffusers {name_of}", np.abs(got - expected).max() / 255, 1 / 255)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "plus"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_unets_answer(kind: str, family: str, request: pytest.FixtureRequest, parity: Parity) -> None:
    pipeline, folder = request.getfixturevalue(family)
    model = danqing.load(folder, device="cpu", dtype="float32")
    unet = model.family.denoiser
    state = ip_adapter(kind, unet, 4)
    pipeline.unet._load_ip_adapter_weights(nested(state))
    pipeline.set_ip_adapter_scale(0.7)
    network = IPAdapter(config_of(kind, unet.context_width), cross_attentions(unet))
    network.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    look = torch.randn(1, *((48,) if kind == "plain" else (17, 64)), generator=generator)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    conditioning = Conditioning(torch.randn(1, 77, unet.context_width, generator=generator))
    told = torch.tensor([321.0])
    more: dict[str, Tensor] = {}
    if unet.pooled_width:
        conditioning = replace(conditioning, pooled=torch.randn(1, unet.pooled_width, generator=generator))
        more = {"time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    added = {"image_embeds": [look[:, None]], "text_embeds": conditioning.pooled, **more}
    expected = pipeline.unet(latents, told, conditioning.context, added_cond_kwargs=added).sample
    pipeline.unload_ip_adapter()
    tokens = network.tokens(look)
    prompt = PicturePrompt(network, tokens, tokens, layers_of("linear", unet)[0], 0.7)
    (shown,), _ = steered((conditioning,), (), [prompt], (8, 8), 8, lambda pixels: pixels)
    patches = prompt_source(model, 10)(latents, told, At(1.0, 0), shown)
    got = model.denoiser(latents, told, shown.context, pooled=shown.pooled, patches=patches, **more)
    free = model.denoiser(latents, told, shown.context, pooled=shown.pooled, **more)
    assert (got - free).abs().max() > 0.05 * free.abs().max()
    error = float((got - expected).abs().max() / expected.abs().max())
    parity(f"U-Net with an IP-Adapter, {kind}, {family}", "diffusers IPAdapterAttnProcessor2_0", error, 1e-5)
