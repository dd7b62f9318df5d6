"""Training the judge: concept and style of drawings, so that it names drawings in styles it has not seen them in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.evaluate.judge import judged, load_judge, look
from danqing.models.judge import JudgeConfig, JudgeNetwork
from danqing.train.dataset import Item
from danqing.train.distort import mix, spoil, warp
from danqing.train.pictures import Order, Pictures, augment
from danqing.train.recipe import Data, Judge
from danqing.train.results import save_network


class JudgeStage:
    """`danqing train judge`."""

    name = "judge"

    def __init__(self, settings: Judge, data: Data, training: Sequence[Item], held_out: Sequence[Item]) -> None:
        """Raises DanqingError: a picture without concept and style, settings that make no network."""
        self.settings = settings
        pairs = _pairs(training)
        config = JudgeConfig(
            concepts=tuple(sorted({concept for concept, _ in pairs})),
            styles=tuple(sorted({style for _, style in pairs})),
            picture=settings.picture, channels=settings.channels, layers=settings.layers, groups=settings.groups,
            features=settings.features,
        )  # fmt: skip
        _check(settings)
        self.pairs = _pairs(held_out)
        unknown = [pair for pair in self.pairs if pair[0] not in config.concepts or pair[1] not in config.styles]
        if unknown:
            raise DanqingError(f"{'/'.join(unknown[0])} is held out, but its concept or style is nowhere trained on")
        square = data.model_copy(update={"bucket_step": 0})
        self.pictures, self.held_out = Pictures(training, square), Pictures(held_out, square)
        self.order = Order(self.pictures.sizes, settings.batch, settings.seed, settings.accumulate)
        self.flips = torch.tensor([item.flip for item in training])
        concepts, styles = ({name: i for i, name in enumerate(names)} for names in (config.concepts, config.styles))
        self.concepts = torch.tensor([concepts[concept] for concept, _ in pairs])
        self.styles = torch.tensor([styles[style] for _, style in pairs])
        torch.manual_seed(settings.seed)
        self.network = JudgeNetwork(config)
        self.parts: Mapping[str, nn.Module] = {"judge": self.network}
        self.learning_rates: Mapping[str, float] = {"judge": settings.learning_rate}
        self.averaged: tuple[str, ...] = ("judge",)

    def begin(self, accelerator: Accelerator, parts: Mapping[str, nn.Module]) -> None:
        self.accelerator, self.forward = accelerator, parts["judge"]

    def update(self, number: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        settings, device = self.settings, self.accelerator.device
        rows = self.order.at(number)[self.accelerator.process_index :: self.accelerator.num_processes]
        pixels = warp(self.pictures.load(rows).to(device), settings.picture, settings.distort, generator)
        pixels = augment(pixels, self.flips[rows], settings.augment, generator)
        pixels, other, there = mix(spoil(pixels, settings.distort, generator), settings.distort, generator)
        concepts, styles = self.concepts[rows].to(device), self.styles[rows].to(device)
        with self.accelerator.autocast():
            opinion = self.forward(pixels.contiguous(memory_format=torch.channels_last))

        def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
            logits = logits.float()
            own, strange = (
                F.cross_entropy(logits, asked, reduction="none", label_smoothing=settings.label_smoothing)
                for asked in (labels, labels[other])
            )
            return torch.lerp(own, strange, there).mean()

        concept, style = loss_of(opinion.concepts, concepts), loss_of(opinion.styles, styles)
        loss = concept + settings.style_weight * style
        self.accelerator.backward(loss)
        right = (opinion.concepts.argmax(1) == concepts).float().mean()
        return {"loss": loss.detach(), "concept": concept.detach(), "style": style.detach(), "first": right}

    def evaluate(self) -> dict[str, float]:
        """On the held-out pictures: the loss without smoothing; the shares named first, within five, of right style."""
        self.network.eval()
        scores = self._scores(self.network)
        self.network.train()
        return scores

    def _scores(self, network: JudgeNetwork) -> dict[str, float]:
        if not self.pairs:
            return {}
        opinion = look(network, self.held_out.load(range(len(self.pairs))))
        config = network.config
        concepts = torch.tensor([config.concepts.index(concept) for concept, _ in self.pairs])
        styles = torch.tensor([config.styles.index(style) for _, style in self.pairs])
        concept, style = F.cross_entropy(opinion.concepts, concepts), F.cross_entropy(opinion.styles, styles)
        verdict = judged(config, opinion, self.pairs)
        hits = {"first": verdict.within(1), "five": verdict.within(5), "style": verdict.style}
        shares = {name: float(hit.float().mean()) for name, hit in hits.items()}
        return {"loss": float(concept + self.settings.style_weight * style), **shares}

    def sample(self) -> Image.Image | None:
        return None

    def write(self, folder: Path) -> None:
        """`judge`, in bfloat16, and its scores."""
        save_network(copy.deepcopy(self.network).bfloat16(), folder / "judge", asdict(self.network.config))
        written = load_judge(folder / "judge")
        (folder / "scores.json").write_text(json.dumps(self._scores(written), indent=1) + "\n", "utf-8")


def _pairs(items: Sequence[Item]) -> list[tuple[str, str]]:
    """(concept, style) of each."""
    for item in items:
        for label in ("concept", "style"):
            if label not in item.labels:
                raise DanqingError(f"{item.path}: metadata.jsonl does not give its {label}, which a judge learns")
    return [(item.labels["concept"], item.labels["style"]) for item in items]


def _check(settings: Judge) -> None:
    if len(settings.channels) != len(settings.layers) or min(settings.layers, default=0) < 1:
        raise DanqingError(
            f"judge.layers: {list(settings.layers)} should give a number for each of "
            f"channels {list(settings.channels)}, 1 at least"
        )
    if any(channels % settings.groups for channels in settings.channels):
        raise DanqingError(f"judge.groups: {settings.groups} does not divide all channels {list(settings.channels)}")
    if settings.picture % 2 ** len(settings.channels):
        raise DanqingError(
            f"judge.picture: {settings.picture} should be a multiple of {2 ** len(settings.channels)}, "
            f"as {len(settings.channels)} levels halve it"
        )
