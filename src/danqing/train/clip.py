"""Training CLIP's two towers together (Radford et al. 2021): texts and pictures that belong together come close."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from PIL import Image
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.models.clip_vision import MEAN, STD, CLIPVision, CLIPVisionConfig
from danqing.prompts.tokenizer import Tokenizer, from_folder
from danqing.train.dataset import Item
from danqing.train.pictures import Order, Pictures, augment
from danqing.train.recipe import Clip, Data
from danqing.train.results import save_network
from danqing.train.vocabulary import train_vocabulary

LARGEST_SCALE = math.log(100)
"""The logits' scale is kept below 100 (Radford et al. 2021, section 2.5)."""


class Towers(nn.Module):
    """Both towers and the learned temperature; one module, so that one call has all gradients."""

    def __init__(self, text: CLIPTextConfig, vision: CLIPVisionConfig) -> None:
        super().__init__()
        self.text = CLIPText(text)
        self.vision = CLIPVision(vision)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        _initialise(self)

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token numbers (B, T), pictures (B, 3, S, S) in [-1, 1] -> unit vectors (B, P) of both, and the scale."""
        texts = F.normalize(self.text(ids).pooled.float(), dim=-1)
        pictures = F.normalize(self.vision(normalised(pixels)).projected.float(), dim=-1)
        return texts, pictures, self.logit_scale.clamp(max=LARGEST_SCALE).exp()


def _initialise(towers: Towers) -> None:
    """As CLIP's own code does: embeddings 0.02 and 0.01, the residual branches narrower the deeper the tower."""
    text, vision = towers.text.text_model, towers.vision.vision_model
    for encoder, config in ((text.encoder, towers.text.config), (vision.encoder, towers.vision.config)):
        wide: float = config.width**-0.5
        narrow = (2 * config.layers) ** -0.5 * wide
        deviations = {
            "q_proj": wide,
            "k_proj": wide,
            "v_proj": wide,
            "out_proj": narrow,
            "fc1": (2 * config.width) ** -0.5,
            "fc2": narrow,
        }
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=deviations[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(text.embeddings.position_embedding.weight, std=0.01)
    nn.init.normal_(vision.embeddings.position_embedding.weight, std=0.01)
    nn.init.normal_(vision.embeddings.class_embedding, std=0.02)
    if towers.text.text_projection is not None:
        nn.init.normal_(towers.text.text_projection.weight, std=towers.text.config.width**-0.5)
    nn.init.normal_(towers.vision.visual_projection.weight, std=towers.vision.config.width**-0.5)


def normalised(pixels: Tensor) -> Tensor:
    """Pictures in [-1, 1] as the image tower takes them."""
    mean, std = (torch.tensor(t, device=pixels.device).view(1, 3, 1, 1) for t in (MEAN, STD))
    return ((pixels + 1) / 2 - mean) / std


def tokens(texts: Sequence[str], tokenizer: Tokenizer, length: int | None = None) -> Tensor:
    """(B, T) int64: start, the text's tokens (75 at most), end, padded with end; T is `length` or the longest's."""
    rows = [[tokenizer.start, *tokenizer.encode(text)[:75], tokenizer.end] for text in texts]
    length = length or max(map(len, rows))
    return torch.tensor([row + [tokenizer.end] * (length - len(row)) for row in rows])


class ClipStage:
    """`danqing train clip`."""

    name = "clip"

    def __init__(
        self, settings: Clip, data: Data, training: Sequence[Item], held_out: Sequence[Item], folder: Path
    ) -> None:
        """folder: where the vocabulary is kept, learned from the captions unless it is there.

        Raises DanqingError: settings that make no network.
        """
        _check(settings, data)
        self.settings = settings
        self.vocabulary = folder / "tokenizer"
        with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
            if not self.vocabulary.is_dir():
                texts = (caption for item in training for caption in item.captions)
                train_vocabulary(texts, settings.text.vocabulary, self.vocabulary)
        self.tokenizer = from_folder(self.vocabulary)
        square = data.model_copy(update={"bucket_step": 0})  # the image tower has one size
        self.pictures, self.held_out = Pictures(training, square), Pictures(held_out, square)
        self.order = Order(self.pictures.sizes, settings.batch, settings.seed, settings.accumulate)
        self.flips = torch.tensor([item.flip for item in training])
        torch.manual_seed(settings.seed)
        text, vision = settings.text, settings.vision
        self.towers = Towers(
            CLIPTextConfig(
                vocabulary=self.tokenizer.end + 1, width=text.width, intermediate=4 * text.width, layers=text.layers,
                heads=text.heads, positions=text.positions, activation="gelu", projection=text.width,
                end_token=self.tokenizer.end,
            ),
            CLIPVisionConfig(
                width=vision.width, intermediate=4 * vision.width, layers=vision.layers, heads=vision.heads,
                activation="gelu", picture=data.size, patch=vision.patch, projection=text.width,
            ),
        )  # fmt: skip
        self.parts: Mapping[str, nn.Module] = {"towers": self.towers}
        self.learning_rates: Mapping[str, float] = {"towers": settings.learning_rate}
        self.averaged: tuple[str, ...] = ("towers",)

    def begin(self, accelerator: Accelerator, parts: Mapping[str, nn.Module]) -> None:
        self.accelerator, self.forward = accelerator, parts["towers"]

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = self.order.at(number)
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        device = self.accelerator.device
        pixels = augment(self.pictures.load(rows).to(device), self.flips[rows], self.settings.augment, generator)
        chosen = torch.rand(len(rows), generator=generator).tolist()
        captions = [self.pictures.items[row].captions for row in rows]
        texts = [some[int(share * len(some))] if some else "" for some, share in zip(captions, chosen)]
        with self.accelerator.autocast():
            text, picture, scale = self.forward(tokens(texts, self.tokenizer).to(device), pixels)
        loss, right = contrast(text, picture, scale)
        self.accelerator.backward(loss)
        return {"loss": loss.detach(), "accuracy": right, "scale": scale.detach()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss and the share of pictures that find their own caption, among all held-out ones."""
        if not self.held_out.items:
            return {}
        texts, pictures = [], []
        for rows in self.held_out.batches(64):
            ids = tokens([next(iter(self.held_out.items[row].captions), "") for row in rows], self.tokenizer)
            pixels = self.held_out.load(rows).float() / 127.5 - 1
            with self.accelerator.autocast():
                device = self.accelerator.device
                text, picture, scale = self.towers(ids.to(device), pixels.to(device))
            texts.append(text)
            pictures.append(picture)
        loss, right = contrast(torch.cat(texts), torch.cat(pictures), scale)
        return {"loss": float(loss), "accuracy": float(right)}

    def sample(self) -> Image.Image | None:
        return None

    def write(self, folder: Path) -> None:
        """`text_encoder`, `image_encoder`, `tokenizer`."""
        towers = self.towers
        save_network(towers.text, folder / "text_encoder", asdict(towers.text.config))
        save_network(towers.vision, folder / "image_encoder", asdict(towers.vision.config))
        shutil.copytree(self.vocabulary, folder / "tokenizer")
        (folder / "scores.json").write_text(json.dumps(self.evaluate(), indent=1) + "\n", "utf-8")


def _check(settings: Clip, data: Data) -> None:
    for name, tower in (("text", settings.text), ("vision", settings.vision)):
        if tower.width % tower.heads:
            raise DanqingError(f"clip.{name}.heads: {tower.heads} does not divide the width {tower.width}")
    if data.size % settings.vision.patch:
        raise DanqingError(f"clip.vision.patch: {settings.vision.patch} does not divide data.size, {data.size}")


def contrast(texts: Tensor, pictures: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(the symmetric contrastive loss, the share of pictures nearest to their own text): unit vectors (B, P) twice.

    Radford et al. 2021, figure 3. Pairs of other processes, and of other parts of a batch, do not count as contrasts.
    """
    logits = scale * texts @ pictures.T
    own = torch.arange(len(texts), device=texts.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(0) == own).float().mean()
