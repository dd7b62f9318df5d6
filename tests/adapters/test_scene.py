"""Depth, normals and segments by folders of transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from danqing.adapters import scene
from danqing.adapters.annotators import find_preprocessor, module_of
from danqing.adapters.scene import ADE20K, Scene, sides
from danqing.errors import DanqingError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models, as their owners publish them."""
    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    segmenter = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=150,
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(segmenter).save_pretrained(home / "segments")
    depth = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, readout_type="ignore",
    )  # fmt: skip
    transformers.DPTForDepthEstimation(depth).save_pretrained(home / "depth")
    told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    for name in ("depth", "segments"):
        (home / name / "preprocessor_config.json").write_text(json.dumps(told))
    return home


def picture() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, 60), np.linspace(0, 255, 44))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def normalised(side: int) -> torch.Tensor:
    values = np.asarray(picture().resize((side, side), Image.Resampling.BICUBIC), np.float64) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None].float()


def test_a_folder_draws_depth_and_normals(folders: Path) -> None:
    assert module_of(folders / "depth").name == "depth"
    made = np.asarray(find_preprocessor("depth_anything", [folders / "depth"])(picture())).astype(int)
    model = transformers.DPTForDepthEstimation.from_pretrained(folders / "depth").eval()
    with torch.no_grad():
        depth = model(pixel_values=normalised(32)).predicted_depth[None]
    depth = torch.nn.functional.interpolate(depth, (44, 60), mode="bicubic")[0, 0].numpy()
    expected = (depth - depth.min()) / (depth.max() - depth.min()) * 255
    assert made.shape == (44, 60, 3)
    assert np.abs(made[..., 0] - np.floor(expected)).max() <= 1
    normals = np.asarray(find_preprocessor(f"normal_midas:{folders}/depth")(picture()))
    assert normals.shape == (44, 60, 3)


def test_a_folder_draws_segments(folders: Path) -> None:
    made = np.asarray(find_preprocessor(f"{folders}/segments")(picture()))
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folders / "segments").eval()
    with torch.no_grad():
        logits = model(pixel_values=normalised(32)).logits
    logits = torch.nn.functional.interpolate(logits, (44, 60), mode="bilinear")
    np.testing.assert_array_equal(made, ADE20K[logits[0].argmax(0).numpy()])


def of(kind: str, told: dict[str, Any], **answer: torch.Tensor) -> Scene:
    def model(pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(**answer)

    model.config = SimpleNamespace(model_type=kind)  # type: ignore[attr-defined]
    model.device = torch.device("cpu")  # type: ignore[attr-defined]
    return Scene(model, Path("."), told)


def test_near_is_white_for_metres_and_for_closeness() -> None:
    ramp = torch.linspace(1, 5, 60).expand(1, 44, 60)
    near_right = np.asarray(scene.depth_map(of("depth_anything", {}, predicted_depth=ramp))(picture()))
    near_left = np.asarray(scene.depth_map(of("zoedepth", {}, predicted_depth=ramp))(picture()))
    assert (near_right[0, 0, 0], near_right[0, -1, 0]) == (0, 255)
    assert (near_left[0, 0, 0], near_left[0, -1, 0]) == (255, 0)
    assert (near_left[0, -8:, 0] == 0).all()  # the farthest 15 of 100 are all black


def test_normals_of_a_slope() -> None:
    """A slope to the right, of 2 for each pixel: its gradient by Sobel is 16, against two pi."""
    ramp = (2 * torch.arange(60.0)).expand(1, 44, 60)
    made = np.asarray(scene.normal_map(of("dpt", {}, predicted_depth=ramp))(picture(), background=0.5)).astype(float)
    length = np.hypot(2 * np.pi, 16)
    assert np.abs(made[20, 45] - np.floor(np.array([2 * np.pi, 0, 16]) / length * 127.5 + 127.5)).max() <= 1
    assert made[20, 10].tolist() == [255, 127, 127]  # far away: towards the viewer


def test_masks_with_classes() -> None:
    classes = torch.full((1, 2, 4), -9.0)
    classes[0, 0, 1], classes[0, 1, 2] = 9, 9
    masks = torch.full((1, 2, 11, 15), -9.0)
    masks[0, 0, :, :8], masks[0, 1, :, 8:] = 9, 9
    made = np.asarray(
        scene.segment_map(of("mask2former", {}, class_queries_logits=classes, masks_queries_logits=masks))(picture())
    )
    assert (made[5, 5].tolist(), made[5, 55].tolist()) == (ADE20K[1].tolist(), ADE20K[2].tolist())


def test_oneformer_is_told_its_task(tmp_path: Path) -> None:
    words, vocabulary, merges = ["the", "task", "is", "semantic"], ["<|startoftext|>", "<|endoftext|>"], []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            vocabulary += parts
            parts[:2] = ["".join(parts[:2])]
        vocabulary += parts
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]))
    asked: list[torch.Tensor] = []

    def model(pixel_values: torch.Tensor, task_inputs: torch.Tensor) -> SimpleNamespace:
        asked.append(task_inputs)
        masks = torch.zeros(1, 1, 4, 4)
        return SimpleNamespace(class_queries_logits=torch.tensor([[[0.0, 9, 0]]]), masks_queries_logits=masks)

    model.config = SimpleNamespace(model_type="oneformer", task_seq_len=9)  # type: ignore[attr-defined]
    model.device = torch.device("cpu")  # type: ignore[attr-defined]
    made = np.asarray(scene.segment_map(Scene(model, tmp_path, {}))(picture()))
    told = [ids[f"{word}</w>"] for word in words]
    assert asked[0].tolist() == [[0, *told, 1, 0, 0, 0]]
    assert made[3, 3].tolist() == ADE20K[1].tolist()
    with pytest.raises(DanqingError, match="has no tokenizer"):
        scene.segment_map(Scene(model, tmp_path / "nowhere", {}))


def test_sizes() -> None:
    """Of Depth Anything, ZoeDepth, OneFormer and GLPN, by transformers' own rules."""
    anything = {"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
    assert sides((640, 480), anything) == (686, 518)
    assert sides((1024, 512), anything) == (1036, 518)
    assert sides((100, 50), {"size": {"height": 384, "width": 384}}) == (384, 384)
    edges = {"size": {"shortest_edge": 640, "longest_edge": 2560}}
    assert sides((400, 200), edges) == (1280, 640)
    assert sides((4000, 200), edges) == (2560, 128)
    assert sides((70, 45), {"size_divisor": 32}) == (64, 32)
    assert sides((300, 150), {"size": 224}) == (448, 224)


def test_colours_are_ade20k_s() -> None:
    assert ADE20K.shape == (150, 3)
    assert ADE20K[[0, 2, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [92, 0, 255]]  # wall, sky, flag


def test_what_does_not_serve_is_said(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="is for segmentation, not for depth"):
        find_preprocessor("depth", [folders / "segments"])
    (tmp_path / "config.json").write_text('{"architectures": ["DPTForDepthEstimation"], "model_type": "dpt"}')
    with pytest.raises(DanqingError, match="cannot be loaded"):
        find_preprocessor("depth", [tmp_path])
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(DanqingError, match="no folder of a model of depth estimation or semantic segmentation"):
        find_preprocessor(str(tmp_path))
