"""Networks from picture to picture that `spandrel` knows by their weights: upscalers, denoisers, face restorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from danqing.checkpoints.files import open_file
from danqing.errors import DanqingError

_WRAPPERS = ("module.", "netG.", "params-ema.", "params_ema.", "params.")
"""What training programs put before every key, and spandrel's detection does not expect."""


def load_network(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """The network in `path`: spandrel's ImageModelDescriptor in evaluation mode, (1, C, H, W) in [0, 1] -> likewise.

    The file is read as data alone, whatever its format: nothing in it can run.
    Raises DanqingError: a damaged file, an architecture that spandrel does not know, one that fills masks, a precision
    that it cannot run in, or spandrel missing.
    """
    spandrel, registry, more = _spandrel()
    weights = {key: entry.load() for key, entry in open_file(path).entries.items()}
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    try:
        network = spandrel.ModelLoader(registry=registry).load_from_state_dict(weights)
    except spandrel.UnsupportedModelError:
        raise DanqingError(f"{path}: is of no architecture that spandrel knows{more}") from None
    except Exception as error:  # each architecture has its own way to meet weights that are nearly its own
        raise DanqingError(
            f"{path}: its weights are nearly those of a network, but not quite: {_line(error)}"
        ) from error
    if not isinstance(network, spandrel.ImageModelDescriptor):
        raise DanqingError(f"{path}: holds {network.architecture.name}, a network that fills masks, not an upscaler")
    try:
        network.to(device, dtype)
    except spandrel.UnsupportedDtypeError:
        name = str(dtype).removeprefix("torch.")
        raise DanqingError(f"{path}: {network.architecture.name} does not run in {name}; use float32") from None
    network.model.requires_grad_(False)
    return network.eval()


def _spandrel() -> tuple[Any, Any, str]:
    """(the package, its architectures with those of spandrel-extra-arches where it is there, what to install for more).

    Raises DanqingError where it cannot be imported.
    """
    try:
        import spandrel
    except Exception as error:  # torchvision, which it imports, raises RuntimeError where it does not fit torch
        raise DanqingError(
            f"networks for pictures need the extra [upscale]: pip install 'danqing[upscale]' ({_line(error)})"
        ) from error
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        return spandrel, spandrel.MAIN_REGISTRY, "; the extra [face] adds a few more (pip install 'danqing[face]')"
    registry = spandrel.MAIN_REGISTRY.copy()
    registry.add(*EXTRA_REGISTRY)
    return spandrel, registry, ""


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
