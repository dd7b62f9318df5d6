"""Every supported architecture as data: the table of families, the diffusion process, the loaded model.

A new model is a new row, not a new `if`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.models.patches import Patches
from danqing.models.unet import UNetConfig
from danqing.runtime.engines import Runner
from danqing.vocabulary import choose

Prediction = Literal["epsilon", "v", "sample", "flow", "edm"]
"""What the network says of noisy latents: the noise, the velocity, the picture itself (x0); flow and EDM are processes
of their own."""


@dataclass(frozen=True)
class Process:
    """The forward process and what the network predicts of it.

    Samplers work in variance-exploding coordinates: x = x0 + sigma * noise, which is the model's own
    latents divided by alpha. With sigma there, the model's coordinates are alpha * x, where

    - epsilon, v, sample: alpha = 1 / sqrt(1 + sigma^2) (variance preserving; Ho et al. 2020, Salimans & Ho 2022)
    - flow:       alpha = 1 / (1 + sigma)       (rectified flow; Liu et al. 2022)
    - edm:        alpha = 1                     (Karras et al. 2022)

    The clean prediction is c_skip * x + c_out * network(c_in * x, c_noise) (Karras et al. 2022, eq. 7).
    """

    prediction: Prediction = "epsilon"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    """Betas are linear in their square root (`scaled_linear`)."""
    zero_terminal_snr: bool = False
    """Betas rescaled so that the last step is pure noise (Lin et al. 2023, algorithm 1), capped by `terminal`."""
    terminal: float = 4.8973451890853435e-08
    """The last cumulative alpha under `zero_terminal_snr`: zero would make sigma infinite."""
    shift: float = 1.0
    """Flow: t' = shift * t / (1 + (shift - 1) * t)."""
    sigma_data: float = 0.5
    edm_range: tuple[float, float] = (0.002, 80.0)

    @cached_property
    def sigmas(self) -> Tensor:
        """(steps,) float64, rising: the noise level of each training step."""
        if self.prediction == "edm":
            low, high = self.edm_range
            return torch.linspace(math.log(low), math.log(high), self.steps, dtype=torch.float64).exp()
        if self.prediction == "flow":
            t = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
            t = self.shift * t / (1 + (self.shift - 1) * t)
            return t / (1 - t.clamp(max=1 - 1e-4))
        root = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64)
        alphas_cumprod = (1 - root**2).cumprod(0)
        if self.zero_terminal_snr:
            s = alphas_cumprod.sqrt()
            s = (s - s[-1]) * s[0] / (s[0] - s[-1])
            alphas_cumprod = s**2
            alphas_cumprod[-1] = self.terminal
        return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    @property
    def preserving(self) -> bool:
        """Whether the process preserves variance, so that training steps have levels by betas."""
        return self.prediction in ("epsilon", "v", "sample")

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def alpha(self, sigma: float) -> float:
        """The factor from the samplers' coordinates to the model's own."""
        if self.prediction == "edm":
            return 1.0
        return 1 / (1 + sigma) if self.prediction == "flow" else 1 / math.sqrt(1 + sigma * sigma)

    def scalings(self, sigma: float) -> tuple[float, float, float]:
        """(c_skip, c_out, c_in) at `sigma`."""
        if self.prediction == "sample":
            return 0.0, 1.0, self.alpha(sigma)
        if self.prediction == "epsilon":
            return 1.0, -sigma, self.alpha(sigma)
        if self.prediction == "v":
            return 1 / (1 + sigma**2), -sigma / math.sqrt(1 + sigma**2), self.alpha(sigma)
        if self.prediction == "flow":
            # x0 = x_t - t * v, with t = sigma / (1 + sigma) and x_t = alpha * x
            return self.alpha(sigma), -sigma / (1 + sigma), self.alpha(sigma)
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / math.sqrt(total), 1 / math.sqrt(total)

    def timestep(self, sigma: float) -> float:
        """c_noise: what the network is told of `sigma`; between training steps, linear in log sigma."""
        if self.prediction == "edm":
            return math.log(sigma) / 4
        if self.prediction == "flow":
            return 1000 * sigma / (1 + sigma)
        log_sigmas = self._log_sigmas
        value = math.log(max(sigma, 1e-10))
        if value <= log_sigmas[0]:
            return 0.0
        if value >= log_sigmas[-1]:
            return float(self.steps - 1)
        high = int(torch.searchsorted(log_sigmas, value))
        low = high - 1
        below, above = float(log_sigmas[low]), float(log_sigmas[high])
        return low + (value - below) / (above - below)

    def sigma_at(self, timestep: float) -> float:
        """The inverse of `timestep`: log-linear between training steps, clamped to their range."""
        if self.prediction == "edm":
            return math.exp(4 * timestep)
        if self.prediction == "flow":
            t = min(timestep / 1000, 1 - 1e-4)
            return t / (1 - t)
        t = min(max(timestep, 0.0), self.steps - 1.0)
        low = int(t)
        high = min(low + 1, self.steps - 1)
        part = t - low
        return math.exp((1 - part) * float(self._log_sigmas[low]) + part * float(self._log_sigmas[high]))

    @cached_property
    def _log_sigmas(self) -> Tensor:
        return self.sigmas.log()


@dataclass(frozen=True)
class At:
    """A point of a sampling run: all that is scheduled is a function of it."""

    sigma: float
    step: float
    """Whole numbers on the steps, from 0; halves at a step's inner evaluations."""


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder's place in a family."""

    name: str
    """The component's name and diffusers folder: `text_encoder`, `text_encoder_2`."""
    config: CLIPTextConfig
    tokenizer: str = "clip"
    pad_token: int = 49407
    """49407 (end) for OpenAI's CLIP, 0 for OpenCLIP."""
    layer: int = -1
    """Which hidden layer conditions by default: -1 the last, -2 the one before it."""
    final_norm: bool = True
    """Whether the final layer norm follows a skipped-to layer (SD 1.x, 2.x) or not (XL)."""
    clip_skip: bool = True
    """Whether the request's clip skip moves `layer` (SD 1.x)."""


@dataclass(frozen=True)
class Defaults:
    """What a request leaves unset is filled from here."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = "DPM++ 2M"
    scheduler: str = "Karras"


SizeIds = Literal["none", "base", "refiner"]
Spacing = Literal["linspace", "leading", "trailing"]
"""Where diffusers puts n timesteps among N: ends included; from the lower end; from the upper end (Lin et al. 2023)."""


@dataclass(frozen=True)
class Family:
    """One supported architecture: a row."""

    name: str
    title: str
    text_encoders: tuple[TextEncoder, ...]
    denoiser: UNetConfig
    autoencoder: AutoencoderConfig
    process: Process = Process()
    size_ids: SizeIds = "none"
    """SDXL's size conditioning: `base` is original size, crop, target size; `refiner` ends in an aesthetic score."""
    zero_empty_negative: bool = False
    """Whether an empty negative prompt is all zeros instead of the encoders' output (SDXL base)."""
    autoencoder_overflows: bool = False
    """Whether the published autoencoder's values are too large for float16 (SDXL's)."""
    spacing: Spacing | None = None
    """The published scheduler configuration's `timestep_spacing`, for the diffusers dialect; None is each class's own."""
    defaults: Defaults = Defaults()

    @property
    def variant(self) -> str:
        """`base`, `inpaint`, `pix2pix` or `upscale`, by the denoiser's input channels."""
        extra = self.denoiser.in_channels - self.denoiser.out_channels
        return {0: "base", 3: "upscale", 4: "pix2pix", 5: "inpaint"}.get(extra, f"{self.denoiser.in_channels}-channel")


CLIP_L = CLIPTextConfig()
CLIP_H = CLIPTextConfig(width=1024, intermediate=4096, layers=23, heads=16, activation="gelu", projection=1024)
CLIP_BIG_G = CLIPTextConfig(width=1280, intermediate=5120, layers=32, heads=20, activation="gelu", projection=1280)

_SD1_TEXT = TextEncoder("text_encoder", CLIP_L)
# diffusers and transformers drop OpenCLIP's last, unused layer: 23 of 24 remain, so "the last" is the penultimate.
_SD2_TEXT = TextEncoder("text_encoder", replace(CLIP_H, projection=None), pad_token=0, clip_skip=False)
_XL_L = TextEncoder("text_encoder", CLIP_L, layer=-2, final_norm=False, clip_skip=False)
_XL_G = TextEncoder("text_encoder_2", CLIP_BIG_G, pad_token=0, layer=-2, final_norm=False, clip_skip=False)

_XL_UNET = UNetConfig(
    channels=(320, 640, 1280),
    down_depth=((0, 0), (2, 2), (10, 10)),
    mid_depth=10,
    up_depth=((10, 10, 10), (2, 2, 2), (0, 0, 0)),
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
    size_ids=6,
)
_XL_VAE = AutoencoderConfig(scale=0.13025)
_XL_DEFAULTS = Defaults(width=1024, height=1024, steps=30)

SD1 = Family("sd1", "Stable Diffusion 1.x", (_SD1_TEXT,), UNetConfig(), AutoencoderConfig())
SD2 = Family(
    "sd2",
    "Stable Diffusion 2.x",
    (_SD2_TEXT,),
    UNetConfig(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True),
    AutoencoderConfig(),
)
SDXL = Family(
    "sdxl",
    "Stable Diffusion XL",
    (_XL_L, _XL_G),
    _XL_UNET,
    _XL_VAE,
    size_ids="base",
    zero_empty_negative=True,
    autoencoder_overflows=True,
    spacing="leading",
    defaults=_XL_DEFAULTS,
)


def variant(family: Family, name: str, title: str, **changes: Any) -> Family:
    """A row like `family` but for `changes`; keys starting with `denoiser_` or `process_` reach into those."""
    inner: dict[str, dict[str, Any]] = {"denoiser": {}, "process": {}}
    outer: dict[str, Any] = {}
    for key, value in changes.items():
        head, _, tail = key.partition("_")
        if head in inner and tail:
            inner[head][tail] = value
        else:
            outer[key] = value
    for part, fields in inner.items():
        if fields:
            outer[part] = replace(getattr(family, part), **fields)
    return replace(family, name=name, title=title, **outer)


_REFINER_UNET = UNetConfig(
    channels=(384, 768, 1536, 1536),
    down_depth=((0, 0), (4, 4), (4, 4), (0, 0)),
    mid_depth=4,
    up_depth=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
    heads=(6, 12, 24, 24),
    context_width=1280,
    linear_projection=True,
    pooled_width=1280,
    size_ids=5,
)
# The statistics of Playground 2.5's latents: its VAE's config.json, `latents_mean` and `latents_std`.
_PLAYGROUND_VAE = AutoencoderConfig(
    scale=0.5, mean=(-1.6574, 1.886, -1.383, 2.5155), std=(8.4927, 5.9022, 6.5498, 5.2299)
)
_PLAYGROUND_DEFAULTS = replace(_XL_DEFAULTS, steps=50, cfg_scale=3.0)
_TURBO_DEFAULTS = Defaults(steps=1, cfg_scale=1.0, sampler="Euler a", scheduler="SGM Uniform")

DANQING = Family(
    "danqing",
    "Danqing's own emoji painter",
    (
        TextEncoder(
            "text_encoder",
            CLIPTextConfig(
                vocabulary=8192, width=256, intermediate=1024, layers=4, heads=4, activation="gelu", end_token=8191
            ),
            pad_token=8191,
        ),
    ),
    UNetConfig(
        in_channels=8,
        out_channels=8,
        channels=(64, 128, 160, 176),
        down_depth=((0,), (1,), (1,), (1,)),
        up_depth=((1, 1), (1, 1), (1, 1), (0, 0)),
        heads=(2, 2, 4, 4),
        context_width=256,
        groups=8,
    ),
    AutoencoderConfig(channels=(24, 48, 96, 144), layers=1, latent_channels=8, groups=8, scale=1.0),
    Process(prediction="v", zero_terminal_snr=True),
    spacing="trailing",
    defaults=Defaults(width=128, height=128, cfg_scale=3.0, scheduler="SGM Uniform"),
)
"""What recipes/bundled.toml trains, and the package ships."""

LDSR = Family(
    "ldsr",
    "Latent Diffusion Super-Resolution",
    (),
    UNetConfig(
        in_channels=6,
        out_channels=3,
        channels=(160, 320, 320, 640),
        down_depth=((0, 0), (0, 0), (0, 0), (1, 1)),
        up_depth=((1, 1, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)),
        heads=(5, 10, 10, 20),
        context_width=0,
    ),
    AutoencoderConfig(channels=(128, 256, 512), latent_channels=3, codebook=8192, scale=1.0),
    Process(beta_start=0.0015, beta_end=0.0155),
    defaults=Defaults(steps=100, cfg_scale=1.0, sampler="DDIM", scheduler="DDIM"),
)
"""Paints no text: it is told a picture, and paints it four times as large (CompVis's bsr_sr; Rombach et al. 2022, 4.4)."""

_ROWS: tuple[Family, ...] = (
    DANQING,
    SD1,
    variant(SD1, "sd1-inpaint", "Stable Diffusion 1.x inpainting", denoiser_in_channels=9),
    variant(SD1, "sd1-pix2pix", "InstructPix2Pix (Stable Diffusion 1.x)", denoiser_in_channels=8),
    SD2,
    variant(
        SD2,
        "sd2-v",
        "Stable Diffusion 2.x, v-prediction",
        process_prediction="v",
        defaults=Defaults(width=768, height=768),
    ),
    variant(SD2, "sd2-inpaint", "Stable Diffusion 2.x inpainting", denoiser_in_channels=9),
    variant(SD2, "sd-turbo", "SD-Turbo", defaults=_TURBO_DEFAULTS),
    SDXL,
    variant(
        SDXL,
        "sdxl-v",
        "Stable Diffusion XL, v-prediction",
        process_prediction="v",
        process_zero_terminal_snr=True,
        spacing="trailing",
        defaults=replace(_XL_DEFAULTS, cfg_scale=5.0, sampler="Euler", scheduler="Normal"),
    ),
    variant(SDXL, "sdxl-inpaint", "Stable Diffusion XL inpainting", denoiser_in_channels=9),
    variant(SDXL, "sdxl-pix2pix", "InstructPix2Pix (Stable Diffusion XL)", denoiser_in_channels=8),
    variant(
        SDXL,
        "sdxl-refiner",
        "Stable Diffusion XL refiner",
        text_encoders=(_XL_G,),
        denoiser=_REFINER_UNET,
        size_ids="refiner",
        zero_empty_negative=False,
    ),
    variant(SDXL, "sdxl-turbo", "SDXL-Turbo", defaults=_TURBO_DEFAULTS),
    variant(
        SDXL,
        "ssd-1b",
        "Segmind SSD-1B",
        denoiser_down_depth=((0, 0), (2, 2), (4, 4)),
        denoiser_mid_depth=0,
        denoiser_up_depth=((4, 4, 10), (2, 1, 1), (0, 0, 0)),
    ),
    variant(
        SDXL,
        "vega",
        "Segmind Vega",
        denoiser_down_depth=((0, 0), (1, 1), (2, 2)),
        denoiser_mid_depth=0,
        denoiser_up_depth=((2, 2, 2), (1, 1, 1), (0, 0, 0)),
    ),
    variant(SDXL, "playground-v2", "Playground v2", defaults=_PLAYGROUND_DEFAULTS),
    variant(
        SDXL,
        "playground-v2.5",
        "Playground v2.5",
        autoencoder=_PLAYGROUND_VAE,
        process_prediction="edm",
        spacing=None,
        defaults=_PLAYGROUND_DEFAULTS,
    ),
    LDSR,
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}
"""Every supported architecture, by name."""


def find_family(name: str) -> Family:
    """The family of that name. Raises DanqingError with the nearest names."""
    return FAMILIES[choose("family", name, list(FAMILIES))]


TextChange = Callable[[CLIPText, Callable[[CLIPText], tuple[Tensor, Tensor]], Tensor], Tensor]
"""(a text encoder, how such a one reads a chunk of a prompt: -> (hidden states (1, 77, C), pooled (1, P)), the hidden
states with the prompt's weights on them) -> the hidden states that condition."""


@dataclass(frozen=True, eq=False)
class Model:
    """A family with its networks. Frozen: adapters give another `Model` that shares the weights."""

    family: Family
    denoiser: nn.Module
    autoencoder: Autoencoder
    text_encoders: Mapping[str, CLIPText]
    """By component name (`TextEncoder.name`)."""
    tokenizers: Mapping[str, Path | Mapping[str, str]] = field(default_factory=dict)
    """By component name, where the checkpoint brings its own: a folder, or its files' texts by name. CLIP's serves else."""
    name: str = ""
    path: str | None = None
    vae_path: str | None = None
    """Where the autoencoder comes from, if not from the checkpoint itself."""
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Words that stand for vectors in prompts (textual inversion): word -> component name -> (n, C) float32."""
    patches: Patches | None = None
    """What changes every call of the denoiser (hypernetworks)."""
    text_changes: Mapping[str, TextChange] = field(default_factory=dict)
    """By component name: what is made of a text encoder's answers to prompts that are not negative (aesthetic gradients)."""
    memory: int | None = None
    """The most bytes of the device's memory (on the CPU, of the process's own) that painting should take."""
    engine: Runner | None = None
    """What runs the denoiser where it can; None is torch's eager mode."""

    @property
    def process(self) -> Process:
        return self.family.process

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype
