"""Depth, normals and segments of a scene, by models in folders of transformers' layout (the extra [caption])."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from danqing.adapters.preprocess import Preprocessor
from danqing.checkpoints.files import read_json
from danqing.errors import DanqingError
from danqing.vocabulary import DEPTH, SEGMENTS

TASKS: Mapping[str, str] = {DEPTH: "depth estimation", SEGMENTS: "semantic segmentation"}
_ENDINGS = {
    "ForDepthEstimation": "depth",
    "ForSemanticSegmentation": "segmentation",
    "ForUniversalSegmentation": "segmentation",
    "ForInstanceSegmentation": "segmentation",  # MaskFormer's
}
"""How transformers calls such models -> the preprocessor."""
_METRIC = ("zoedepth", "glpn", "depth_pro")
"""Models that tell metres, so that near is small; the others tell closeness."""
_MIDAS_RANGE = 1000.0
"""What MiDaS' closest pixels are of the order of; its normals are steep accordingly."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A network, and how it is shown a picture."""

    model: Any
    folder: Path
    told: Mapping[str, Any]
    """The folder's preprocessor_config.json."""

    @property
    def kind(self) -> str:
        return str(self.model.config.model_type)

    @property
    def metric(self) -> bool:
        """Whether depth is told in metres, so that near is small."""
        return self.kind in _METRIC or getattr(self.model.config, "depth_estimation_type", "") == "metric"

    def shown(self, picture: Image.Image) -> Tensor:
        """(1, 3, h, w): the picture at the size that the network was trained at, normalised as it was there."""
        size = sides(picture.size, self.told)
        resample = Image.Resampling(int(self.told.get("resample", Image.Resampling.BILINEAR)))
        values = np.asarray(picture.convert("RGB").resize(size, resample), np.float32) / 255
        if self.told.get("do_normalize", True):
            mean = self.told.get("image_mean", [0.485, 0.456, 0.406])  # ImageNet's
            deviation = self.told.get("image_std", [0.229, 0.224, 0.225])
            values = ((values - np.array(mean)) / np.array(deviation)).astype(np.float32)
        return torch.from_numpy(values).permute(2, 0, 1)[None].to(self.model.device)


def sides(size: tuple[int, int], told: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) at which a network sees a picture of (width, height), by its preprocessor_config.json.

    Its keys are transformers': `size` with height and width or shortest and longest edge, `keep_aspect_ratio` (the side
    that changes less sets the scale), `ensure_multiple_of` or `size_divisor`.
    """
    width, height = size
    wanted = told.get("size") or {}
    wanted = {"shortest_edge": wanted} if isinstance(wanted, int) else wanted
    scale = (1.0, 1.0)
    if {"height", "width"} <= set(wanted):
        scale = (wanted["width"] / width, wanted["height"] / height)
        if told.get("keep_aspect_ratio"):
            least = min(scale, key=lambda s: abs(1 - s))
            scale = (least, least)
    elif "shortest_edge" in wanted:
        most = wanted.get("longest_edge", float("inf")) / max(size)
        same = min(wanted["shortest_edge"] / min(size), most)
        scale = (same, same)
    multiple = int(told.get("ensure_multiple_of") or told.get("size_divisor") or 1)
    wide, high = (max(round(side * s / multiple), 1) * multiple for side, s in zip(size, scale))
    return wide, high


def module_of(folder: Path) -> str:
    """`depth` or `segmentation`, by the folder's config.json. Raises DanqingError for any other model."""
    if (folder / "config.json").is_file():
        names = read_json(folder / "config.json").get("architectures") or []
        for ending, module in _ENDINGS.items():
            if any(str(name).endswith(ending) for name in names):
                return module
    known = " or ".join(TASKS.values())
    raise DanqingError(f"{folder}: is no folder of a model of {known} in transformers' layout")


def load_depth(folder: Path, device: torch.device | str = "cpu") -> Scene:
    """A model of depth: Depth Anything, MiDaS' DPT, ZoeDepth ... Raises DanqingError for another, or without transformers."""
    return _load(folder, "depth", "AutoModelForDepthEstimation", device)


def load_segmenter(folder: Path, device: torch.device | str = "cpu") -> Scene:
    """A model of segments: UperNet, Segformer, OneFormer, Mask2Former ... Raises DanqingError likewise."""
    names = read_json(folder / "config.json").get("architectures") if (folder / "config.json").is_file() else None
    universal = any(not str(name).endswith("SemanticSegmentation") for name in names or ())
    kind = "Universal" if universal else "Semantic"
    return _load(folder, "segmentation", f"AutoModelFor{kind}Segmentation", device)


def _load(folder: Path, module: str, auto: str, device: torch.device | str) -> Scene:
    found = module_of(folder)
    if found != module:
        raise DanqingError(f"{folder}: is for {found}, not for {module}")
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise DanqingError(
            f"control: the preprocessor {module} needs the extra [caption]; install danqing[caption]"
        ) from None
    try:
        model = getattr(transformers, auto).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise DanqingError(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    told = folder / "preprocessor_config.json"
    return Scene(model.to(device).eval().requires_grad_(False), folder, read_json(told) if told.is_file() else {})


# --- depth ------------------------------------------------------------------------------------------------------------


def closeness(scene: Scene, picture: Image.Image) -> NDArray[np.float32]:
    """(H, W) in the network's own measure, but the nearer the larger."""
    with torch.no_grad():
        depth = scene.model(pixel_values=scene.shown(picture)).predicted_depth.float()
    depth = F.interpolate(depth.reshape(1, 1, *depth.shape[-2:]), picture.size[::-1], mode="bicubic")[0, 0].cpu()
    made: NDArray[np.float32] = (-depth if scene.metric else depth).numpy()
    return made


def depth_map(scene: Scene) -> Preprocessor:
    """How near each pixel is, white the nearest."""

    def preprocess(picture: Image.Image) -> Image.Image:
        near = closeness(scene, picture)
        # ControlNet's ZoeDepth cuts off the farthest 15 of a hundred pixels and the nearest 2
        low, high = (float(np.percentile(near, share)) for share in ((15, 98) if scene.metric else (0, 100)))
        levels = (near - low) / ((high - low) or 1.0) * 255
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")

    return preprocess


def normal_map(scene: Scene) -> Callable[..., Image.Image]:
    """Which way surfaces face, by how depth changes: red towards the viewer, green down, blue to the right.

    As ControlNet's MiDaS normals, whose networks take them in this order.
    """

    def preprocess(picture: Image.Image, background: float = 0.4) -> Image.Image:
        """background: what is farther than this faces the viewer; 1 is the nearest."""
        near = closeness(scene, picture)
        share = (near - near.min()) / (float(near.max() - near.min()) or 1.0)
        # DPT's are MiDaS' own numbers; others are brought to their range
        steep = near if scene.kind == "dpt" else (share * _MIDAS_RANGE).astype(np.float32)
        x, y = (cv2.Sobel(steep, cv2.CV_32F, *way, ksize=3) for way in ((1, 0), (0, 1)))
        x[share < background] = 0
        y[share < background] = 0
        normals = np.stack([np.full_like(x, 2 * np.pi), y, x], -1)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        return Image.fromarray((normals * 127.5 + 127.5).clip(0, 255).astype(np.uint8))

    return preprocess


# --- segments ---------------------------------------------------------------------------------------------------------


def segment_map(scene: Scene) -> Preprocessor:
    """What each pixel is part of, in ADE20K's colours."""
    tasks = _task(scene) if scene.kind == "oneformer" else {}

    def preprocess(picture: Image.Image) -> Image.Image:
        with torch.no_grad():
            made = scene.model(pixel_values=scene.shown(picture), **tasks)
        if hasattr(made, "logits"):
            scores = made.logits
        else:  # queries, each a class and a mask (Cheng et al. 2021, section 3.4)
            classes = made.class_queries_logits.softmax(-1)[..., :-1]
            scores = torch.einsum("bqc,bqhw->bchw", classes, made.masks_queries_logits.sigmoid())
        scores = F.interpolate(scores.float(), picture.size[::-1], mode="bilinear", align_corners=False)
        return Image.fromarray(ADE20K[scores[0].argmax(0).cpu().numpy() % len(ADE20K)])

    return preprocess


def _task(scene: Scene) -> dict[str, Tensor]:
    """What OneFormer is told to do, in words: CLIP's tokens of them, with zeros after."""
    transformers: Any = import_module("transformers")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(scene.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DanqingError(f"{scene.folder}: has no tokenizer: {str(error).splitlines()[0]}") from None
    length = int(scene.model.config.task_seq_len)
    told = tokenizer(["the task is semantic"], padding="max_length", max_length=length, truncation=True)
    tokens = torch.tensor(told["input_ids"]) * torch.tensor(told["attention_mask"])
    return {"task_inputs": tokens.to(scene.model.device)}


_COLOURS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
"""ADE20K's 150 scene classes in their order, as CSAILVision's semantic-segmentation-pytorch colours them (color150)."""
ADE20K: NDArray[np.uint8] = np.frombuffer(bytes.fromhex(_COLOURS), np.uint8).reshape(-1, 3)
