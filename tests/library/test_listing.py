import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from danqing.families import CLIP_L, SD1
from danqing.library.folders import Kind
from danqing.library.listing import list_models
from danqing.library.settings import Settings
from danqing.models.autoencoder import Autoencoder
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet

LORA = {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "roots").mkdir()
    return Settings(
        path=tmp_path / "config.toml",
        data_dir=tmp_path / "data",
        folders=(tmp_path / "roots",),
        hub_cache=tmp_path / "h",
    )


def put(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def small_pipeline(folder):
    unet = replace(SD1.denoiser, channels=(32,) * 4, heads=(2,) * 4, context_width=16)
    clip = replace(CLIP_L, vocabulary=50, width=16, intermediate=16, layers=2, heads=2)
    vae = replace(SD1.autoencoder, channels=(32,) * 4, layers=1)
    for name, network in (("unet", UNet(unet)), ("vae", Autoencoder(vae)), ("text_encoder", CLIPText(clip))):
        put(folder / name / "diffusion_pytorch_model.safetensors", network.state_dict())
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def test_rows(settings, tmp_path):
    roots = tmp_path / "roots"
    small_pipeline(roots / "checkpoints" / "small")
    put(roots / "loras" / "ink.safetensors", LORA, ss_base_model_version="sdxl_base_v1-0")
    put(roots / "heap" / "oil.safetensors", LORA)
    put(roots / "vae" / "v.safetensors", {"decoder.conv_in.weight": torch.zeros(2)})
    (roots / "checkpoints" / "broken.safetensors").write_bytes(b"<!DOCTYPE html>")
    (roots / "vae_approx").mkdir()
    (roots / "vae_approx" / "x.pt").write_bytes(b"not opened")
    bundled, *rows = list_models(settings)
    assert (bundled.name, bundled.kind, bundled.family, bundled.problem) == ("danqing", "checkpoint", "danqing", "")
    assert [(row.name, row.kind, row.family, row.source) for row in rows] == [
        ("broken.safetensors", "checkpoint", "", "folder"),
        ("heap/oil.safetensors", "lora", "", "folder"),
        ("ink.safetensors", "lora", "sdxl", "folder"),
        ("small", "checkpoint", "sd1", "folder"),
        ("v.safetensors", "vae", "", "folder"),
        ("x.pt", "other", "", "folder"),
    ]
    assert ["a web page" in row.problem for row in rows] == [True, False, False, False, False, False]
    assert [row.problem for row in rows[1:]] == [""] * 5
    assert rows[5].size == len(b"not opened")
    assert rows[3].size > sum(row.size for row in rows) / 2
    assert [row.name for row in list_models(settings, "lora")] == ["heap/oil.safetensors", "ink.safetensors"]


def test_an_empty_library(settings):
    """Holds what the package ships."""
    for kind in (None, *Kind.__args__):
        assert [row.name for row in list_models(settings, kind)] == ["danqing"] * (kind in (None, "checkpoint"))
