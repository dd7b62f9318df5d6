"""The model doctor, and the hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small import random_model, read_all, small_family

from danqing.checkpoints import hashes
from danqing.checkpoints.inspect import inspect
from danqing.checkpoints.save import save
from danqing.errors import DanqingError


def test_a_healthy_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(random_model(small_family("sd2-v"), torch.float16), path)
    report = inspect(path, with_hashes=True)
    assert report.ok
    assert (report.kind, report.family, report.variant, report.layout) == ("checkpoint", "sd2-v", "base", "ldm")
    assert (report.prediction, report.prediction_known_by) == ("v", "metadata danqing.family")
    assert report.precision == {"unet": "float16", "vae": "float16", "text_encoder": "float16"}
    assert (report.baked_vae, report.ema) == (True, False)
    assert report.bytes == path.stat().st_size
    assert report.parameters == sum(tensor.numel() for tensor in read_all(path).values())
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    whole = hashlib.sha256(data).hexdigest()
    assert report.hashes == {
        "sha256": whole,
        "short": whole[:10],
        "legacy": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "autov3": hashlib.sha256(data[header:]).hexdigest()[:12],
    }
    json.dumps(report.as_dict())


def test_what_is_missing_and_what_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(random_model(small_family("sd1")), path)
    state = read_all(path)
    del state["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    state["model.diffusion_model.more"] = torch.zeros(2)
    state["alphas_cumprod"] = torch.zeros(1000)
    state = {key: value for key, value in state.items() if not key.startswith("first_stage_model")}
    safetensors.torch.save_file(state, path)
    report = inspect(path)
    assert not report.ok
    assert report.missing == ("text_encoder.text_model.final_layer_norm.bias",)
    assert report.surplus == ("model.diffusion_model.more",)
    assert report.leftover == ("alphas_cumprod",)
    assert report.baked_vae is False
    assert "does not fit" in report.trouble[0]


def test_other_kinds_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 2)}, path, {"ss_network_dim": "4"})
    report = inspect(path)
    assert (report.ok, report.kind, report.metadata["ss_network_dim"]) == (True, "lora", "4")
    path.write_bytes(path.read_bytes()[:-4])
    report = inspect(path)
    assert (report.ok, report.kind) == (False, "damaged")
    assert "cut short: its header promises 32 bytes of tensors, 28 are there" in report.trouble[0]
    path.write_text("<html>")
    assert "a web page" in inspect(path).trouble[0]
    safetensors.torch.save_file({"double_blocks.0.img_attn.x": torch.zeros(1)}, path)
    report = inspect(path)
    assert (report.ok, report.kind) == (False, "flux")
    with pytest.raises(DanqingError, match="no such file"):
        inspect(tmp_path / "none")


def test_folders(tmp_path: Path) -> None:
    save(random_model(small_family("sdxl")), tmp_path / "f", layout="diffusers")
    report = inspect(tmp_path / "f", with_hashes=True)
    assert (report.ok, report.layout, report.family, report.hashes) == (True, "diffusers", "sdxl", {})


def test_hashes_tell_their_progress(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * (9 << 20))
    seen: list[int] = []
    assert hashes.sha256(path, seen=seen.append) == hashlib.sha256(b"x" * (9 << 20)).hexdigest()
    assert sum(seen) == 9 << 20
    assert len(seen) > 1
    assert hashes.short_hash(path) == hashes.sha256(path)[:10]
