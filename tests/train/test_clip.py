"""The CLIP stage: its losses, its tokens, what it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from danqing.errors import DanqingError
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.models.clip_vision import CLIPVisionConfig
from danqing.prompts.tokenizer import from_folder
from danqing.train.clip import LARGEST_SCALE, Towers, contrast, tokens
from danqing.train.recipe import Recipe
from danqing.train.results import load_weights, read_config

from .conftest import train_stage


def towers() -> Towers:
    torch.manual_seed(0)
    return Towers(
        CLIPTextConfig(vocabulary=40, width=64, intermediate=256, layers=2, heads=2, projection=64, end_token=39),
        CLIPVisionConfig(width=64, intermediate=256, layers=2, heads=2, picture=32, patch=16, projection=64),
    )


def test_contrast_by_hand() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss, right = contrast(texts, texts, torch.tensor(2.0))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(right) == 1
    loss, right = contrast(texts, texts.flip(0), torch.tensor(2.0))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(2)))
    assert float(right) == 0


def test_towers_begin_as_clips_do() -> None:
    """Deviations of CLIP's own initialisation, and a temperature of 0.07."""
    network = towers()
    layer = network.text.text_model.encoder.layers[0]
    for module, deviation in [
        (layer.self_attn.q_proj, 64**-0.5),
        (layer.self_attn.out_proj, 64**-0.5 / 2),
        (layer.mlp.fc1, 128**-0.5),
        (layer.mlp.fc2, 64**-0.5 / 2),
    ]:
        assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=0.1)
        assert not module.bias.any()
    assert float(network.text.text_model.embeddings.token_embedding.weight.detach().std()) == pytest.approx(
        0.02, rel=0.1
    )
    assert float(network.logit_scale.detach().exp()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_towers_give_unit_vectors_and_a_bounded_scale() -> None:
    network = towers()
    with torch.no_grad():
        network.logit_scale.fill_(LARGEST_SCALE + 3)
        texts, pictures, scale = network(torch.tensor([[1, 5, 39, 39], [1, 7, 8, 39]]), torch.rand(2, 3, 32, 32))
    for vectors in (texts, pictures):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    assert float(scale) == pytest.approx(100)


def test_tokens(trained: Path) -> None:
    tokenizer = from_folder(trained / "clip" / "tokenizer")
    rows = tokens(["red", "a red 圆 " * 60], tokenizer)
    assert rows.shape == (2, 77)
    assert rows[0].tolist() == [tokenizer.start, *tokenizer.encode("red"), *[tokenizer.end] * 75][:77]
    assert rows[1, -1] == tokenizer.end
    assert rows[1, 1:-1].tolist() == tokenizer.encode("a red 圆 " * 60)[:75]
    assert tokens(["red"], tokenizer, 77).shape == (1, 77)


def test_result(trained: Path) -> None:
    """A tower that Danqing reads, the vocabulary with it, and the scores of the written weights."""
    result = trained / "clip" / "result"
    assert {path.name for path in result.iterdir()} == {"text_encoder", "image_encoder", "tokenizer", "scores.json"}
    config = CLIPTextConfig(**read_config(result / "text_encoder"))
    tokenizer = from_folder(result / "tokenizer")
    assert config.vocabulary == tokenizer.end + 1
    assert config.end_token == tokenizer.end
    text = CLIPText(config)
    load_weights(text, result / "text_encoder")
    assert not text.training
    assert text(tokens(["red dot"], tokenizer, 77)).pooled.isfinite().all()
    names = {path.name for path in (result / "tokenizer").iterdir()}
    assert names == {"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    scores = json.loads((result / "scores.json").read_text())
    assert scores["loss"] > 0
    assert 0 <= scores["accuracy"] <= 1


def test_it_learns(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    losses: list[float] = []
    settings = recipe(clip={"steps": 60, "batch": 13, "learning_rate": 3e-3, "augment": {}, "evaluate_every": 100})
    assert train_stage(
        "clip", settings, tmp_path, show=lambda done, total, values, speed: losses.append(values["loss"])
    )
    assert losses[0] > 1.2
    assert losses[-1] < 0.7 * losses[0]


def test_held_out_pictures_are_not_trained_on(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    from danqing.train import pictures

    plain = pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda path, size: (read.append(path.name), plain(path, size))[1])
    monkeypatch.setattr("danqing.train.clip.ClipStage.evaluate", lambda stage: {})
    assert train_stage("clip", recipe(clip={"steps": 8}), tmp_path)
    assert set(read) == {f"{number:02d}.png" for number in range(13)}


def test_a_vocabulary_that_was_cut_off_is_made_again(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "clip" / ".tokenizer.abcd.part").mkdir(parents=True)
    (tmp_path / "clip" / ".tokenizer.abcd.part" / "vocab.json").write_text("{")
    assert train_stage("clip", recipe(clip={"steps": 1}), tmp_path)
    assert not list((tmp_path / "clip").glob(".*"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"text": {"vocabulary": 1024, "width": 16, "layers": 1, "heads": 3}}, r"clip.text.heads: 3 .* width 16"),
        ({"vision": {"width": 16, "layers": 1, "heads": 5, "patch": 16}}, r"clip.vision.heads: 5 .* width 16"),
        ({"vision": {"width": 16, "layers": 1, "heads": 2, "patch": 12}}, r"clip.vision.patch: 12 .* data.size, 32"),
    ],
)
def test_settings_that_make_no_network(
    changes: dict[str, object], line: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(DanqingError, match=line):
        train_stage("clip", recipe(clip=changes), tmp_path)
