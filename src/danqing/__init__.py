"""Danqing 丹青: a complete Stable Diffusion system.

pictures = danqing.paint("a red apple")
model = danqing.load("model.safetensors")
pictures = danqing.paint("a castle", model, steps=30, seed=7)
for step in danqing.stream("a castle", model): ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from danqing.version import __version__

if TYPE_CHECKING:
    from danqing.errors import DanqingError as DanqingError
    from danqing.families import Model as Model
    from danqing.pipeline.models import load as load
    from danqing.pipeline.paint import Progress as Progress
    from danqing.pipeline.paint import paint as paint
    from danqing.pipeline.paint import stream as stream
    from danqing.pipeline.picture import Picture as Picture
    from danqing.pipeline.picture import grid as grid
    from danqing.pipeline.plot import matrix as matrix
    from danqing.pipeline.plot import paint_plot as paint_plot
    from danqing.pipeline.plot import sheet as sheet
    from danqing.pipeline.plot import xyz as xyz
    from danqing.pipeline.replay import replay as replay
    from danqing.requests import ImageToImage as ImageToImage
    from danqing.requests import Inpaint as Inpaint
    from danqing.requests import Outpaint as Outpaint
    from danqing.requests import ResolvedRequest as ResolvedRequest
    from danqing.requests import TextToImage as TextToImage

# Where each name lives: torch and the rest are imported when a name is first used.
_HOMES = {
    "DanqingError": "danqing.errors",
    "ImageToImage": "danqing.requests",
    "Inpaint": "danqing.requests",
    "Model": "danqing.families",
    "Outpaint": "danqing.requests",
    "Picture": "danqing.pipeline.picture",
    "Progress": "danqing.pipeline.paint",
    "ResolvedRequest": "danqing.requests",
    "TextToImage": "danqing.requests",
    "grid": "danqing.pipeline.picture",
    "load": "danqing.pipeline.models",
    "matrix": "danqing.pipeline.plot",
    "paint": "danqing.pipeline.paint",
    "paint_plot": "danqing.pipeline.plot",
    "replay": "danqing.pipeline.replay",
    "sheet": "danqing.pipeline.plot",
    "stream": "danqing.pipeline.paint",
    "xyz": "danqing.pipeline.plot",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'danqing' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
