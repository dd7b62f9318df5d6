"""Training the denoiser: pictures as latents, texts as the text tower's hidden states, both made beforehand.

Where the text tower learns with it, as in Rombach et al. 2022, section 4.3.1, its hidden states are made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danqing.checkpoints.save import save
from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.families import Defaults, Family, Model, Process, TextEncoder
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip import CLIPOutput, CLIPText, CLIPTextConfig
from danqing.models.layers import ResBlock
from danqing.models.unet import Transformer, UNet, UNetConfig
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import grid
from danqing.prompts.tokenizer import from_folder
from danqing.train.clip import tokens
from danqing.train.dataset import Item
from danqing.train.objectives import noised, weights
from danqing.train.pictures import Order, Pictures, augment
from danqing.train.recipe import Data, Diffuse, Recipe
from danqing.train.results import load_weights, read_config

ENCODER = "text_encoder"
SHARD = 15_000_000
"""Bytes of a file of the result: small enough for whatever carries it."""
PROMPTS = (
    "a red apple, 3d style", "a red apple, flat style", "红苹果，诺托风格", "red apple, twemoji style",
    "dog face, 3d style", "cat face, flat style", "猫脸，推特风格", "penguin, noto style",
    "grinning face, 3d style", "rocket, flat style", "火箭，立体风格", "pizza, noto style",
    "red heart, twemoji style", "house, flat style", "rainbow, noto style", "sunflower, 3d style",
)  # fmt: skip
"""What sample sheets show."""


def family_of(recipe: Recipe, autoencoder: AutoencoderConfig, text: CLIPTextConfig) -> Family:
    """The row of the model that the recipe trains."""
    settings, shape = recipe.diffusion, recipe.diffusion.denoiser
    return Family(
        name=recipe.name,
        title=recipe.title or recipe.name,
        text_encoders=(TextEncoder(ENCODER, text, pad_token=text.end_token),),
        denoiser=UNetConfig(
            in_channels=autoencoder.latent_channels,
            out_channels=autoencoder.latent_channels,
            channels=shape.channels,
            down_depth=shape.down_depth,
            mid_depth=shape.mid_depth,
            up_depth=shape.up_depth,
            heads=shape.heads,
            context_width=text.width,
            pooled_width=(text.projection or text.width) if shape.pooled else 0,
            groups=shape.groups,
        ),
        autoencoder=autoencoder,
        process=Process(prediction=settings.prediction, zero_terminal_snr=settings.zero_terminal_snr),
        spacing="trailing",
        defaults=Defaults(
            width=recipe.data.size,
            height=recipe.data.size,
            steps=20,
            cfg_scale=3.0,
            sampler="DPM++ 2M",
            scheduler="SGM Uniform",
        ),
    )


class DiffusionStage:
    """`danqing train diffusion`."""

    name = "diffusion"

    def __init__(
        self,
        recipe: Recipe,
        training: Sequence[Item],
        held_out: Sequence[Item],
        clip: Path,
        autoencoder: Path,
        cache: Path,
    ) -> None:
        """clip, autoencoder: the results of those stages. cache: a folder for latents and text embeddings.

        Raises DanqingError: settings that make no network, no result of one of those stages.
        """
        _check(recipe.diffusion)
        self.settings: Diffuse = recipe.diffusion
        self.data: Data = recipe.data
        self.cache = cache
        self.items, self.watched = list(training), list(held_out)
        self.tokenizer_folder = clip / "tokenizer"
        text_config = CLIPTextConfig(**read_config(clip / ENCODER))
        vae_config = AutoencoderConfig(**read_config(autoencoder / "vae"))
        self.text, self.autoencoder = CLIPText(text_config), Autoencoder(vae_config)
        load_weights(self.text, clip / ENCODER)
        if not self.settings.denoiser.pooled:  # then the tower is what SD 1.x has, and other programs expect
            text_config = replace(text_config, projection=None)
            self.text.config, self.text.text_projection = text_config, None
        load_weights(self.autoencoder, autoencoder / "vae")
        self.fingerprint = hashlib.sha256(
            b"".join((folder / "model.safetensors").read_bytes() for folder in (clip / ENCODER, autoencoder / "vae"))
        ).hexdigest()
        self.family = family_of(recipe, vae_config, text_config)
        self.process = self.family.process
        torch.manual_seed(self.settings.seed)
        self.denoiser = UNet(self.family.denoiser)
        _begin_as_nothing(self.denoiser)
        self.parts: Mapping[str, nn.Module] = {"denoiser": self.denoiser}
        self.learning_rates: Mapping[str, float] = {"denoiser": self.settings.learning_rate}
        if self.settings.text_learning_rate:
            self.parts |= {ENCODER: self.text}
            self.learning_rates |= {ENCODER: self.settings.text_learning_rate}
        self.averaged: tuple[str, ...] = tuple(self.parts)

    def begin(self, accelerator: Accelerator, parts: Mapping[str, nn.Module]) -> None:
        self.accelerator = accelerator
        device = accelerator.device
        self.text.to(device)
        self.autoencoder.to(device)
        self.pictures, self.watched_pictures = Pictures(self.items, self.data), Pictures(self.watched, self.data)
        self.order = Order(self.pictures.sizes, self.settings.batch, self.settings.seed, self.settings.accumulate)
        self.flips = torch.tensor([item.flip for item in self.items])
        changes = self.settings.augment
        self.latents = self.mirrored = None
        with accelerator.main_process_first():
            if not (changes.crop or changes.colour or changes.grey or changes.hue):
                self.latents = self._encoded("latents", self.pictures)
                if changes.flip:
                    self.mirrored = self._encoded("mirrored", self.pictures, mirror=True)
            self.texts: Texts | Tower
            if ENCODER in parts:
                self.texts = Tower(parts[ENCODER], self.text.config.positions, self.tokenizer_folder)
            else:
                self.texts = Texts(self._captions(), self.text, self.tokenizer_folder, self.cache, self.fingerprint)
            self.watched_latents = self._encoded("held_out", self.watched_pictures)
        self.forward = parts["denoiser"]

    def _captions(self) -> list[str]:
        most = self.settings.captions_per_picture
        chosen = [caption for item in self.items for caption in _spread(item.captions, most)]
        return list(dict.fromkeys(["", *chosen, *(item.captions[0] for item in self.watched if item.captions)]))

    @torch.no_grad()
    def _encoded(self, name: str, pictures: Pictures, mirror: bool = False) -> list[Tensor]:
        """The pictures' latents (the posterior's mean), each (C, h, w); kept in the cache folder."""
        names = "\n".join(
            f"{item.path} {item.path.stat().st_size} {size}" for item, size in zip(pictures.items, pictures.sizes)
        )
        key = hashlib.sha256((self.fingerprint + names).encode()).hexdigest()[:16]
        path = self.cache / f"{name}-{key}.safetensors"
        if not path.is_file():
            found: dict[str, Tensor] = {}
            for rows in pictures.batches(8):
                pixels = pictures.load(rows).to(self.accelerator.device).float() / 127.5 - 1
                pixels = pixels.flip(-1) if mirror else pixels
                with self.accelerator.autocast():
                    latents = self.autoencoder.encode(pixels).mode().cpu()
                found |= {str(row): one.clone() for row, one in zip(rows, latents)}
            _keep(found, path)
        table = load_file(path)
        return [table[str(row)] for row in range(len(pictures.items))]

    def _batch(self, rows: Sequence[int], generator: torch.Generator) -> Tensor:
        """Clean latents (B, C, h, w)."""
        device = self.accelerator.device
        changes = self.settings.augment
        if self.latents is None:
            pixels = augment(self.pictures.load(rows).to(device), self.flips[rows], changes, generator)
            with torch.no_grad(), self.accelerator.autocast():
                return self.autoencoder.encode(pixels).mode()
        turned = (torch.rand(len(rows), generator=generator) < changes.flip) & self.flips[rows]
        return torch.stack(
            [
                (self.mirrored if turn and self.mirrored else self.latents)[row]
                for row, turn in zip(rows, turned.tolist())
            ]
        ).to(device)

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.texts.learns = step >= self.settings.text_start
        rows = self.order.at(number)[self.accelerator.process_index :: self.accelerator.num_processes]
        clean = self._batch(rows, generator)
        dropped = torch.rand(len(rows), generator=generator) < self.settings.drop_condition
        drawn = torch.rand(len(rows), generator=generator).tolist()
        most = self.settings.captions_per_picture
        captions = [_spread(self.items[row].captions, most) for row in rows]
        texts = [
            "" if drop or not some else some[int(share * len(some))]
            for some, drop, share in zip(captions, dropped.tolist(), drawn)
        ]
        # spread evenly over the steps, so that a batch's loss says the same of each
        places = (torch.randperm(len(rows), generator=generator) + torch.rand(len(rows), generator=generator)) / len(
            rows
        )
        shift = self.settings.shift  # Esser et al. 2024, equation 23
        places = shift * places / (1 + (shift - 1) * places)
        steps = (places * self.process.steps).long().clamp(max=self.process.steps - 1)
        noise = torch.randn(clean.shape, generator=generator)
        error, weight = self._errors(self.forward, clean, noise.to(clean), steps, texts)
        loss = (error * weight).mean()
        self.accelerator.backward(loss)
        return {"loss": loss.detach(), "unweighted": error.mean().detach()}

    def _errors(
        self, denoiser: Callable[..., Tensor], clean: Tensor, noise: Tensor, steps: Tensor, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Each picture's squared error of the network's output (B,), and its weight (B,)."""
        device = clean.device
        scaled, target, told = noised(self.process, clean, noise, steps)
        if device.type == "cpu":
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            context, pooled = self.texts.of(texts, device)
            context = context.to(torch.bfloat16 if self.settings.precision == "bf16" else torch.float32)
            output = denoiser(scaled, told, context, pooled=pooled if self.family.denoiser.pooled_width else None)
        error = (output.float() - target).square().mean((1, 2, 3))
        gamma = self.settings.snr_gamma if self.settings.weighting == "min-snr" else None
        return error, weights(self.process, steps, gamma).to(device)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The unweighted loss on the held-out pictures, and on as many training pictures, with the same noise."""
        if not self.watched:
            return {}
        scores = {"loss": self._watch(self.watched, self.watched_latents)}
        if self.latents is not None:
            step = max(1, len(self.items) // max(1, len(self.watched)))
            seen = range(0, len(self.items), step)[: len(self.watched)]
            scores["loss_on_training"] = self._watch([self.items[i] for i in seen], [self.latents[i] for i in seen])
        return scores

    def _watch(self, items: Sequence[Item], latents: Sequence[Tensor]) -> float:
        generator = torch.Generator().manual_seed(0)
        errors = []
        for i, (item, one) in enumerate(zip(items, latents)):
            clean = one[None].to(self.accelerator.device)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            steps = torch.tensor([(i * 617) % self.process.steps])
            error, _ = self._errors(self.denoiser, clean, noise, steps, [item.captions[0] if item.captions else ""])
            errors.append(error)
        return float(torch.cat(errors).mean())

    def model(self) -> Model:
        """The whole model, sharing the weights that are being trained."""
        return Model(
            self.family, self.denoiser, self.autoencoder, {ENCODER: self.text}, {ENCODER: self.tokenizer_folder},
            name=self.family.name,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self) -> Image.Image | None:
        """`PROMPTS`, one seed."""
        self.denoiser.eval()
        try:
            painted = [paint(prompt, self.model(), seed=1)[0].image for prompt in PROMPTS]
        finally:
            self.denoiser.train()
        return grid(painted)

    def write(self, folder: Path) -> None:
        """`model`, an ordinary checkpoint in diffusers' layout, in bfloat16."""
        save(self.model(), folder / "model", layout="diffusers", dtype=torch.bfloat16, shard=SHARD)
        (folder / "scores.json").write_text(json.dumps(self.evaluate(), indent=1) + "\n", "utf-8")


def _check(settings: Diffuse) -> None:
    shape, levels = settings.denoiser, len(settings.denoiser.channels)
    for name in ("down_depth", "up_depth", "heads"):
        if len(getattr(shape, name)) != levels:
            raise DanqingError(f"diffusion.denoiser.{name}: should have {levels} entries, one for each of channels")
    for down, up in zip(shape.down_depth, shape.up_depth[::-1]):
        if not down or len(up) != len(down) + 1:
            raise DanqingError(
                f"diffusion.denoiser.up_depth: {list(up)} should have {len(down) + 1} entries, one more than "
                f"down_depth's {list(down)}"
            )
    for channels, heads in zip(shape.channels, shape.heads):
        if channels % shape.groups or channels % heads or channels % 2:
            raise DanqingError(
                f"diffusion.denoiser.channels: {channels} should be a multiple of 2, of groups ({shape.groups}) and of "
                f"its heads ({heads})"
            )
    if settings.prediction == "epsilon" and settings.zero_terminal_snr:
        raise DanqingError(
            "diffusion.zero_terminal_snr: in pure noise there is no epsilon to predict; set it to false, or prediction "
            "to v"
        )


def _begin_as_nothing(denoiser: UNet) -> None:
    """Every residual branch, and the output, begin as zero (Dhariwal & Nichol 2021): deep networks learn faster so."""
    for module in denoiser.modules():
        if isinstance(module, ResBlock):
            last: nn.Module = module.conv2
        elif isinstance(module, Transformer):
            last = module.proj_out
        elif isinstance(module, UNet):
            last = module.conv_out
        else:
            continue
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


def _spread(captions: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the captions, evenly chosen."""
    return captions if len(captions) <= most else [captions[i * len(captions) // most] for i in range(most)]


def _keep(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a cache file in place of those that other networks or pictures made; it names what it is made of."""
    kind = path.name.rpartition("-")[0]
    with beside(path, sum(tensor.nbytes for tensor in tensors.values())) as new:
        save_file(tensors, new)
    for old in path.parent.glob(f"{kind}-*.safetensors"):
        if old != path:
            with suppress(OSError):  # another run may read it
                old.unlink()


class Texts:
    """What the text tower makes of each caption, encoded once and mapped from the cache folder."""

    learns = False
    """It never does."""

    def __init__(
        self, captions: Sequence[str], tower: CLIPText, vocabulary: Path, cache: Path, fingerprint: str
    ) -> None:
        self.rows = {caption: row for row, caption in enumerate(captions)}
        key = hashlib.sha256((fingerprint + "\n".join(captions)).encode()).hexdigest()[:16]
        path = cache / f"texts-{key}.safetensors"
        if not path.is_file():
            _keep(self._encoded(captions, tower, vocabulary), path)
        table = load_file(path)
        self.context, self.pooled = table["context"], table["pooled"]

    @staticmethod
    @torch.no_grad()
    def _encoded(captions: Sequence[str], tower: CLIPText, vocabulary: Path) -> dict[str, Tensor]:
        tokenizer, device = from_folder(vocabulary), next(tower.parameters()).device
        context, pooled = [], []
        for start in range(0, len(captions), 256):
            ids = tokens(captions[start : start + 256], tokenizer, tower.config.positions)
            with torch.autocast(device.type, torch.bfloat16):
                out = tower(ids.to(device))
            context.append(out.last.to(torch.bfloat16).cpu())
            pooled.append(out.pooled.float().cpu())
        return {"context": torch.cat(context), "pooled": torch.cat(pooled)}

    def of(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) bfloat16 and pooled vectors (B, P) float32."""
        rows = [self.rows[text] for text in texts]
        return self.context[rows].to(device), self.pooled[rows].to(device)


class Tower:
    """The text tower as it is at this update: what it makes of captions, with gradients where they are wanted."""

    def __init__(self, forward: Callable[[Tensor], CLIPOutput], positions: int, vocabulary: Path) -> None:
        self.forward, self.positions = forward, positions
        self.tokenizer = from_folder(vocabulary)
        self.learns = True
        """Whether gradients are wanted of it."""

    def of(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) and pooled vectors (B, P)."""
        different = list(dict.fromkeys(texts))  # the empty one comes often
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            out = self.forward(tokens(different, self.tokenizer, self.positions).to(device))
        rows = [different.index(text) for text in texts]
        return out.last[rows], out.pooled[rows]
