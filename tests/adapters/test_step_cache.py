"""Step caching: what is asked when, whose what is kept is, and that nothing but the deep part is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from danqing.adapters.freeu import freeu_source
from danqing.adapters.step_cache import left_out, step_cache_source, windows
from danqing.errors import DanqingError
from danqing.families import FAMILIES, At
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Patches, stacked
from danqing.models.unet import UNet, UNetConfig, skip_channels
from danqing.request_parts import FreeU, StepCache

SMALL: dict[str, Any] = {"context_width": 16, "groups": 4}
CONFIGS = {
    "like SD 1": UNetConfig(
        channels=(8, 16, 16), heads=(1, 1, 1), down_depth=((1, 1), (1, 1), (0, 0)),
        up_depth=((0, 0, 0), (1, 1, 1), (1, 1, 1)), **SMALL,
    ),
    "like the bundled one": UNetConfig(
        channels=(8, 16, 16, 24), heads=(1,) * 4, down_depth=((0,), (1,), (1,), (1,)),
        up_depth=((1, 1), (1, 1), (1, 1), (0, 0)), **SMALL,
    ),
    "no middle": UNetConfig(
        channels=(8, 16), heads=(1, 1), down_depth=((0, 0), (2, 1)), up_depth=((2, 1, 1), (0, 0, 0)), mid_depth=None,
        **SMALL,
    ),
}  # fmt: skip
SIZE = (9, 14)
"""Odd at every level."""


def network(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config).requires_grad_(False)


def asked(unet: UNet, latents: Tensor, context: Tensor, patches: Patches | None = None) -> Tensor:
    return unet(latents, torch.tensor([500.0]), context, patches=patches)  # type: ignore[no-any-return]


def told(context: Tensor, *rows: tuple[int, int]) -> Conditioning:
    return Conditioning(context, rows=rows)


def inputs(config: UNetConfig, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, config.in_channels, *SIZE, generator=generator)
    return latents, torch.randn(batch, 3, 16, generator=generator)


def test_windows() -> None:
    assert windows(StepCache(every=2), 5) == {0: 0, 1: 0, 2: 2, 3: 2, 4: 4}
    assert windows(StepCache(every=3, start=0.2, end=0.8), 10) == {2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 5}
    assert windows(StepCache(every=4), 6, {2}) == {0: 0, 1: 0, 2: 2, 3: 2, 4: 2, 5: 2}
    assert windows(StepCache(start=0.5, end=0.5), 4) == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_question_has_the_same_answer(name: str) -> None:
    """At every depth: what is kept takes the place of what would come of the same input, to the bit."""
    config = CONFIGS[name]
    unet = network(config)
    latents, context = inputs(config)
    plain = asked(unet, latents, context)
    called: list[str] = []
    for path, module in unet.named_modules():
        if type(module).__name__ == "ResBlock":
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    counts = []
    for depth in range(1, len(skip_channels(config))):
        source = step_cache_source(StepCache(depth=depth), config, {0: 0, 1: 0})
        conditioning = told(context, (1, 0), (1, 1))
        for step in (0, 1):
            called.clear()
            patches = source(latents, torch.tensor([500.0]), At(1.0, step), conditioning)
            assert torch.equal(asked(unet, latents, context, patches), plain), (depth, step)
        counts.append(len(called))
        assert sum(path.startswith("up_blocks") for path in called) == depth
    assert counts == sorted(counts)
    assert counts[0] == 1


def test_inner_evaluations_branches_and_pictures_are_apart() -> None:
    config = CONFIGS["like SD 1"]
    unet, begins = network(config), {0: 0, 1: 0, 2: 2}
    latents, context = inputs(config)
    source = step_cache_source(StepCache(every=2, depth=2), config, begins)

    def at(step: float, x: Tensor, *rows: tuple[int, int]) -> Tensor:
        return asked(unet, x, context[: len(x)], source(x, torch.tensor([500.0]), At(1.0, step), told(context, *rows)))

    full = asked(unet, latents + 1, context)
    at(0, latents, (1, 0), (1, 1))
    assert torch.equal(at(0.5, latents + 1, (1, 0), (1, 1)), full)  # of the window's first step: asked in full
    assert torch.equal(at(1.5, latents + 1, (1, 0), (1, 1)), full)  # goes by 0.5, not by 0
    assert not torch.equal(at(1, latents + 1, (1, 0), (1, 1)), full)
    assert torch.equal(at(1, latents + 1, (2, 0), (2, 1)), full)  # another branch has nothing kept
    assert torch.equal(at(2, latents + 1, (1, 0), (1, 1)), full)
    # a picture that must be asked for changes nothing for one that need not
    at(0, latents, (3, 0), (3, 1))
    both = at(1, latents + 1, (3, 0), (4, 1))
    assert torch.allclose(both[:1], at(1, latents[:1] + 1, (3, 0)), atol=1e-5)
    assert torch.equal(both[1], full[1])


def test_a_call_that_is_done_again_is_asked_again() -> None:
    config = CONFIGS["like SD 1"]
    unet = network(config)
    latents, context = inputs(config)
    source = step_cache_source(StepCache(every=9, threshold=0.5), config, dict.fromkeys(range(9), 0))
    patches = source(latents, torch.tensor([500.0]), At(1.0, 0), told(context, (1, 0), (1, 1)))
    asked(unet, latents * float("nan"), context, patches)
    assert torch.equal(asked(unet, latents, context, patches), asked(unet, latents, context))


def test_the_threshold_is_each_pictures_own() -> None:
    config = CONFIGS["like the bundled one"]
    unet = network(config)
    latents, context = inputs(config)
    source = step_cache_source(StepCache(every=9, depth=2, threshold=0.2), config, dict.fromkeys(range(9), 0))
    moved = torch.cat([latents[:1] + 0.01, -latents[1:]])
    conditioning = told(context, (1, 0), (1, 1))
    asked(unet, latents, context, source(latents, torch.tensor([500.0]), At(1.0, 0), conditioning))
    out = asked(unet, moved, context, source(moved, torch.tensor([500.0]), At(1.0, 1), conditioning))
    full = asked(unet, moved, context)
    assert torch.equal(out[1], full[1])
    assert not torch.equal(out[0], full[0])
    assert torch.allclose(out[0], full[0], atol=0.1)


def test_what_is_added_and_scaled_goes_along() -> None:
    """ControlNet's and T2I-Adapter's additions, and FreeU, at blocks that are left out."""
    config = CONFIGS["like SD 1"]
    unet = network(config)
    latents, context = inputs(config)
    added: dict[str, Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    for name in [*(f"down_blocks.{i}" for i in range(3)), "mid_block"]:
        unet.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: shapes.update({name: (out if torch.is_tensor(out) else out[0]).shape})
        )
    asked(unet, latents, context)
    added = {name: torch.full(shape, 0.3) for name, shape in shapes.items()}
    freeu = freeu_source(FreeU(), config, 1)(latents, torch.tensor([500.0]), At(1.0, 0), told(context))
    given = stacked([Patches(residuals=added), freeu])
    plain = asked(unet, latents, context, given)
    for depth in range(1, 9):
        source = step_cache_source(StepCache(depth=depth), config, {0: 0, 1: 0})
        for step in (0, 1):
            cache = source(latents, torch.tensor([500.0]), At(1.0, step), told(context, (1, 0), (1, 1)))
            assert torch.equal(asked(unet, latents, context, stacked([given, cache])), plain), (depth, step)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner", "ssd-1b", "danqing"])
def test_families(family: str) -> None:
    config = FAMILIES[family].denoiser
    layers = len(skip_channels(config))
    for depth in range(1, layers):
        assert left_out(config, depth)
    with pytest.raises(DanqingError, match=f"step_cache: depth {layers} leaves nothing out"):
        left_out(config, layers)
