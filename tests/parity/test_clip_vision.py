"""CLIP's image tower and the safety checker against transformers and diffusers, on the same random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig, SafetyChecker

SMALL = CLIPVisionConfig(width=32, intermediate=64, layers=3, heads=2, picture=32, patch=8, projection=16)
THEIRS = CLIPConfig(
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    },
    projection_dim=16,
)


@torch.no_grad()
def test_image_tower(parity: Callable[..., None]) -> None:
    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(THEIRS.vision_config).eval()
    ours = CLIPVision(SMALL).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 32, 32)
    expected, got = theirs(pixels, output_hidden_states=True), ours(pixels)
    pairs = [(got.projected, expected.image_embeds), *zip(got.hidden, expected.hidden_states)]
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    parity("CLIP image tower", "transformers CLIPVisionModelWithProjection", error, 1e-5)


@torch.no_grad()
def test_safety_checker(parity: Callable[..., None]) -> None:
    torch.manual_seed(0)
    theirs = StableDiffusionSafetyChecker(THEIRS).eval()
    pixels = torch.randn(16, 3, 32, 32)
    theirs.concept_embeds.copy_(torch.randn(17, 16))
    theirs.special_care_embeds.copy_(torch.randn(3, 16))
    vectors = F.normalize(theirs.visual_projection(theirs.vision_model(pixels)[1]))
    theirs.concept_embeds_weights.copy_((vectors @ F.normalize(theirs.concept_embeds).T).quantile(0.95, 0) + 0.002)
    theirs.special_care_embeds_weights.copy_((vectors @ F.normalize(theirs.special_care_embeds).T).median(0).values)
    ours = SafetyChecker(SMALL).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    _, expected = theirs(pixels, torch.ones(16, 3, 8, 8))
    got = ours.flagged(pixels)
    assert 0 < sum(got) < 16
    wrong = sum(a != b for a, b in zip(got, expected))
    parity("safety checker, pictures judged otherwise", "diffusers StableDiffusionSafetyChecker", wrong, 0)
