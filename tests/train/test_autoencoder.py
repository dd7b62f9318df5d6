"""The autoencoder stage: its losses, its latents, its sheets, what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from danqing.errors import DanqingError
from danqing.evaluate.reconstruction import ssim
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.train.autoencoder import AutoencoderStage
from danqing.train.dataset import read_dataset, split
from danqing.train.pictures import read_picture
from danqing.train.recipe import Recipe
from danqing.train.results import load_weights, read_config
from danqing.train.stages import make_stage

from .conftest import dataset, tiny_recipe, train_stage


def written(trained: Path) -> Autoencoder:
    folder = trained / "autoencoder" / "result" / "vae"
    network = Autoencoder(AutoencoderConfig(**read_config(folder)))
    load_weights(network, folder)
    return network


def begun(recipe: Recipe, runs: Path) -> AutoencoderStage:
    """The stage without the loop."""
    stage = make_stage("autoencoder", recipe, read_dataset(recipe.data.folder), runs)
    assert isinstance(stage, AutoencoderStage)
    stage.begin(Accelerator(cpu=True), stage.parts)
    return stage


def test_latents_have_mean_0_and_deviation_1(trained: Path, recipe: Callable[..., Recipe]) -> None:
    training, _ = split(read_dataset(recipe().data.folder))
    pixels = torch.stack([read_picture(item.path, (32, 32)) for item in training]).float() / 127.5 - 1
    with torch.no_grad():
        latents = written(trained).encode(pixels).mode()
    assert latents.shape == (13, 4, 16, 16)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3), unbiased=False), torch.ones(4), rtol=1e-3, atol=0)


def test_result_is_an_ordinary_autoencoder(trained: Path) -> None:
    """Nothing that only Danqing would know stands beside the weights."""
    config = AutoencoderConfig(**read_config(trained / "autoencoder" / "result" / "vae"))
    assert (config.scale, config.shift, config.mean, config.std) == (1.0, 0.0, None, None)
    scores = json.loads((trained / "autoencoder" / "result" / "scores.json").read_text())
    assert set(scores) == {"loss", "psnr", "ssim"}


def test_scores_are_those_of_the_written_weights(trained: Path, recipe: Callable[..., Recipe]) -> None:
    stage = begun(recipe(), trained)
    stage.autoencoder.load_state_dict(written(trained).state_dict())
    scores = json.loads((trained / "autoencoder" / "result" / "scores.json").read_text())
    assert stage.evaluate() == pytest.approx(scores, rel=1e-3)


def test_losses(trained: Path, recipe: Callable[..., Recipe]) -> None:
    """The total is what its parts say, and the KL term is its formula."""
    settings = recipe(
        autoencoder={"kl_weight": 0.5, "square_weight": 2.0, "perceptual_weight": 0.25, "structure_weight": 0.5}
    )
    stage = begun(settings, trained)
    record = stage.update(0, 0, torch.Generator().manual_seed(0))
    assert "adversarial" not in record, "the adversary begins at update 2"
    assert record["perceptual"] > 0
    rows = stage.order.at(0)
    generator = torch.Generator().manual_seed(0)
    from danqing.train.pictures import augment

    real = augment(stage.pictures.load(rows), stage.flips[rows], settings.autoencoder.augment, generator)
    posterior = stage.autoencoder.encode(real)
    normal = torch.distributions.Normal(posterior.mean, (posterior.logvar / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(record["kl"], kl.detach(), rtol=1e-4, atol=1e-6)
    rebuilt = stage.autoencoder.decode(posterior.sample(torch.randn(posterior.mean.shape, generator=generator)))
    torch.testing.assert_close(record["l1"], (rebuilt - real).abs().mean().detach(), rtol=1e-4, atol=1e-6)
    structure = 1 - ssim((rebuilt.detach() + 1) / 2, (real + 1) / 2).float().mean()
    total = record["l1"] + 2 * record["square"] + 0.25 * record["perceptual"] + 0.5 * record["kl"] + 0.5 * structure
    torch.testing.assert_close(record["loss"], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["hinge", "minimax"])
def test_adversary(kind: str, trained: Path, recipe: Callable[..., Recipe]) -> None:
    """It is taught by its own loss only, and the autoencoder by minus its score."""
    adversary = {"start": 0, "channels": 8, "layers": 1, "loss": kind, "weight": 0.5, "gradient_penalty": 10.0}
    plain, fought = (begun(recipe(autoencoder={"discriminator": value}), trained) for value in (None, adversary))
    fought.autoencoder.load_state_dict(plain.autoencoder.state_dict())
    records = [stage.update(0, 5, torch.Generator().manual_seed(0)) for stage in (plain, fought)]
    added = records[1]["loss"] - records[0]["loss"]
    torch.testing.assert_close(added, 0.5 * records[1]["adaptive_weight"] * records[1]["adversarial"])
    assert records[1]["adaptive_weight"] > 0
    last = [stage.autoencoder.decoder.conv_out.weight.grad for stage in (plain, fought)]
    assert last[0] is not None
    assert last[1] is not None
    # equation 7 of Esser et al.: at the last layer both losses pull alike, before the factor 0.5
    assert float((last[1] - last[0]).norm() / last[0].norm()) == pytest.approx(0.5, rel=0.05)
    critic = fought.parts["discriminator"]
    assert all(p.grad is not None and p.requires_grad for p in critic.parameters())
    from danqing.train.discriminator import discriminator_loss, gradient_penalty
    from danqing.train.pictures import augment

    generator = torch.Generator().manual_seed(0)
    rows = fought.order.at(0)
    real = augment(fought.pictures.load(rows), fought.flips[rows], fought.settings.augment, generator)
    noise = torch.randn(len(rows), 4, 16, 16, generator=generator)
    rebuilt = fought.autoencoder.decode(fought.autoencoder.encode(real).sample(noise)).detach()
    real.requires_grad_()
    scores = critic(real)
    loss = discriminator_loss(scores, critic(rebuilt), kind) + 5 * gradient_penalty(scores, real)
    torch.testing.assert_close(records[1]["discriminator"], loss.detach(), rtol=1e-4, atol=1e-6)


def test_adversary_learns_after_its_start_only(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from .test_loop import place

    runs = place("autoencoder", trained, tmp_path / "runs")
    settings = recipe(autoencoder={"save_minutes": 1e-9, "keep": 10})
    assert train_stage("autoencoder", settings, runs)
    names = [f"step-{step:08d}" for step in (1, 2, 3)]
    critics = [load_file(runs / "autoencoder" / "states" / name / "model_1.safetensors") for name in names]
    assert all(torch.equal(value, critics[1][key]) for key, value in critics[0].items())
    assert not all(torch.equal(value, critics[2][key]) for key, value in critics[1].items())


def test_it_learns(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    settings = recipe(
        autoencoder={
            "steps": 100, "learning_rate": 5e-3, "warmup": 5, "discriminator": None, "perceptual_weight": 0.0,
            "average": {"kind": "constant", "decay": 0.5}, "evaluate_every": 1000,
        }
    )  # fmt: skip
    assert train_stage(
        "autoencoder", settings, tmp_path, show=lambda done, total, values, speed: losses.append(values["l1"])
    )
    assert losses[-1] < 0.85 * losses[0]
    scores = json.loads((tmp_path / "autoencoder" / "result" / "scores.json").read_text())
    before = json.loads((trained / "autoencoder" / "result" / "scores.json").read_text())
    assert scores["psnr"] > before["psnr"] + 3


def test_sheet(trained: Path, recipe: Callable[..., Recipe]) -> None:
    """Each held-out picture above what became of it."""
    stage = begun(recipe(), trained)
    sheet = stage.sample()
    assert sheet is not None
    assert sheet.size == (3 * 32, 2 * 32)
    top = np.array(sheet)[:32, :32]
    assert (top == np.array(Image.open(stage.held_out.items[0].path))).all()
    many = [item for item in stage.held_out.items for _ in range(7)]  # 21
    stage.held_out = type(stage.held_out)(many, recipe().data)
    wide = stage.sample()
    assert wide is not None
    assert wide.size == (8 * 32, 2 * 32)
    assert sorted(path.name for path in (trained / "autoencoder" / "samples").iterdir()) == ["00000006.png"]


def test_buckets(trained: Path, tmp_path: Path) -> None:
    """Pictures of several shapes, with a perceptual loss, whose tower is square."""
    folder = dataset(tmp_path / "pictures")
    for number in range(0, 16, 2):
        path = folder / f"{number:02d}.png"
        Image.open(path).resize((48, 24)).save(path)
    changes: dict[str, Any] = {"data": {"bucket_step": 8}}
    stage = begun(tiny_recipe(folder, **changes), trained)
    assert set(stage.pictures.sizes) == {(32, 32), (40, 24)}
    for number in range(stage.order.per_epoch):
        assert stage.update(number, 0, torch.Generator())["perceptual"] > 0
    assert stage.evaluate()["psnr"] > 0
    sheet = stage.sample()
    assert sheet is not None
    assert sheet.size == (2 * 32, 2 * 32)
    stage.write(tmp_path / "result")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"autoencoder": {"groups": 3}}, r"autoencoder.groups: 3 does not divide all channels \[8, 16\]"),
        ({"data": {"size": 33}}, r"data.size: 33 should be a multiple of 2"),
        ({"data": {"bucket_step": 5}}, r"data.bucket_step: 5 should be a multiple of 2"),
    ],
)
def test_settings_that_make_no_network(
    changes: dict[str, Any], line: str, recipe: Callable[..., Recipe], trained: Path
) -> None:
    with pytest.raises(DanqingError, match=line):
        begun(recipe(**changes), trained)


def test_no_image_tower(recipe: Callable[..., Recipe], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"image_encoder: no stage's result is there"):
        begun(recipe(), tmp_path)
    assert begun(recipe(autoencoder={"perceptual_weight": 0.0}), tmp_path).features is None
