"""Several LoRAs of one prompt as a request has them: in turn, averaged, by places; and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.adapters.apply import Use
from danqing.adapters.lora import read as read_lora
from danqing.adapters.schedule import averaged, by_places, in_turn, scheduled
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata.infotext import read_infotext
from danqing.pipeline.paint import paint
from danqing.pipeline.picture import Picture
from danqing.pipeline.replay import replay
from danqing.request_parts import Reference
from danqing.requests import Inpaint, TextToImage, read
from lora_files import QUERY, keyed, lora, random, write

BOTH = "a cat <lora:ink:0:1> <lora:oil:0:0.5>"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    for name, seed in (("ink", 0), ("oil", 7)):
        write(tmp_path / "models" / "loras" / f"{name}.safetensors", keyed({QUERY: lora((64, 64), seed=seed)}))
    return tmp_path / "models" / "loras"


def uses(model: Model, folder: Path) -> list[Use]:
    files = (("ink", 1.0), ("oil", 0.5))
    return [Use(read_lora(folder / f"{name}.safetensors", model.family), 0, unet) for name, unet in files]


def painted(model: Model, prompt: str, said: list[str] | None = None, **fields: Any) -> Picture:
    options: dict[str, Any] = {"steps": 4, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", **fields}
    request = read(TextToImage, {"prompt": prompt, **options})
    return paint(request, model, say=([] if said is None else said).append)[0]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, dtype=np.int16)


def test_in_turn_and_averaged(tiny: Model, folder: Path) -> None:
    both = uses(tiny, folder)
    for fields, model in (
        ({"lora_mode": "switch"}, scheduled(tiny, in_turn(both), 4)),
        ({"lora_mode": "Switch", "lora_switch_every": "2"}, scheduled(tiny, in_turn(both, 2), 4)),
        ({"lora_mode": "composite"}, averaged(tiny, both)),
    ):
        found = painted(tiny, BOTH, **fields)
        assert np.array_equal(pixels(found), pixels(painted(model, "a cat")))
        assert not np.array_equal(pixels(found), pixels(painted(tiny, BOTH)))
        told = read_infotext(found.infotext).request
        assert told.lora_mode == str(fields["lora_mode"]).lower()
        assert told.lora_switch_every == int(fields.get("lora_switch_every", 1))


def test_by_places(tiny: Model, folder: Path) -> None:
    both = uses(tiny, folder)
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    found = painted(tiny, BOTH, lora_regions="0,0,0.5,1 ink; 0.5,0,0.5,1 oil")
    model = by_places(tiny, [(both[0], left), (both[1], 1 - left)])
    assert np.array_equal(pixels(found), pixels(painted(model, "a cat")))
    told = read_infotext(found.infotext).request.lora_regions
    assert [(region.name, region.x, region.width) for region in told] == [("ink", 0, 0.5), ("oil", 0.5, 0.5)]
    half = painted(tiny, BOTH, lora_regions=[{"name": "oil", "width": 0.5, "strength": 0.5}])
    model = by_places(tiny, [(both[1], left * 0.5)], common=[both[0]])
    assert np.array_equal(pixels(half), pixels(painted(model, "a cat")))


def test_a_mask_is_a_picture_and_is_replayed(tiny: Model, folder: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "left.png")
    region = {"name": "ink", "mask": str(tmp_path / "left.png")}
    found = painted(tiny, BOTH, lora_regions=[region])
    assert np.array_equal(pixels(found), pixels(painted(tiny, BOTH, lora_regions="0,0,0.5,1 ink")))
    kept = found.record.request.lora_regions[0].mask
    assert isinstance(kept, Reference)
    assert kept.name == "left.png"
    found.save(tmp_path / "cat.png")
    assert replay(tmp_path / "cat.png", tiny, say=lambda line: None).identical


def test_what_does_not_go_together(tiny: Model, folder: Path) -> None:
    for fields, words in (
        ({"lora_regions": "0,0,1,1 ink", "tiled_diffusion": "yes"}, "does not go with tiled_diffusion"),
        ({"lora_regions": "0,0,1,1 ink", "lora_mode": "switch"}, "does not go with lora_mode switch"),
        ({"lora_regions": "0,0,1,1 ink", "detailers": "face.onnx"}, "does not go with detailers"),
        ({"lora_regions": "0,0,1,1 pen"}, "the prompt has no <lora:pen:1>"),
        ({"lora_regions": "0,0 ink"}, "should be X,Y,WIDTH,HEIGHT NAME"),
        ({"lora_mode": "melt"}, "lora_mode"),
    ):
        with pytest.raises(DanqingError, match=words):
            painted(tiny, BOTH, **fields)
    with pytest.raises(DanqingError, match="inpaint_full_res"):
        read(Inpaint, {"image": "a.png", "inpaint_full_res": True, "lora_regions": "0,0,1,1 ink"})
    for fields in ({"lora_mode": "composite"}, {"lora_regions": "0,0,1,1 ink"}):
        with pytest.raises(DanqingError, match="does not go with start="):
            painted(tiny, f"{BOTH} <lora:ink:1:stop=2>", **fields)


def test_what_has_no_effect_is_said(tiny: Model, folder: Path) -> None:
    said: list[str] = []
    alone = painted(tiny, "a cat <lora:ink:0:1>", said, lora_mode="composite", lora_switch_every=3)
    assert "lora_mode has no effect: there is one LoRA in the prompt" in said
    assert "lora_switch_every has no effect: lora_mode is not switch" in said
    assert np.array_equal(pixels(alone), pixels(painted(tiny, "a cat <lora:ink:0:1>")))
    painted(tiny, "a cat", said, lora_regions="0,0,1,1 ink", lora_mode="merge")
    assert "lora_regions has no effect: there are no LoRAs in the prompt" in said
    painted(tiny, "a cat", said, regions="0,0,0.5,1 a <lora:ink:1>")
    assert any("ink:1> is left out: only the prompt's own count; lora_regions says where" in line for line in said)


def test_a_loras_own_embedding_is_a_word(tiny: Model, folder: Path) -> None:
    tensors = {**keyed({QUERY: lora((64, 64))}), "bundle_emb.zzq.string_to_param.*": random(2, 64, seed=3, size=1)}
    write(folder / "words.safetensors", tensors)
    said: list[str] = []
    with_word = painted(tiny, "a zzq <lora:words:0>", said)
    assert "words: carries an embedding, which prompts call zzq" in said
    called = painted(tiny, "a embedding:zzq <lora:words:0>", said := [])
    assert not any("is left out" in line for line in said)
    assert np.array_equal(pixels(called), pixels(with_word))
    assert not np.array_equal(pixels(with_word), pixels(painted(tiny, "a zzq")))
    assert np.array_equal(pixels(painted(tiny, "a cat <lora:words:0>")), pixels(painted(tiny, "a cat")))
