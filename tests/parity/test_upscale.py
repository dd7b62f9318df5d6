"""Pictures through spandrel's networks: ours untiled is its own call, and tiles are the whole where a network is local."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.pipeline.networks import load_network
from danqing.pipeline.upscale import load_upscaler, upscale
from spandrels import import_spandrel

Parity = Callable[[str, str, float, float], None]
CPU = torch.device("cpu")


def _network(name: str) -> Any:
    import_spandrel()
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.SwinIR import SwinIR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = {
            "ESRGAN": lambda: ESRGAN(num_blocks=1, num_filters=8, scale=4),
            "Real-ESRGAN compact": lambda: Compact(num_feat=8, num_conv=2, upscale=2),
            "SwinIR": lambda: SwinIR(
                img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
            ),
        }[name]()
    return network


@pytest.fixture(params=["ESRGAN", "Real-ESRGAN compact", "SwinIR"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    path = tmp_path / "network.pth"
    torch.save({"params_ema": _network(request.param).state_dict()}, path)
    return request.param, path


def _photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255


def test_untiled_is_spandrels_own(weights: tuple[str, Path], parity: Parity) -> None:
    import spandrel

    name, path = weights
    reference = spandrel.ModelLoader().load_from_file(path).eval()
    image = _photograph(40, 29)
    theirs = (reference(_tensor(image))[0].permute(1, 2, 0) * 255).round().byte().numpy()
    ours = np.array(upscale(image, str(path), float(reference.scale), device="cpu"))
    parity(f"upscaler {name}, untiled (of 255 levels)", "spandrel 0.4.2", np.abs(ours.astype(int) - theirs).max(), 0)


@pytest.mark.parametrize("name", ["ESRGAN", "Real-ESRGAN compact"])
def test_tiles_of_a_convolutional_network_are_the_whole(name: str, tmp_path: Path, parity: Parity) -> None:
    path = tmp_path / "network.pth"
    torch.save({"params_ema": _network(name).state_dict()}, path)
    network = load_network(path, CPU)
    image = _photograph(150, 131)
    whole = (network(_tensor(image))[0].permute(1, 2, 0) * 255).round().byte().numpy().astype(int)
    upscaler = load_upscaler(path, device="cpu")
    tiled = np.array(upscale(image, upscaler, float(network.scale), tile=128)).astype(int)
    parity(f"upscaler {name}, tiles (of 255 levels)", "the same untiled", np.abs(tiled - whole).max(), 1)
