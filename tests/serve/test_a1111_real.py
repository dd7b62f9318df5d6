"""One real painting through AUTOMATIC1111's API: the tiny model, the studio's own painter, webuiapi, and a replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import webuiapi
from PIL import Image

from danqing.families import Model
from danqing.library.settings import load_settings
from danqing.metadata.pixels import pixels_sha256
from danqing.pipeline.paint import paint
from danqing.requests import TextToImage
from danqing.serve.a1111 import router
from danqing.serve.cache import ModelCache
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings
from danqing.serve.store import Store
from served import served
from tiny_model import tiny_model


def test_webuiapi_paints_with_a_network_what_the_library_paints(tmp_path: Path) -> None:
    import torch

    model: Model = tiny_model(torch.device("cpu"), torch.float32)
    models = ModelCache(settings=load_settings(data_dir=tmp_path), load=lambda name, vae: model)
    engine = Engine(Store(f"sqlite:///{tmp_path / 'studio.db'}"), tmp_path, models)
    engine.start()
    asked: dict[str, Any] = {"prompt": "a cat", "seed": 7, "steps": 2, "width": 64, "height": 64}
    try:
        with served(router(engine, ServeSettings())) as port:
            client = webuiapi.WebUIApi(port=port)
            result = client.txt2img(**asked, batch_size=2, sampler_name="Euler", scheduler="karras", eta=0.0)
            over = client.img2img(images=[result.image], prompt="a dog", seed=1, steps=3, width=64, height=64)
            larger = client.extra_single_image(result.image, upscaler_1="Lanczos", upscaling_resize=2)
    finally:
        engine.close()
    fields = {**asked, "batch_size": 2, "sampler_name": "Euler", "scheduler": "Karras", "dialect": "a1111", "eta": 0.0}
    pictures = paint(TextToImage(**fields, cfg_scale=7.0), model, say=lambda line: None)
    assert [pixels_sha256(image) for image in result.images] == [pixels_sha256(each.image) for each in pictures]
    assert result.info["all_seeds"] == [7, 8]
    assert result.info["sd_model_name"] == "tiny-random"
    record = json.loads(result.images[1].info["danqing"])
    assert record["pixels"] == pixels_sha256(result.images[1])
    assert over.image.size == (64, 64)
    assert over.info["denoising_strength"] == 0.75
    assert larger.image.size == (128, 128)
    assert "Lanczos" in larger.info
    assert isinstance(larger.image, Image.Image)
