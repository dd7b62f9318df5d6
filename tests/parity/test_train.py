"""Training's formulas and files against diffusers, transformers and scipy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from scipy.ndimage import gaussian_filter
from transformers import CLIPTokenizer
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from danqing.evaluate.reconstruction import ssim
from danqing.families import Process
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.prompts.tokenizer import from_folder
from danqing.train.autoencoder import normalise
from danqing.train.clip import contrast, tokens
from danqing.train.objectives import noised, weights
from danqing.train.vocabulary import train_vocabulary

Parity = Callable[[str, str, float, float], None]
DIFFUSERS, TRANSFORMERS = f"diffusers {version('diffusers')}", f"transformers {version('transformers')}"
STEPS = torch.tensor([0, 1, 40, 333, 600, 998, 999])


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(len(STEPS), 4, 8, 8, generator=generator) for _ in range(2))  # type: ignore[return-value]


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the reference's largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def scheduler(zero: bool, prediction: str) -> DDPMScheduler:
    return DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero)


@pytest.mark.parametrize("zero", [False, True], ids=["usual", "zero terminal SNR"])
def test_noised_latents_and_velocity(zero: bool, parity: Parity) -> None:
    reference = scheduler(zero, "v_prediction")
    clean, noise = drawn()
    scaled, target, told = noised(Process(prediction="v", zero_terminal_snr=zero), clean, noise, STEPS)
    kind = "zero terminal SNR" if zero else "scaled linear"
    wanted = reference.add_noise(clean, noise, STEPS)
    # the last step is pure noise there; here a trace of the picture is left, so that sigma is finite
    bound = 3e-4 if zero else 1e-6
    parity(f"training, noised latents, {kind}", f"{DIFFUSERS} DDPMScheduler.add_noise", far(scaled, wanted), bound)
    wanted = reference.get_velocity(clean, noise, STEPS)
    parity(f"training, v target, {kind}", f"{DIFFUSERS} DDPMScheduler.get_velocity", far(target, wanted), bound)
    assert told.tolist() == STEPS.tolist()


def test_epsilon(parity: Parity) -> None:
    clean, noise = drawn()
    scaled, target, _ = noised(Process(), clean, noise, STEPS)
    wanted = scheduler(False, "epsilon").add_noise(clean, noise, STEPS)
    parity("training, noised latents, epsilon", f"{DIFFUSERS} DDPMScheduler.add_noise", far(scaled, wanted), 1e-6)
    assert torch.equal(target, noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift: float, parity: Parity) -> None:
    reference = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    times = reference.timesteps.flip(0)[STEPS]  # there from the noisiest
    clean, noise = drawn()
    scaled, _, told = noised(Process(prediction="flow", shift=shift), clean, noise, STEPS)
    wanted = reference.scale_noise(clean, times, noise)
    name = f"{DIFFUSERS} FlowMatchEulerDiscreteScheduler"
    # the last step keeps a ten-thousandth of the picture, so that sigma is finite
    parity(f"training, noised latents, flow, shift {shift:g}", name, far(scaled, wanted), 3e-4)
    parity(f"training, times, flow, shift {shift:g}", name, far(told, times), 2e-4)


def test_signal_to_noise_ratios(parity: Parity) -> None:
    steps = torch.arange(1000)
    snr = compute_snr(scheduler(False, "epsilon"), steps).double()
    name = f"{DIFFUSERS} compute_snr"
    found = weights(Process(), steps, 5.0)
    parity("training, min-SNR weights, epsilon: min(SNR, 5) / SNR", name, far(found, snr.clamp(max=5) / snr), 1e-4)
    # for v the scripts have min(SNR, gamma) / (SNR + 1), which is 0 at a terminal SNR of zero: ours is their formula
    # with the ratio of v's own errors, SNR + 1, in both places
    found = weights(Process(prediction="v"), steps, 5.0)
    parity(
        "training, min-SNR weights, v: min(SNR + 1, 5) / (SNR + 1)",
        name,
        far(found, (snr + 1).clamp(max=5) / (snr + 1)),
        1e-4,
    )


CAPTIONS = ["a red apple, 3d style", "红苹果，扁平风格", "grinning face 😀", "it's 12 o'clock", "red heart; flat"] * 30
TEXTS = [
    *CAPTIONS[:5], "", "  Two   BLANKS ", "丹青 danqing", "naïve café", "👩\u200d🎨 🏳️\u200d🌈", "1234.5%", "don't",
    "zebra " * 80, "\u3000全角　空格", "한국어 русский",
]  # fmt: skip


def test_vocabulary(tmp_path: Path, parity: Parity) -> None:
    train_vocabulary(CAPTIONS, 600, tmp_path / "tokenizer")
    ours, reference = from_folder(tmp_path / "tokenizer"), CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert reference.model_max_length == 77
    wrong = 0
    for text in TEXTS:
        wanted = reference(text, padding="max_length", truncation=True, max_length=77).input_ids
        wrong += tokens([text], ours, 77)[0].tolist() != wanted
    parity("a trained vocabulary, texts whose ids differ", f"{TRANSFORMERS} CLIPTokenizer", wrong, 0)


def test_contrastive_loss(parity: Parity) -> None:
    generator = torch.Generator().manual_seed(0)
    texts, pictures = (torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2))
    loss, _ = contrast(texts, pictures, torch.tensor(14.3))
    wanted = image_text_contrastive_loss(14.3 * texts @ pictures.T)
    parity("training, CLIP's loss", f"{TRANSFORMERS} CLIPModel", far(loss, wanted), 1e-6)


def test_structural_similarity(parity: Parity) -> None:
    """Wang et al. 2004, written out with scipy's Gaussian filter of 11 taps."""
    generator = np.random.default_rng(0)
    a = generator.random((2, 3, 40, 33))
    b = np.clip(a + 0.2 * generator.standard_normal(a.shape), 0, 1)

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=5 / 1.5, mode="reflect")[5:-5, 5:-5]

    def reference(x: np.ndarray, y: np.ndarray) -> float:
        mx, my = blur(x), blur(y)
        vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        top = (2 * mx * my + 0.01**2) * (2 * both + 0.03**2)
        return float((top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))).mean())

    wanted = torch.tensor([np.mean([reference(x, y) for x, y in zip(*pair)]) for pair in zip(a, b)])
    found = ssim(torch.from_numpy(a), torch.from_numpy(b))
    parity("SSIM", f"its formula with scipy {version('scipy')} gaussian_filter", far(found, wanted), 1e-9)


def test_normalised_autoencoder_in_diffusers(parity: Parity) -> None:
    """Mean and deviation are in the weights: diffusers, which is told only of a scale of 1, has the same latents."""
    torch.manual_seed(0)
    ours = Autoencoder(AutoencoderConfig(channels=(8, 16), layers=1, latent_channels=4, groups=4, scale=1.0))
    before = Autoencoder(ours.config)
    before.load_state_dict(ours.state_dict())
    mean, std = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([0.5, 2.0, 3.0, 1.0])
    normalise(ours, mean, std)
    reference = AutoencoderKL(
        3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 16), 1, latent_channels=4,
        norm_num_groups=4, scaling_factor=1.0,
    )  # fmt: skip
    reference.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior, plain = reference.encode(pixels).latent_dist, before.encode(pixels)
        found = ours.encode(pixels)
        name = f"{DIFFUSERS} AutoencoderKL"
        parity("a normalised autoencoder, latents", name, far(found.mean, posterior.mean), 1e-5)
        each = (1, -1, 1, 1)
        torch.testing.assert_close(found.mean, (plain.mean - mean.view(each)) / std.view(each), rtol=1e-4, atol=1e-5)
        noise = torch.randn_like(plain.mean)
        wanted = (plain.sample(noise) - mean.view(each)) / std.view(each)
        torch.testing.assert_close(found.sample(noise), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(found.mean), before.decode(plain.mean), rtol=1e-4, atol=1e-5)
        rebuilt = reference.decode(found.mean).sample
        parity("a normalised autoencoder, pixels", name, far(ours.decode(found.mean), rebuilt), 1e-5)
