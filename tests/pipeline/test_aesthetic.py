"""Aesthetic gradients as a field of a request: found, applied, recorded, read back; what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from danqing.adapters.aesthetic import arc, learned, read, with_aesthetic
from danqing.checkpoints.hashes import sha256
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata.infotext import read_infotext
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.pipeline.replay import replay
from danqing.request_parts import AestheticEmbedding
from danqing.requests import TextToImage
from danqing.requests import read as read_request
from lora_files import random, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("aesthetic_embeddings", "text_encoders"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    torch.save(random(1, 24, size=3), tmp_path / "models" / "aesthetic_embeddings" / "flowers.pt")
    write(
        tmp_path / "models" / "text_encoders" / "clip.safetensors", {"text_projection.weight": random(24, 64, size=1)}
    )
    return tmp_path / "models"


def painted(model: Model, aesthetic: Any = None, said: list[str] | None = None, **fields: Any) -> Picture:
    options: dict[str, Any] = {"steps": 2, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", **fields}
    request = read_request(TextToImage, {"prompt": "a cat", "aesthetic": aesthetic, **options})
    return paint(request, model, say=([] if said is None else said).append)[0]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, dtype=np.int16)


ASKED = {"embedding": "flowers", "weight": 0.8, "steps": 2, "learning_rate": 0.01, "projection": "clip"}


def test_a_field_that_changes_the_picture_and_is_recorded(tiny: Model, folder: Path) -> None:
    found = painted(tiny, ASKED)
    vectors, projection = read(folder / "aesthetic_embeddings" / "flowers.pt"), random(24, 64, size=1)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(1))
    given = with_aesthetic(tiny, AestheticEmbedding(**ASKED), vectors, projection)  # type: ignore[arg-type]
    assert np.array_equal(pixels(found), pixels(painted(given)))
    assert np.array_equal(pixels(found), pixels(painted(tiny, "flowers,clip,0.8,2,0.01")))
    assert not np.array_equal(pixels(found), pixels(painted(tiny)))
    assert found.record.others["aesthetic"].sha256 == sha256(folder / "aesthetic_embeddings" / "flowers.pt")
    for pair in ("Aesthetic LR: 0.01", "Aesthetic weight: 0.8", "Aesthetic steps: 2", "Aesthetic slerp: False"):
        assert pair in found.infotext
    told = read_infotext(found.infotext).request.aesthetic
    assert told is not None
    assert (told.embedding, told.weight, told.projection) == ("flowers.pt", 0.8, "clip.safetensors")
    assert not tiny.text_changes


def test_what_was_learned_is_kept_while_the_file_is_the_same(
    tiny: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnings: list[int] = []

    def counted(*told: Any) -> torch.Tensor:
        learnings.append(1)
        return learned(*told)

    monkeypatch.setattr("danqing.adapters.aesthetic.learned", counted)
    cache: dict[Any, Any] = {}
    request = read_request(TextToImage, {"prompt": "a cat", "aesthetic": ASKED, "steps": 1, "width": 64, "height": 64})
    for _ in range(2):
        paint(request, tiny, say=lambda line: None, cache=cache)
    assert len(learnings) == 1
    torch.save(random(1, 24, size=3, seed=8), folder / "aesthetic_embeddings" / "flowers.pt")
    paint(request, tiny, say=lambda line: None, cache=cache)
    assert len(learnings) == 2


def test_the_extensions_infotext_is_read() -> None:
    text = (
        "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Aesthetic LR: 0.0001, Aesthetic weight: 0.5, "
        "Aesthetic steps: 20, Aesthetic embedding: laion_7plus, Aesthetic slerp: True, Aesthetic text: , "
        "Aesthetic text negative: False, Aesthetic slerp angle: 0.1"
    )
    told = read_infotext(text).request.aesthetic
    assert told is not None
    assert (told.embedding, told.weight, told.steps, told.slerp, told.text) == ("laion_7plus", 0.5, 20, True, "")


def test_what_has_no_effect_is_said(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    painted(tiny, {**ASKED, "slerp_angle": 0.5}, said)
    assert "aesthetic: slerp_angle and text_negative have no effect: there is no text" in said
    painted(tiny, {**ASKED, "slerp_angle": 0.5, "text": "a garden"}, said := [])
    assert not any("no effect" in line for line in said)


def test_it_is_replayed(tiny: Model, folder: Path, tmp_path: Path) -> None:
    painted(tiny, ASKED).save(tmp_path / "cat.png")
    assert replay(tmp_path / "cat.png", tiny, say=lambda line: None).identical


def test_what_does_not_fit_is_one_line(tiny: Model, folder: Path) -> None:
    torch.save({"a": random(2), "b": random(2)}, folder / "aesthetic_embeddings" / "two.pt")
    write(folder / "text_encoders" / "other.safetensors", {"text_projection.weight": random(24, 99)})
    write(folder / "text_encoders" / "none.safetensors", {"weight": random(24, 99)})
    for asked, words in (
        ("flowers", "no text encoder of tiny random weights projects to vectors 24 wide; give a file"),
        ("weeds", "aesthetic embedding 'weeds' is unknown"),
        ("two", "is no aesthetic embedding"),
        ({**ASKED, "projection": "other"}, "for a text encoder 99 wide"),
        ({**ASKED, "projection": "none"}, "holds no text_projection"),
        ({**ASKED, "weight": 0}, r"aesthetic\.weight"),
        ("yes", r"aesthetic\.embedding"),
    ):
        with pytest.raises(DanqingError, match=words) as caught:
            painted(tiny, asked)
        assert "\n" not in str(caught.value)


def test_a_refiner_of_another_family_is_left_alone(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    stranger = replace(tiny, family=replace(tiny.family, name="stranger"))
    request = {"refiner_checkpoint": "r", "refiner_switch_at": 0.5, "steps": 2, "width": 64, "height": 64, "seed": 1}
    paint(TextToImage(prompt="a", aesthetic=ASKED, **request), tiny, say=said.append, models={"r": stranger})  # type: ignore[arg-type]
    assert any(line.startswith("refiner_checkpoint: tiny random weights paints without the request's") for line in said)


def test_arcs() -> None:
    low, high = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(arc(low, high, 0.5), torch.full((1, 2), 0.5**0.5))
    assert torch.allclose(arc(low, 3 * low, 0.5), 2 * low)
