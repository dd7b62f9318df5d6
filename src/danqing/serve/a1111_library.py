"""The library's models as AUTOMATIC1111's API names them."""

from __future__ import annotations

from collections.abc import Mapping

from danqing.errors import DanqingError
from danqing.library.content import look
from danqing.library.folders import Entry, Kind
from danqing.library.names import known
from danqing.library.settings import Settings


def entries(settings: Settings, *kinds: Kind) -> list[Entry]:
    """The models of these kinds, by name; of those in folders that tell no kind the header is read."""
    found = []
    for entry in known(settings):
        kind = entry.kind
        if kind == "unknown":
            try:
                kind = look(entry.path).kind
            except DanqingError:
                continue
        if kind in kinds:
            found.append(entry)
    return found


def stem(entry: Entry) -> str:
    """A model's name without its suffix and folders."""
    name = entry.name.rpartition("/")[2]
    return name.rpartition(".")[0] if entry.path.is_file() and "." in name else name


UPSCALER_LABELS: Mapping[str, str] = {
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
    "ESRGAN_4x": "ESRGAN_4x",
    "ScuNET GAN": "scunet_color_real_gan",
    "ScuNET": "scunet_color_real_gan",
    "ScuNET PSNR": "scunet_color_real_psnr",
    "SwinIR 4x": "SwinIR_4x",
    "LDSR": "model",
}
"""What AUTOMATIC1111 calls upscalers, and the names of their files."""


def upscaler_name(label: str, settings: Settings) -> str:
    """The name of the file that a label of AUTOMATIC1111's means, where it is there; any other name is itself."""
    labels = {name.casefold(): file for name, file in UPSCALER_LABELS.items()}
    file = labels.get(label.strip().casefold())
    if file is None:
        return label
    return file if any(stem(entry).casefold() == file.casefold() for entry in entries(settings, "upscaler")) else label
