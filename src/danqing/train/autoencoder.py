"""Training the KL autoencoder (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.evaluate.reconstruction import psnr, similarity, ssim
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig
from danqing.train.clip import normalised
from danqing.train.dataset import Item
from danqing.train.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from danqing.train.pictures import Order, Pictures, augment
from danqing.train.recipe import Autoencode, Data
from danqing.train.results import load_weights, read_config, save_network

SHOWN = 8
"""Pictures on a sample sheet."""


class Rebuild(nn.Module):
    """The autoencoder as it is trained: there and back in one call."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels in [-1, 1] and noise of the latents' shape -> rebuilt pixels, the posterior's mean and logvar."""
        posterior = self.autoencoder.encode(pixels)
        return self.autoencoder.decode(posterior.sample(noise)), posterior.mean, posterior.logvar


class AutoencoderStage:
    """`danqing train autoencoder`."""

    name = "autoencoder"

    def __init__(
        self,
        settings: Autoencode,
        data: Data,
        training: Sequence[Item],
        held_out: Sequence[Item],
        image_encoder: Path | None,
    ) -> None:
        """image_encoder: the CLIP stage's image tower, by whose features likeness is measured; None leaves that out.

        Raises DanqingError: settings that make no network, no result of the CLIP stage.
        """
        _check(settings, data)
        self.settings = settings
        self.pictures, self.held_out = Pictures(training, data), Pictures(held_out, data)
        self.order = Order(self.pictures.sizes, settings.batch, settings.seed, settings.accumulate)
        self.flips = torch.tensor([item.flip for item in training])
        self.features: CLIPVision | None = None
        if image_encoder is not None and settings.perceptual_weight:
            self.features = CLIPVision(CLIPVisionConfig(**read_config(image_encoder)))
            load_weights(self.features, image_encoder)
        torch.manual_seed(settings.seed)
        self.autoencoder = Autoencoder(
            AutoencoderConfig(
                channels=settings.channels,
                layers=settings.layers,
                latent_channels=settings.latent_channels,
                groups=settings.groups,
                scale=1.0,
            )
        )
        self.parts: Mapping[str, nn.Module] = {"autoencoder": Rebuild(self.autoencoder)}
        self.learning_rates: Mapping[str, float] = {"autoencoder": settings.learning_rate}
        self.averaged: tuple[str, ...] = ("autoencoder",)
        adversary = settings.discriminator
        if adversary is not None:
            discriminator = PatchDiscriminator(adversary.channels, adversary.layers)
            self.parts = {**self.parts, "discriminator": discriminator}
            self.learning_rates = {**self.learning_rates, "discriminator": adversary.learning_rate}

    def begin(self, accelerator: Accelerator, parts: Mapping[str, nn.Module]) -> None:
        self.accelerator = accelerator
        self.rebuild, self.discriminator = parts["autoencoder"], parts.get("discriminator")
        # what the autoencoder is told of it must not go where the adversary's own gradients are gathered
        self.critic = self.parts.get("discriminator")
        if self.features is not None:
            self.features.to(accelerator.device)

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        settings, device = self.settings, self.accelerator.device
        rows = self.order.at(number)[self.accelerator.process_index :: self.accelerator.num_processes]
        real = augment(self.pictures.load(rows).to(device), self.flips[rows], settings.augment, generator)
        real = real.contiguous(memory_format=torch.channels_last)
        side = self.autoencoder.config.downscale
        shape = (len(rows), settings.latent_channels, real.shape[2] // side, real.shape[3] // side)
        noise = torch.randn(shape, generator=generator).to(device)
        with self.accelerator.autocast():
            rebuilt, mean, logvar = self.rebuild(real, noise)
        pixel = (rebuilt - real).abs().mean()
        square = (rebuilt - real).square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        likeness = self._perceptual(real, rebuilt)
        rebuilding = pixel + settings.square_weight * square + settings.perceptual_weight * likeness
        if settings.structure_weight:
            rebuilding = rebuilding + settings.structure_weight * (
                1 - similarity((rebuilt + 1) / 2, (real + 1) / 2).mean()
            )
        loss = rebuilding + settings.kl_weight * kl
        record = {"l1": pixel, "square": square, "kl": kl, "perceptual": likeness}
        adversary = settings.discriminator
        if adversary is not None and self.discriminator is not None and step >= adversary.start:
            loss = loss + self._adversarial(rebuilding, rebuilt, record)
        self.accelerator.backward(loss)
        if adversary is not None and self.discriminator is not None and step >= adversary.start:
            record["discriminator"] = self._teach(real, rebuilt.detach())
        return {"loss": loss.detach(), **{name: value.detach() for name, value in record.items()}}

    def _perceptual(self, real: Tensor, rebuilt: Tensor) -> Tensor:
        """The squared distance of unit features (Zhang et al. 2018, equation 1), mean of the image tower's layers."""
        if self.features is None:
            return real.new_zeros(())
        with self.accelerator.autocast():
            with torch.no_grad():
                wanted = self.features(self._seen(real)).hidden[1:]
            found = self.features(self._seen(rebuilt)).hidden[1:]
        total = real.new_zeros(())
        for a, b in zip(wanted, found):
            a, b = (nn.functional.normalize(t[:, 1:].float(), dim=-1) for t in (a, b))
            total = total + (a - b).square().sum(-1).mean()
        return total / len(wanted)

    def _seen(self, pixels: Tensor) -> Tensor:
        """Pictures as the image tower takes them; it has one size, a bucket may have another."""
        assert self.features is not None
        size = (self.features.config.picture,) * 2
        if pixels.shape[-2:] != size:
            pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        return normalised(pixels)

    def _adversarial(self, rebuilding: Tensor, rebuilt: Tensor, record: dict[str, Tensor]) -> Tensor:
        """What the adversary adds to the autoencoder's loss; its own weights learn nothing of it."""
        adversary, critic = self.settings.discriminator, self.critic
        assert adversary is not None
        assert critic is not None
        critic.requires_grad_(False)
        with self.accelerator.autocast():
            scores = critic(rebuilt)
        fooling = generator_loss(scores.float(), adversary.loss)
        weight = adaptive_weight(rebuilding, fooling, self.autoencoder.decoder.conv_out.weight)
        critic.requires_grad_(True)
        record["adversarial"], record["adaptive_weight"] = fooling, weight
        return adversary.weight * weight * fooling

    def _teach(self, real: Tensor, rebuilt: Tensor) -> Tensor:
        """The adversary's own lesson; returns its loss."""
        adversary, discriminator = self.settings.discriminator, self.discriminator
        assert adversary is not None
        assert discriminator is not None
        real = real.detach().requires_grad_(adversary.gradient_penalty > 0)
        with self.accelerator.autocast():
            scores = discriminator(torch.cat([real, rebuilt])).float()
        on_real, on_rebuilt = scores.chunk(2)
        loss = discriminator_loss(on_real, on_rebuilt, adversary.loss)
        if adversary.gradient_penalty:
            loss = loss + adversary.gradient_penalty / 2 * gradient_penalty(on_real, real)
        self.accelerator.backward(loss)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR (dB), SSIM, and the L1 loss of all held-out pictures rebuilt from the posterior's mean."""
        if not self.held_out.items:
            return {}
        scores: dict[str, list[Tensor]] = {"loss": [], "psnr": [], "ssim": []}
        for rows in self.held_out.batches(16):
            pixels = self.held_out.load(rows).float().to(self.accelerator.device) / 127.5 - 1
            rebuilt = self._rebuilt(pixels)
            scores["loss"].append((rebuilt - pixels).abs().mean((1, 2, 3)))
            a, b = (rebuilt + 1) / 2, (pixels + 1) / 2
            scores["psnr"].append(psnr(a, b))
            scores["ssim"].append(ssim(a, b))
        return {name: float(torch.cat(values).mean()) for name, values in scores.items()}

    def _rebuilt(self, pixels: Tensor) -> Tensor:
        with self.accelerator.autocast():
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            return self.autoencoder.decode(self.autoencoder.encode(pixels).mode()).clamp(-1, 1)

    @torch.no_grad()
    def sample(self) -> Image.Image | None:
        """Held-out pictures, of the bucket that most are in, above what became of them."""
        if not self.held_out.items:
            return None
        ((common, _),) = Counter(self.held_out.sizes).most_common(1)
        rows = [row for row, size in enumerate(self.held_out.sizes) if size == common]
        rows = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
        pixels = self.held_out.load(rows).float().to(self.accelerator.device) / 127.5 - 1
        both = torch.cat([torch.cat(list(pixels), 2), torch.cat(list(self._rebuilt(pixels)), 2)], 1)
        return Image.fromarray(((both + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())

    @torch.no_grad()
    def write(self, folder: Path) -> None:
        """`vae`, whose latents have mean 0 and deviation 1 in each channel over the training pictures."""
        normalise(self.autoencoder, *self._measured())
        save_network(self.autoencoder, folder / "vae", asdict(self.autoencoder.config))
        (folder / "scores.json").write_text(json.dumps(self.evaluate(), indent=1) + "\n", "utf-8")

    @torch.no_grad()
    def _measured(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, per channel."""
        count, total, squares = 0, np.zeros(self.settings.latent_channels), np.zeros(self.settings.latent_channels)
        for rows in self.pictures.batches(16):
            pixels = self.pictures.load(rows).float().to(self.accelerator.device) / 127.5 - 1
            with self.accelerator.autocast():
                z = self.autoencoder.encode(pixels).mode().double().cpu()
            count += z[:, 0].numel()
            total += z.sum((0, 2, 3)).numpy()
            squares += z.square().sum((0, 2, 3)).numpy()
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _check(settings: Autoencode, data: Data) -> None:
    step = 2 ** (len(settings.channels) - 1)
    for name, value in (("size", data.size), ("bucket_step", data.bucket_step)):
        if value % step:
            raise DanqingError(
                f"data.{name}: {value} should be a multiple of {step}: the autoencoder halves sizes {step.bit_length() - 1} times"
            )
    if not settings.channels or any(channels % settings.groups for channels in settings.channels):
        raise DanqingError(
            f"autoencoder.groups: {settings.groups} does not divide all channels {list(settings.channels)}"
        )


@torch.no_grad()
def normalise(autoencoder: Autoencoder, mean: Tensor, std: Tensor) -> None:
    """Change the autoencoder so that its latents z become (z - mean) / std, both (C,); what it rebuilds stays the same.

    The 1x1 convolutions on either side of the latents take it in, so that the file needs no numbers beside it.
    """
    leave, enter = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert leave is not None
    assert leave.bias is not None
    assert enter is not None
    assert enter.bias is not None
    mean, std = mean.to(leave.weight), std.to(leave.weight)
    count = len(mean)
    enter.bias += (enter.weight[:, :, 0, 0] * mean).sum(1)
    enter.weight *= std[None, :, None, None]
    leave.weight[:count] /= std[:, None, None, None]
    leave.bias[:count] = (leave.bias[:count] - mean) / std
    leave.bias[count:] -= 2 * std.log()
