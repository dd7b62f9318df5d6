"""What a file is by its content, for those whose folder does not say; headers only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from danqing.checkpoints import recognise
from danqing.checkpoints.files import open_component, open_file
from danqing.errors import DanqingError
from danqing.library.folders import Kind

_KINDS: dict[str, Kind] = {
    "checkpoint": "checkpoint",
    "denoiser": "denoiser",
    "autoencoder": "vae",
    "text encoder": "text_encoder",
    "lora": "lora",
    "embedding": "embedding",
    "hypernetwork": "hypernetwork",
    "controlnet": "controlnet",
    "t2i-adapter": "controlnet",
    "lllite": "controlnet",
    "ip-adapter": "ip_adapter",
    "photomaker": "ip_adapter",
    "clip-vision": "clip_vision",
    "upscaler": "upscaler",
    "ldsr": "upscaler",
    "unknown": "unknown",
}
"""`recognise.Kind.name` -> the library's kinds; architectures of later versions and previews are `other`."""

_FAMILIES = {"sd_v1": "sd1", "sd_v2": "sd2", "sd_v2_v": "sd2-v", "sdxl_base_v1-0": "sdxl"}
"""`ss_base_model_version` of kohya's trainer -> the families' names."""


@dataclass(frozen=True)
class Content:
    kind: Kind
    title: str
    """In words: `a LoRA`."""
    suffix: str
    """What such a file is called: `.safetensors` or `.ckpt`."""
    family: str = ""
    """What an adapter was trained for, where its metadata says so."""


def look(path: Path) -> Content:
    """What the file or diffusers folder holds. Raises DanqingError for what is no model, or not a whole one."""
    if (path / "model_index.json").is_file() and (path / "vqvae").is_dir():
        return Content("upscaler", "a latent-diffusion upscaler", "")
    if (path / "model_index.json").is_file():
        return Content("checkpoint", "a checkpoint", "")
    if path.is_dir():
        adapter = path / "adapter_model.safetensors"
        opened = open_file(adapter) if adapter.is_file() else open_component(path)
        if opened is None:
            raise DanqingError(f"{path}: a folder without weights")
    else:
        opened = open_file(path)
    found = recognise.kind_of(opened.shapes)
    return Content(
        _KINDS.get(found.name, "other"),
        found.title,
        ".safetensors" if opened.format == "safetensors" else ".ckpt",
        _FAMILIES.get(opened.metadata.get("ss_base_model_version", ""), ""),
    )
