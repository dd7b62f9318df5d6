"""ControlNet-LLLite against kohya's formula, put before each layer of a copy of the U-Net."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from danqing.adapters.control import Unit, control, control_source, with_controls
from danqing.checkpoints.controls import load_control
from danqing.families import At
from danqing.models.conditioning import Conditioning
from tests.lllite_files import LAYERS, lllite_state
from tests.tiny_model import tiny_model

Parity = Callable[[str, str, float, float], None]


def before(
    state: dict[str, Tensor], name: str, picture: Tensor, weight: float, _: nn.Module, given: tuple[Tensor]
) -> Tensor:
    """What a layer is given in the place of x: x + weight * up(mid(picture and down(x)))."""

    def part(which: str, x: Tensor, stride: int = 0) -> Tensor:
        w, b = (state[f"lllite_unet_{name}.{which}.{kind}"] for kind in ("weight", "bias"))
        return F.conv2d(x, w, b, stride=stride) if stride else F.linear(x, w, b)

    (x,) = given
    seen = F.relu(part("conditioning1.0", picture * 2 - 1, 4))
    if f"lllite_unet_{name}.conditioning1.4.weight" in state:
        seen = part("conditioning1.4", F.relu(part("conditioning1.2", seen, 4)), 2)
    else:
        seen = part("conditioning1.2", seen, 4)
    seen = seen.flatten(2).transpose(1, 2).expand(len(x), -1, -1)
    return x + weight * part("up.0", F.relu(part("mid.0", torch.cat([seen, F.relu(part("down.0", x))], -1))))


@torch.no_grad()
def test_lllite(parity: Parity, tmp_path: Path) -> None:
    model, state = tiny_model(torch.device("cpu"), torch.float32), lllite_state()
    save_file(state, tmp_path / "lllite.safetensors")
    network = load_control(tmp_path / "lllite.safetensors", model)
    generator = torch.Generator().manual_seed(4)
    picture = torch.rand(1, 3, 32, 64, generator=generator)
    latents, context = torch.randn(2, 4, 4, 8, generator=generator), torch.randn(1, 7, 64, generator=generator)
    branch = with_controls([Conditioning(context)], [control(Unit(network, (picture,), weight=0.7), 8, 4, 8)], True)
    step = torch.tensor([400.0])
    patches = control_source(model, 10)(latents, step, At(2.0, 0), branch[0])
    stated = copy.deepcopy(model.denoiser)
    for name, layer in LAYERS.items():
        stated.get_submodule(layer).register_forward_pre_hook(partial(before, state, name, picture, 0.7))
    ours, theirs = model.denoiser(latents, step, context, patches=patches), stated(latents, step, context)
    plain = model.denoiser(latents, step, context)
    assert float((theirs - plain).abs().max()) > 0.01
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    parity("ControlNet-LLLite", "kohya's formula before each layer", error, 1e-5)
