"""Files of IP-Adapters, PhotoMakers and image towers: every layout, and what is wrong with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from danqing.adapters.apply import Use, apply
from danqing.adapters.lora import read_opened
from danqing.checkpoints.files import TensorFile, open_file
from danqing.checkpoints.image_prompts import (
    ip_adapter_config,
    load_faces,
    load_image_prompt,
    load_tower,
    lora_part,
    tower_widths,
    vision_config,
)
from danqing.checkpoints.recognise import kind_of
from danqing.errors import DanqingError
from danqing.families import SD1, SDXL, Model
from danqing.models.ip_adapter import IPAdapter, IPAdapterConfig
from danqing.models.photomaker import PhotoMaker
from danqing.models.unet import cross_attentions
from ip_adapter_files import VISION, config_of, ip_adapter, photomaker, save_ip_adapter, save_tower, tower
from tiny_model import tiny_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kind", ["plain", "plus", "full", "face", "face plus", "instant"])
def test_every_kind_is_read(kind: str, suffix: str, tiny: Model, tmp_path: Path) -> None:
    path = save_ip_adapter(tmp_path / f"a{suffix}", kind, tiny.family.denoiser)
    network = load_image_prompt(path, tiny)
    assert isinstance(network, IPAdapter)
    wanted = config_of(kind, 64)
    assert network.config == replace(wanted, layers=network.config.layers, tokens=network.config.tokens)
    state = ip_adapter(kind, tiny.family.denoiser)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    looks = {"plain": "vector", "plus": "patches", "full": "patches", "face plus": "face and patches"}
    assert network.config.look == looks.get(kind, "face")


def test_published_sizes_are_known() -> None:
    """By the shapes of the published files, without their weights."""
    for kind, shapes, look, width, tokens, heads in (
        ("plain", {"proj.weight": (3072, 1024), "norm.weight": (768,)}, "vector", 1024, 4, 12),
        ("plain", {"proj.weight": (8192, 1280), "norm.weight": (2048,)}, "vector", 1280, 4, 12),
        ("plus", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 1280), "proj_out.weight": (2048, 1280),
                  "layers.0.0.to_q.weight": (1280, 1280)}, "patches", 1280, 16, 20),
        ("plus", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 512), "proj_out.weight": (2048, 1280),
                  "layers.0.0.to_q.weight": (1280, 1280)}, "face", 512, 16, 20),
    ):  # fmt: skip
        file = type("File", (), {"path": Path("x.bin"), "shapes": {f"image_proj.{k}": s for k, s in shapes.items()}})
        config = ip_adapter_config(file)  # type: ignore[arg-type]
        assert (config.kind, config.look, config.feature_width, config.tokens) == (kind, look, width, tokens)
        assert kind == "plain" or config.heads == heads


def test_the_files_numbers_are_diffusers_order() -> None:
    """SDXL: 4 + 20 cross-attentions on the way down, then 30 + 6 on the way up, then 10 in the middle."""
    names = list(cross_attentions(SDXL.denoiser))
    assert len(names) == 70
    assert names[0] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert names[24] == "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert names[60].startswith("mid_block")


def test_the_published_file_of_sd1() -> None:
    """tencent-ailab's ip-adapter_sd15: numbers 1, 3 ... 31, and the widths that its tensors have."""
    with torch.device("meta"):
        network = IPAdapter(IPAdapterConfig("plain", 1024, 768), cross_attentions(SD1.denoiser))
    widths = {key: layer.to_k_ip.out_features for key, layer in network.ip_adapter.items()}
    expected = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280]
    assert widths == {str(2 * i + 1): width for i, width in enumerate(expected)}
    assert network.image_proj.proj.weight.shape == (3072, 1024)


@pytest.mark.parametrize(
    ("width", "projection", "heads", "activation"),
    [(1024, 768, 16, "quick_gelu"), (1280, 1024, 16, "gelu"), (1664, 1280, 16, "gelu")],
)
def test_the_published_towers(width: int, projection: int, heads: int, activation: str, tmp_path: Path) -> None:
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        "visual_projection.weight": (projection, width),
    }
    file = TensorFile(tmp_path / "tower.safetensors", "safetensors", {})
    config = vision_config(shapes, file)
    assert (config.heads, config.activation, config.picture, config.projection) == (heads, activation, 224, projection)
    told = {"hidden_size": width, "num_attention_heads": 4, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": told}))
    assert (vision_config(shapes, file).heads, vision_config(shapes, file).activation) == (4, "gelu")
    (tmp_path / "config.json").write_text(json.dumps({**told, "hidden_act": "mish"}))
    with pytest.raises(DanqingError, match="its activation 'mish'"):
        vision_config(shapes, file)
    with pytest.raises(DanqingError, match="not a whole CLIP image tower"):
        vision_config({**shapes, "vision_model.embeddings.position_embedding.weight": (0, width)}, file)


def test_a_faces_second_version_is_told_by_its_name(tiny: Model, tmp_path: Path) -> None:
    for name, shortcut in (("ip-adapter-faceid-plusv2_sd15.bin", True), ("ip-adapter-faceid-plus_sd15.bin", False)):
        network = load_image_prompt(save_ip_adapter(tmp_path / name, "face plus", tiny.family.denoiser), tiny)
        assert isinstance(network, IPAdapter)
        assert network.config.shortcut is shortcut


def test_what_is_wrong_is_said(tiny: Model, tmp_path: Path) -> None:
    unet, state = tiny.family.denoiser, ip_adapter("plain", tiny.family.denoiser)
    path = tmp_path / "a.safetensors"

    def fails(changed: dict[str, Tensor], line: str) -> None:
        save_file(changed, path)
        with pytest.raises(DanqingError, match=line) as caught:
            load_image_prompt(path, tiny)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)

    fails(ip_adapter("plain", replace(unet, context_width=2048)), r"for Stable Diffusion XL .*whose text is 64 wide")
    fails({k: v for k, v in state.items() if "ip_adapter.3." not in k}, "2 missing: weights.ip_adapter.3")
    fails(state | {"image_proj.more": torch.zeros(2)}, "1 surplus")
    fails({k: v for k, v in state.items() if k != "image_proj.norm.weight"}, r"'image_proj.norm.weight' missing")
    fails({"image_proj.strange": torch.zeros(2)}, "of a kind that Danqing does not know")
    fails({"conv_in.weight": torch.zeros(2)}, "not an IP-Adapter")
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DanqingError, match=r"a\.safetensors: "):
        load_image_prompt(path, tiny)


# --- image towers -----------------------------------------------------------------------------------------------------


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to OpenCLIP's, written out for the test."""
    out = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        out |= {f"visual.{theirs}.{end}": state[f"vision_model.{ours}.{end}"] for end in ("weight", "bias")}
    for i in range(VISION.layers):
        a, b = f"vision_model.encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
        for end in ("weight", "bias"):
            parts = [state[f"{a}.self_attn.{p}_proj.{end}"] for p in "qkv"]
            out[f"{b}.attn.in_proj_{end}"] = torch.cat(parts)
            out[f"{b}.attn.out_proj.{end}"] = state[f"{a}.self_attn.out_proj.{end}"]
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                out[f"{b}.{theirs}.{end}"] = state[f"{a}.{ours}.{end}"]
    return out


def test_image_towers_of_both_layouts(tiny: Model, tmp_path: Path) -> None:
    state = tower().state_dict()
    layouts: dict[str, dict[str, Tensor]] = {
        "transformers": state,
        "with text": state | {"text_model.final_layer_norm.weight": torch.zeros(3), "logit_scale": torch.zeros(1)},
        "with positions": state | {"vision_model.embeddings.position_ids": torch.arange(17)[None]},
        "openclip": open_clip(state),
    }
    for name, tensors in layouts.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        network = load_tower(path, tiny)
        assert network.config == VISION
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
        assert tower_widths(path) == {"vector": 48, "patches": 64}
    assert kind_of(open_file(save_tower(tmp_path / "x.safetensors")).shapes).name == "clip-vision"
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(DanqingError, match="not a whole CLIP image tower"):
        load_tower(tmp_path / "y.safetensors", tiny)


# --- PhotoMaker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_photomakers(version: int, tiny: Model, tmp_path: Path) -> None:
    unet = replace(tiny.family.denoiser, context_width=128)
    model = replace(tiny, family=replace(tiny.family, denoiser=unet))
    state = photomaker(128, version == 2).state_dict()
    lora = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 64),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(64, 2),
    }
    path = tmp_path / "photomaker.bin"
    torch.save({"id_encoder": state, "lora_weights": lora}, path)
    assert kind_of(open_file(path).shapes).name == "photomaker"
    network = load_image_prompt(path, model)
    assert isinstance(network, PhotoMaker)
    assert network.photomaker.faces is (version == 2)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    with pytest.raises(DanqingError, match="text of width 128"):
        load_image_prompt(path, tiny)
    part = lora_part(path, tiny)
    assert part is not None
    changed = apply(tiny, [Use(read_opened(part, tiny.family, "photomaker"))])
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    a, b = lora.values()
    new, old = changed.denoiser.state_dict()[name], tiny.denoiser.state_dict()[name]
    assert torch.allclose(new, old + b @ a, atol=1e-6)


def test_the_lora_inside_of_a_faces_adapter(tiny: Model, tmp_path: Path) -> None:
    """Numbers count all attentions: an even one is the pixels' to each other."""
    state = ip_adapter("face", tiny.family.denoiser)
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    for number in (0, 1):
        state[f"ip_adapter.{number}.to_out_lora.down.weight"] = down.clone()
        state[f"ip_adapter.{number}.to_out_lora.up.weight"] = up.clone()
    save_file(state, tmp_path / "faceid.safetensors")
    part = lora_part(tmp_path / "faceid.safetensors", tiny)
    assert part is not None
    changed = apply(tiny, [Use(read_opened(part, tiny.family))]).denoiser.state_dict()
    moved = [k for k, v in tiny.denoiser.state_dict().items() if not torch.equal(v, changed[k])]
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    assert moved == [f"{block}.attn1.to_out.0.weight", f"{block}.attn2.to_out.0.weight"]
    assert isinstance(load_image_prompt(tmp_path / "faceid.safetensors", tiny), IPAdapter)


# --- faces ------------------------------------------------------------------------------------------------------------


def test_faces(tmp_path: Path) -> None:
    faces = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    np.save(tmp_path / "two.npy", faces)
    np.save(tmp_path / "one.npy", faces[0])
    save_file({"faces": torch.from_numpy(faces)}, tmp_path / "two.safetensors")
    assert torch.equal(load_faces(tmp_path / "two.npy"), torch.from_numpy(faces))
    assert torch.equal(load_faces(tmp_path / "two.safetensors"), torch.from_numpy(faces))
    assert load_faces(tmp_path / "one.npy").shape == (1, 512)
    np.save(tmp_path / "nan.npy", np.full((1, 512), np.nan))
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 no archive")
    np.save(tmp_path / "number.npy", np.float32(1))
    np.save(tmp_path / "deep.npy", np.zeros((2, 1, 512), np.float32))
    wrong: dict[str, Any] = {"nan.npy": "not finite", "code.npy": "cannot be read", "text.npy": "cannot be read"}
    wrong |= {"empty.npy": "cannot be read", "zip.npy": "cannot be read"}
    wrong |= {"number.npy": r"is \[\]; .*\(faces, 512\)", "deep.npy": r"is \[2, 1, 512\]; .*\(faces, 512\)"}
    for name, line in (wrong | {"gone.npy": "no such file"}).items():
        with pytest.raises(DanqingError, match=line):
            load_faces(tmp_path / name)
