"""Files of what makes prompts of pictures: IP-Adapters, InstantID's, PhotoMaker's, CLIP's image towers, and faces'
vectors.

Sources of the layouts: tencent-ailab/IP-Adapter, instantX-research/InstantID, TencentARC/PhotoMaker, transformers' and
OpenCLIP's image towers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from danqing.checkpoints.checkpoint import problems
from danqing.checkpoints.files import TensorFile, open_component, open_file, read_json
from danqing.checkpoints.layouts import Entries, Shape, count_children, open_clip_vision_table
from danqing.checkpoints.load import assign, room
from danqing.checkpoints.recognise import kind_of
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Model
from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig
from danqing.models.ip_adapter import IPAdapter, IPAdapterConfig
from danqing.models.photomaker import PhotoMaker, PhotoMakerConfig
from danqing.models.unet import cross_attentions
from danqing.runtime.blank import without_weights

Network = TypeVar("Network", bound=nn.Module)
HEAD = 64
"""Channels of a head of every published resampler but PhotoMaker's: shapes do not tell them."""
TOWERS: Mapping[tuple[str, int], str] = {
    ("vector", 768): "ViT-L/14",
    ("vector", 1024): "ViT-H/14",
    ("vector", 1280): "ViT-bigG/14",
    ("patches", 1024): "ViT-L/14",
    ("patches", 1280): "ViT-H/14",
    ("patches", 1664): "ViT-bigG/14",
}
"""Which of CLIP's image towers gives vectors, or patches, of that width."""
_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
"""Of an image tower by its width: ViT-B or L, L, H, bigG."""
_OPENAI = (768, 1024)
"""Widths of OpenAI's towers, which have another activation than OpenCLIP's."""


def load_image_prompt(path: Path | str, model: Model) -> IPAdapter | PhotoMaker:
    """The IP-Adapter (InstantID's too) or PhotoMaker of a file, on the model's device and in its precision.

    Raises DanqingError: damaged, neither of them, for another family, or with missing, surplus and mis-shaped keys.
    """
    file = open_file(path)
    kind = kind_of(file.shapes)
    if kind.name == "ip-adapter":
        return load_ip_adapter(file, model)
    if kind.name == "photomaker":
        return load_photomaker(file, model)
    raise DanqingError(f"{file.path}: is {kind.title}, not an IP-Adapter, InstantID's or a PhotoMaker")


# --- IP-Adapter -------------------------------------------------------------------------------------------------------


def load_ip_adapter(file: TensorFile, model: Model) -> IPAdapter:
    """`load_image_prompt` of an IP-Adapter's file; LoRA layers that it has besides are `lora_part`'s."""
    entries = {key: entry for key, entry in file.entries.items() if not _is_lora(key)}
    base = model.family.denoiser
    config = ip_adapter_config(file)
    if config.context_width != base.context_width:
        whose = next((row.title for row in FAMILIES.values() if row.denoiser.context_width == config.context_width), "")
        made_for = f"for {whose} (tokens of width {config.context_width})" if whose else f"of {config.context_width}"
        raise DanqingError(
            f"{file.path}: is an IP-Adapter {made_for}; the model is {model.family.title}, whose text is "
            f"{base.context_width} wide. Choose one of the model's own family"
        )
    network = _made(lambda: IPAdapter(config, cross_attentions(base)), file)
    return _filled(network, entries, file, model, "IP-Adapter")


def ip_adapter_config(file: TensorFile) -> IPAdapterConfig:
    """What an IP-Adapter is by the names and shapes of its projection. Raises DanqingError for one that is not
    known."""
    shapes = {key[len("image_proj.") :]: shape for key, shape in file.shapes.items() if key.startswith("image_proj.")}

    def size(key: str, axis: int) -> int:
        shape = shapes.get(key, ())
        if len(shape) <= axis or not shape[axis]:
            raise DanqingError(f"{file.path}: is an IP-Adapter with 'image_proj.{key}' missing or empty")
        return shape[axis]

    if "proj.weight" in shapes:
        context = size("norm.weight", 0)
        return IPAdapterConfig("plain", size("proj.weight", 1), context, size("proj.weight", 0) // context)
    if "proj.3.weight" in shapes:
        return IPAdapterConfig("full", size("proj.0.weight", 1), size("proj.3.weight", 0))
    if "perceiver_resampler.proj_in.weight" in shapes:
        width, inside = size("norm.weight", 0), "perceiver_resampler"
        return IPAdapterConfig(
            "face plus",
            size(f"{inside}.proj_in.weight", 1),
            size(f"{inside}.proj_out.weight", 0),
            size("proj.2.weight", 0) // width,
            width,
            count_children(shapes, f"{inside}.layers"),
            size(f"{inside}.layers.0.0.to_q.weight", 0) // HEAD,
            inner=size("proj.0.weight", 0),
            face_width=size("proj.0.weight", 1),
            shortcut="plusv2" in file.path.stem.casefold().replace("-", "").replace("_", ""),
        )
    if "proj.0.weight" in shapes:
        face, context = size("proj.0.weight", 1), size("norm.weight", 0)
        tokens = size("proj.2.weight", 0) // context
        return IPAdapterConfig("face", face, context, tokens, inner=size("proj.0.weight", 0), face_width=face)
    if "latents" in shapes:
        return IPAdapterConfig(
            "plus",
            size("proj_in.weight", 1),
            size("proj_out.weight", 0),
            size("latents", 1),
            size("latents", 2),
            count_children(shapes, "layers"),
            size("layers.0.0.to_q.weight", 0) // HEAD,
        )
    raise DanqingError(f"{file.path}: is an IP-Adapter of a kind that Danqing does not know")


# --- PhotoMaker -------------------------------------------------------------------------------------------------------


def load_photomaker(file: TensorFile, model: Model) -> PhotoMaker:
    """`load_image_prompt` of a PhotoMaker's file; its LoRA is `lora_part`'s."""
    prefix = "id_encoder."
    entries = {
        key[len(prefix) :]: entry
        for key, entry in file.entries.items()
        if key.startswith(prefix) and not key.endswith("position_ids")
    }
    strange = [key for key in file.entries if not key.startswith((prefix, "lora_weights."))]
    if strange:
        raise DanqingError(f"{file.path}: {len(strange)} of its tensors are no PhotoMaker's, such as '{strange[0]}'")
    shapes = {key: entry.shape for key, entry in entries.items()}
    vision = vision_config(shapes, file)
    second = shapes.get("visual_projection_2.weight", (0,))[0]
    config = PhotoMakerConfig(vision, second)
    reader = "qformer_perceiver"
    if f"{reader}.token_proj.0.weight" in shapes:
        inner, face = (*shapes[f"{reader}.token_proj.0.weight"], 0, 0)[:2]
        config = replace(
            config,
            faces=True,
            face_width=face,
            face_inner=inner,
            tokens=shapes.get(f"{reader}.token_proj.2.weight", (0,))[0] // max(config.width, 1),
            layers=count_children(shapes, f"{reader}.perceiver_resampler.layers"),
        )
    if config.width != model.family.denoiser.context_width:
        raise DanqingError(
            f"{file.path}: is a PhotoMaker for text of width {config.width} (SDXL's); the model is {model.family.title}, "
            f"whose text is {model.family.denoiser.context_width} wide"
        )
    return _filled(_made(lambda: PhotoMaker(config), file), entries, file, model, "PhotoMaker")


# --- the LoRA that some bring -----------------------------------------------------------------------------------------


def _is_lora(key: str) -> bool:
    return key.startswith("ip_adapter.") and "_lora." in key


def lora_part(path: Path | str, model: Model) -> TensorFile | None:
    """The LoRA inside of a PhotoMaker's or a FaceID adapter's file, in diffusers' names; None where there is none."""
    file = open_file(path)
    prefix = "lora_weights."
    found = {key[len(prefix) :]: entry for key, entry in file.entries.items() if key.startswith(prefix)}
    names = list(cross_attentions(model.family.denoiser))
    for key, entry in file.entries.items():
        if _is_lora(key):
            _, number, layer = key.split(".", 2)
            index = int(number) if number.isdecimal() else 2 * len(names)
            if index >= 2 * len(names):
                raise DanqingError(f"{file.path}: '{key}' is for an attention that the model does not have")
            place = names[index // 2].removesuffix("2") + ("2" if index % 2 else "1")
            found[f"unet.{place}.{layer}"] = entry
    return TensorFile(file.path, file.format, found) if found else None


# --- CLIP's image tower -----------------------------------------------------------------------------------------------


def load_tower(path: Path | str, model: Model) -> CLIPVision:
    """CLIP's image tower of a file or a diffusers folder, in transformers' or OpenCLIP's names, with its text tower or
    without; on the model's device and in its precision.

    Raises DanqingError: damaged, none, a folder without weights, an activation that no such tower has, or with missing
    and mis-shaped keys.
    """
    path = Path(path)
    file = open_component(path) if path.is_dir() else open_file(path)
    if file is None:
        raise DanqingError(f"{path}: is a folder without weights")
    entries = _tower_entries(file)
    config = vision_config({key: entry.shape for key, entry in entries.items()}, file)
    return _filled(_made(lambda: CLIPVision(config), file), entries, file, model, "CLIP image tower")


def tower_widths(path: Path) -> dict[str, int]:
    """How wide a tower's answers are, by what is looked at: `vector` and `patches`. Reads the header alone."""
    file = open_component(path) if path.is_dir() else open_file(path)
    if file is None:
        raise DanqingError(f"{path}: is a folder without weights")
    config = vision_config({key: entry.shape for key, entry in _tower_entries(file).items()}, file)
    return {"vector": config.projection, "patches": config.width}


def _tower_entries(file: TensorFile) -> Entries:
    if "visual.conv1.weight" in file.entries:
        prefix = "visual."
        entries = {key[len(prefix) :]: entry for key, entry in file.entries.items() if key.startswith(prefix)}
        canonical, left = open_clip_vision_table(count_children(entries, "transformer.resblocks")).to_canonical(entries)
        if left:
            raise DanqingError(f"{file.path}: {len(left)} of its tensors are no image tower's, such as '{min(left)}'")
        return canonical
    return {
        key: entry
        for key, entry in file.entries.items()
        if key.startswith(("vision_model.", "visual_projection.")) and not key.endswith("position_ids")
    }


def vision_config(shapes: Mapping[str, Shape], file: TensorFile) -> CLIPVisionConfig:
    """The image tower that has these shapes; heads and activation by its config.json, or else as published."""
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
    places = shapes.get("vision_model.embeddings.position_embedding.weight", ())
    first = shapes.get("vision_model.encoder.layers.0.mlp.fc1.weight", ())
    projection = shapes.get("visual_projection.weight", ())
    if len(patch) != 4 or len(places) != 2 or places[0] < 2 or not first or not projection:
        raise DanqingError(f"{file.path}: is not a whole CLIP image tower with its projection")
    side = file.path.with_name("config.json")
    told = read_json(side) if side.is_file() else {}
    told = told.get("vision_config") or told
    width = patch[0]
    heads = told.get("num_attention_heads") if told.get("hidden_size") == width else None
    activation = told.get("hidden_act") if told.get("hidden_size") == width else None
    if activation not in (None, "quick_gelu", "gelu"):
        raise DanqingError(f"{side}: its activation {str(activation)[:40]!r} is none that CLIP's image towers have")
    return CLIPVisionConfig(
        width=width,
        intermediate=first[0],
        layers=count_children(shapes, "vision_model.encoder.layers"),
        heads=heads if isinstance(heads, int) and heads > 0 else _HEADS.get(width, max(width // 64, 1)),
        activation=str(activation or ("quick_gelu" if width in _OPENAI else "gelu")),
        picture=math.isqrt(places[0] - 1) * patch[2],
        patch=patch[2],
        projection=projection[0],
    )


# --- faces ------------------------------------------------------------------------------------------------------------


def load_faces(path: Path | str) -> Tensor:
    """A face recogniser's vectors (n, W) float32: numpy's .npy, or a tensor file of one tensor; (W,) is one face.

    Raises DanqingError for another kind of file, other dimensions, or numbers that are not finite.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            faces = torch.from_numpy(np.asarray(array, dtype=np.float32))
        else:
            file = open_file(path)
            if len(file.entries) != 1:
                raise DanqingError(
                    f"{path}: holds {len(file.entries)} tensors; the file of faces has one, (faces, 512)"
                )
            faces = next(iter(file.entries.values())).load().float()
    except FileNotFoundError:
        raise DanqingError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, EOFError, MemoryError, BadZipFile) as error:
        raise DanqingError(f"{path}: cannot be read as faces' vectors: {error}") from None
    if faces.dim() not in (1, 2):
        raise DanqingError(f"{path}: is {list(faces.shape)}; the file of faces has one tensor, (faces, 512)")
    faces = faces[None] if faces.dim() == 1 else faces
    if not faces.numel() or not bool(torch.isfinite(faces).all()):
        raise DanqingError(f"{path}: holds no faces' vectors, or numbers that are not finite")
    return faces


# --- common -----------------------------------------------------------------------------------------------------------


def _made(build: Callable[[], Network], file: TensorFile) -> Network:
    try:
        with without_weights():
            return build()
    except (ValueError, RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DanqingError(f"{file.path}: the sizes of its layers make no sense: {reason}") from error


def _filled(network: Network, entries: Entries, file: TensorFile, model: Model, title: str) -> Network:
    trouble = problems({"weights": entries}, {"weights": network}, ())
    if str(trouble):
        raise DanqingError(f"{file.path}: is not a whole {title}, or for another U-Net: {trouble}")
    assign(network, entries, model.device, model.dtype, room(model))
    return network
