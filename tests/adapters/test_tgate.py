"""T-GATE: what cross-attentions said before the gate stands after it."""

from __future__ import annotations

import torch
from torch import Tensor

from danqing.adapters.tgate import gate_step, tgate_source
from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.models.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    channels=(8, 16), heads=(1, 1), down_depth=((1,), (1,)), up_depth=((1, 1), (1, 1)), context_width=16, groups=4
)
POSITIVE, NEGATIVE = 1, 2


def test_the_gate_is_where_guidance_ends() -> None:
    assert [gate_step(share, 10) for share in (0.05, 0.5, 0.55, 0.99, 1.0)] == [1, 5, 6, 10, 10]


def test_what_was_said_stands() -> None:
    torch.manual_seed(0)
    unet = UNet(CONFIG).requires_grad_(False)
    latents, text = torch.randn(2, 4, 6, 6), torch.randn(2, 5, 16)
    source = tgate_source(CONFIG, 3, [NEGATIVE])

    def at(step: float, context: Tensor, *rows: tuple[int, int]) -> Tensor:
        x, told = latents[: len(rows)], torch.tensor([9.0])
        patches = source(x, told, At(1.0, step), Conditioning(context, rows=rows))
        return unet(x, told, context, patches=patches)  # type: ignore[no-any-return]

    plain = unet(latents, torch.tensor([9.0]), text)
    pictures = (POSITIVE, 0), (POSITIVE, 1)
    assert torch.equal(at(1, text, *pictures), plain)
    assert torch.equal(at(3, text, *pictures), plain)  # not asked before the gate: it reads on
    assert torch.equal(at(2, text, *pictures), plain)
    assert torch.equal(at(3, -text, *pictures), plain)  # no negative side: its own answer, whatever is to be read
    first, second = at(4.5, text, (POSITIVE, 1)), at(4.5, text, (POSITIVE, 0))
    assert not torch.equal(first, second)  # each picture's own
    at(2, -text, (NEGATIVE, 0), (NEGATIVE, 1))
    mean = at(3, text, *pictures)
    assert not torch.equal(mean, plain)
    at(2, -text, *pictures)
    at(2, text, (NEGATIVE, 0), (NEGATIVE, 1))
    assert torch.allclose(at(3, text, *pictures), mean, atol=1e-6)  # halfway from either side


def test_one_layer_is_the_mean_of_both_sides() -> None:
    source = tgate_source(CONFIG, 1, [NEGATIVE])
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"

    def layer(step: int, branch: int, answer: float) -> float:
        patches = source(
            torch.zeros(1), torch.zeros(1), At(1.0, step), Conditioning(torch.zeros(1), rows=((branch, 0),))
        )
        assert patches is not None
        return float(patches.blocks[name](lambda: torch.full((1, 1, 1), answer), ()))

    assert layer(0, POSITIVE, 3.0) == 3.0
    assert layer(0, NEGATIVE, 5.0) == 5.0
    assert layer(1, POSITIVE, 100.0) == 4.0
