"""The diffusion stage: what it is shown, its caches, the model that it writes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import danqing
from danqing.errors import DanqingError
from danqing.families import DANQING
from danqing.models.autoencoder import AutoencoderConfig
from danqing.models.clip import CLIPTextConfig
from danqing.prompts.encode import conditionings
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import from_folder
from danqing.train.clip import tokens
from danqing.train.dataset import read_dataset
from danqing.train.diffusion import ENCODER, DiffusionStage, Texts, family_of
from danqing.train.objectives import noised
from danqing.train.recipe import Recipe, read_recipe
from danqing.train.stages import make_stage

from .conftest import one_thread, train_stage
from .test_loop import place

Made = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return place("diffusion", trained, tmp_path / "runs")


def begun(recipe: Recipe, runs: Path) -> DiffusionStage:
    """The stage without the loop."""
    stage = make_stage("diffusion", recipe, read_dataset(recipe.data.folder), runs)
    assert isinstance(stage, DiffusionStage)
    for network in stage.parts.values():
        network.train().requires_grad_(True)
    stage.begin(Accelerator(cpu=True), stage.parts)
    return stage


@pytest.fixture(scope="module")
def model_folder(recipe: Made, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = place("diffusion", trained, tmp_path_factory.mktemp("diffusion") / "runs")
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("danqing.train.diffusion.PROMPTS", ("a red square",))
        assert train_stage("diffusion", recipe(), runs)
    return runs / "diffusion" / "result" / "model"


def test_result_opens_as_it_was_trained(model_folder: Path, recipe: Made, trained: Path) -> None:
    """The family's row goes with the checkpoint: process, text path, sizes, defaults, tokenizer."""
    model = danqing.load(model_folder)
    family = model.family
    assert family.name == "tiny"
    assert (family.process.prediction, family.process.zero_terminal_snr) == ("v", True)
    assert family.spacing == "trailing"
    assert family.denoiser.pooled_width == 16
    assert family.denoiser.channels == (8, 16)
    assert family.autoencoder.latent_channels == 4
    assert family.autoencoder.scale == 1.0
    assert (family.defaults.width, family.defaults.scheduler) == (32, "SGM Uniform")
    assert family.text_encoders[0].config.vocabulary < 2000
    own = from_folder(trained / "clip" / "tokenizer")
    assert from_folder(model.tokenizers["text_encoder"]).encode("a red 圆") == own.encode("a red 圆")
    assert (model_folder / "tokenizer" / "tokenizer_config.json").is_file()
    assert model.path == str(model_folder)


def test_result_paints(model_folder: Path) -> None:
    model = danqing.load(model_folder)
    (picture,) = danqing.paint("a red 圆, flat style", model, steps=2, seed=5, width=64, height=64)
    assert picture.image.size == (64, 64)
    (again,) = danqing.paint("a red 圆, flat style", model, steps=2, seed=5, width=64, height=64)
    assert picture.image.tobytes() == again.image.tobytes()
    (other,) = danqing.paint("a black bar", model, steps=2, seed=5, width=64, height=64)
    assert picture.image.tobytes() != other.image.tobytes(), "the words count"


def test_prompts_are_encoded_as_captions_were(model_folder: Path, recipe: Made, runs: Path) -> None:
    """The same context and pooled vector in training and in painting, to the cache's bfloat16."""
    stage = begun(recipe(), runs)
    text = "red square"
    context, pooled = stage.texts.of([text], CPU)
    (found,) = conditionings(stage.model(), understand(text, 20))
    torch.testing.assert_close(found.context, context.float(), rtol=0.02, atol=0.02)
    assert found.pooled is not None
    torch.testing.assert_close(found.pooled, pooled, rtol=0.02, atol=0.02)


def test_without_a_pooled_vector_diffusers_paints_with_it(recipe: Made, runs: Path) -> None:
    """Then it is SD 1.x's architecture to the letter."""
    from diffusers import StableDiffusionPipeline

    shape = {**recipe().diffusion.denoiser.model_dump(), "pooled": False}
    assert train_stage("diffusion", recipe(diffusion={"steps": 2, "denoiser": shape}), runs)
    folder = runs / "diffusion" / "result" / "model"
    ours = danqing.load(folder)
    assert ours.family.denoiser.pooled_width == 0
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
    ids = pipeline.tokenizer("red square", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = pipeline.text_encoder(ids)[0].float()
    (found,) = conditionings(ours, understand("red square", 20))
    torch.testing.assert_close(found.context, wanted, rtol=0.02, atol=0.02)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red square", num_inference_steps=2, height=32, width=32).images[0].size == (32, 32)


def test_scores(model_folder: Path) -> None:
    scores = json.loads((model_folder.parent / "scores.json").read_text())
    assert set(scores) == {"loss", "loss_on_training"}
    assert 0 < scores["loss"] < 10


@pytest.mark.parametrize("prediction", ["v", "epsilon", "flow"])
def test_loss_is_that_of_the_objective(prediction: str, recipe: Made, runs: Path) -> None:
    """A new U-Net answers zero: the unweighted loss is the target's mean square."""
    settings = recipe(diffusion={"prediction": prediction, "zero_terminal_snr": prediction == "v", "augment": {}})
    stage = begun(settings, runs)
    assert stage.latents is not None
    clean, noise = torch.stack(stage.latents[:4]), torch.randn(4, 4, 16, 16)
    steps = torch.tensor([0, 300, 700, 999])
    error, weight = stage._errors(stage.denoiser, clean, noise, steps, ["", "red dot", "", ""])
    _, target, _ = noised(stage.process, clean, noise, steps)
    torch.testing.assert_close(error, target.square().mean((1, 2, 3)))
    assert weight.shape == (4,)
    record = stage.update(0, 0, torch.Generator().manual_seed(0))
    assert set(record) == {"loss", "unweighted"}
    assert record["loss"] <= record["unweighted"]


def test_captions_are_dropped_as_often_as_asked(recipe: Made, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = begun(recipe(diffusion={"drop_condition": 0.3}), runs)
    shown: list[str] = []
    levels: list[int] = []

    def watch(
        denoiser: object, clean: torch.Tensor, noise: object, steps: torch.Tensor, texts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shown.extend(texts)
        levels.extend(steps.tolist())
        error = stage.denoiser.conv_out.bias.sum().expand(len(texts))
        return error, torch.ones(len(texts))

    monkeypatch.setattr(stage, "_errors", watch)
    for number in range(500):
        stage.update(number, number, torch.Generator().manual_seed(number))
        quarters = sorted(level * 4 // 1000 for level in levels[-4:])
        assert quarters == [0, 1, 2, 3], "a batch's noise levels are spread"
    counts = Counter(shown)
    assert counts[""] / len(shown) == pytest.approx(0.3, abs=0.04)
    first = stage.items[0].captions
    assert counts[first[0]] > 20
    assert counts[first[1]] > 20
    assert min(levels) < 10
    assert max(levels) > 990


@pytest.mark.parametrize(("shift", "half"), [(1.0, 500), (3.0, 750)])
def test_half_of_the_steps_are_beyond_the_shifted_middle(
    shift: float, half: int, recipe: Made, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begun(recipe(diffusion={"shift": shift}), runs)
    drawn: list[torch.Tensor] = []
    errors = stage._errors

    def watch(denoiser: Any, clean: Any, noise: Any, steps: torch.Tensor, texts: Any) -> Any:
        drawn.append(steps)
        return errors(denoiser, clean, noise, steps, texts)

    monkeypatch.setattr(stage, "_errors", watch)
    for number in range(20):
        stage.update(number, number, torch.Generator().manual_seed(number))
    steps = torch.cat(drawn)
    assert (steps >= half).float().mean() == pytest.approx(0.5, abs=0.1)
    assert 0 <= steps.min() < 200
    assert 900 < steps.max() <= 999


def test_captions_without_end_are_thinned(recipe: Made, runs: Path) -> None:
    stage = begun(recipe(diffusion={"captions_per_picture": 1}), runs)
    assert isinstance(stage.texts, Texts)
    assert set(stage.texts.rows) == {"", *(item.captions[0] for item in (*stage.items, *stage.watched))}
    stage.update(0, 0, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("start", [0, 3])
def test_the_text_tower_may_learn_too(start: int, recipe: Made, runs: Path) -> None:
    """Then no texts are cached, both networks move and are averaged, and the model that is written has that tower."""
    settings = recipe(diffusion={"steps": 3, "text_learning_rate": 1e-2, "text_start": start})
    before = load_file(runs / "clip" / "result" / ENCODER / "model.safetensors")
    assert train_stage("diffusion", settings, runs)
    assert not [path for path in (runs / "diffusion" / "cache").iterdir() if path.name.startswith("texts")]
    after = load_file(runs / "diffusion" / "result" / "model" / ENCODER / "model.safetensors")
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.allclose(before[name].bfloat16(), after[name]) == (start == 3)
    assert torch.allclose(before[name], after[name].float(), atol=0.05), "it goes on from CLIP's"


def test_captions_of_a_learning_tower_are_read_alike(recipe: Made, runs: Path) -> None:
    cached = begun(recipe(), runs)
    learning = begun(recipe(diffusion={"text_learning_rate": 1e-3}), runs)
    texts = ["", "red square", "", "red square"]
    for found, wanted in zip(learning.texts.of(texts, CPU), cached.texts.of(texts, CPU)):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=0.02, atol=0.02)
    learning.update(0, 0, torch.Generator().manual_seed(1))
    assert learning.text.text_model.embeddings.token_embedding.weight.grad is not None


def test_caches_are_used_again_and_follow_the_networks(
    recipe: Made, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = runs / "diffusion" / "cache"
    first = begun(recipe(), runs)
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(name.split("-")[0] for name in files) == ["held_out", "latents", "mirrored", "texts"]
    again = begun(recipe(), runs)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert all(torch.equal(a, b) for a, b in zip(first.latents or [], again.latents or []))
    weights = runs / "autoencoder" / "result" / "vae" / "model.safetensors"
    changed = load_file(weights)
    changed["quant_conv.bias"][:4] += 1
    save_file(changed, weights)
    other = begun(recipe(), runs)
    assert first.latents is not None
    assert other.latents is not None
    for a, b in zip(first.latents, other.latents):
        torch.testing.assert_close(a + 1, b, rtol=1e-4, atol=1e-4)
    names = {path.name for path in cache.iterdir()}
    assert len(names) == 4, "what the former autoencoder made is gone"
    assert not names & set(files)


def test_a_cache_that_was_cut_off_is_made_again(recipe: Made, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("danqing.train.diffusion.save_file", cut)
        with pytest.raises(KeyboardInterrupt):
            begun(recipe(), runs)
    assert not list((runs / "diffusion" / "cache").iterdir())
    assert begun(recipe(), runs).latents


def test_flips_are_mirrored_pictures(recipe: Made, runs: Path) -> None:
    """The mirrored picture's latents, and only where a mirror keeps the meaning."""
    stage = begun(recipe(diffusion={"augment": {"flip": 1.0}}), runs)
    assert stage.latents is not None
    assert stage.mirrored is not None
    rows = list(range(len(stage.items)))
    found = stage._batch(rows, torch.Generator())
    for row, item in enumerate(stage.items):
        assert torch.equal(found[row], (stage.mirrored if item.flip else stage.latents)[row])
    pixels = stage.pictures.load([8]).float() / 127.5 - 1
    with torch.no_grad():
        wanted = stage.autoencoder.encode(pixels.flip(-1)).mode()[0]
    torch.testing.assert_close(stage.mirrored[8], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{"crop": 0.2}, {"colour": 0.2}, {"grey": 0.5}, {"hue": 1.0}])
def test_other_changes_are_made_on_the_way(change: dict[str, float], recipe: Made, runs: Path) -> None:
    stage = begun(recipe(diffusion={"augment": change}), runs)
    assert stage.latents is None
    rows = list(range(8))
    one, two = (stage._batch(rows, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert one.shape == (8, 4, 16, 16)
    assert not torch.allclose(one, two, atol=1e-3)
    assert stage.update(0, 0, torch.Generator())["loss"] > 0
    assert set(stage.evaluate()) == {"loss"}


def test_sheet_leaves_the_network_in_training(recipe: Made, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danqing.train.diffusion.PROMPTS", ("red dot", "绿 圆"))
    stage = begun(recipe(), runs)
    stage.family = replace(stage.family, defaults=replace(stage.family.defaults, width=64, height=64, steps=2))
    modes = []
    stage.denoiser.register_forward_pre_hook(lambda net, inputs: modes.append(net.training))
    sheet = stage.sample()
    assert sheet is not None
    assert sheet.size == (128, 64)
    assert modes
    assert not any(modes)
    assert all(module.training for module in stage.denoiser.modules())

    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("danqing.train.diffusion.paint", broken)
    with pytest.raises(RuntimeError):
        stage.sample()
    assert stage.denoiser.training


def test_evaluation_is_repeatable(recipe: Made, runs: Path) -> None:
    stage = begun(recipe(), runs)
    assert stage.evaluate() == stage.evaluate()


def test_it_learns(recipe: Made, runs: Path) -> None:
    losses: list[float] = []
    settings = recipe(diffusion={"steps": 160, "batch": 8, "learning_rate": 5e-3, "evaluate_every": 1000})
    assert train_stage(
        "diffusion", settings, runs, show=lambda done, total, values, speed: losses.append(values["unweighted"])
    )
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"denoiser": {"channels": (8, 16), "heads": (1,)}}, r"denoiser.down_depth: should have 2 entries"),
        (
            {"denoiser": {"channels": (8, 16), "down_depth": ((0,), (1,)), "up_depth": ((1,), (0, 0)), "heads": (1, 2)}},
            r"denoiser.up_depth: \[1\] should have 2 entries",
        ),
        (
            {
                "denoiser": {
                    "channels": (8, 12), "down_depth": ((0,), (1,)), "up_depth": ((1, 1), (0, 0)), "heads": (1, 5),
                    "groups": 4,
                }
            },
            r"denoiser.channels: 12 should be a multiple of .*heads \(5\)",
        ),
        ({"prediction": "epsilon"}, r"zero_terminal_snr: in pure noise there is no epsilon"),
    ],
)  # fmt: skip
def test_settings_that_make_no_network(changes: dict[str, Any], line: str, recipe: Made, runs: Path) -> None:
    with pytest.raises(DanqingError, match=line):
        begun(recipe(diffusion=changes), runs)


@pytest.mark.parametrize("missing", ["clip", "autoencoder"])
def test_stages_before_must_have_finished(missing: str, recipe: Made, runs: Path) -> None:
    shutil.rmtree(runs / missing)
    with pytest.raises(DanqingError, match=rf"{missing}/result/.*train that stage first"):
        begun(recipe(), runs)


def test_context_is_the_whole_of_the_towers_window(recipe: Made, runs: Path) -> None:
    stage = begun(recipe(), runs)
    tokenizer = from_folder(stage.tokenizer_folder)
    context, _ = stage.texts.of(["red dot", ""], torch.device("cpu"))
    assert context.shape == (2, 77, 16)
    assert tokens([""], tokenizer, 77)[0].tolist() == [tokenizer.start] + 76 * [tokenizer.end]


def test_the_bundled_model_s_row_is_what_its_recipe_trains() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "bundled.toml")
    text, vae = recipe.clip.text, recipe.autoencoder
    autoencoder = AutoencoderConfig(
        channels=vae.channels,
        layers=vae.layers,
        latent_channels=vae.latent_channels,
        groups=vae.groups,
        scale=1.0,
    )
    tower = CLIPTextConfig(
        vocabulary=text.vocabulary,
        width=text.width,
        intermediate=4 * text.width,
        layers=text.layers,
        heads=text.heads,
        positions=text.positions,
        activation="gelu",
        end_token=text.vocabulary - 1,
    )
    assert family_of(recipe, autoencoder, tower) == DANQING
