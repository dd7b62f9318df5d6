"""Strong changes to pictures: what each does, and that a seed repeats it."""

from __future__ import annotations

import torch

from danqing.train.distort import mix, spoil, warp
from danqing.train.recipe import Distort

NONE = Distort(rotation=0, scale=0, stretch=0, shift=0, blur=0, noise=0, erase=0, mixup=0, cutmix=0)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pictures(count: int = 64, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=seed(9), dtype=torch.uint8)


def with_only(**options: float) -> Distort:
    return NONE.model_copy(update=options)


def floats(count: int = 64) -> torch.Tensor:
    return pictures(count).float() / 127.5 - 1


def test_nothing_changes_nothing() -> None:
    assert torch.equal(warp(pictures(), 16, NONE, seed()), pictures())
    assert torch.equal(spoil(floats(), NONE, seed()), floats())
    mixed, _, there = mix(floats(), NONE, seed())
    assert torch.equal(mixed, floats())
    assert not there.any()


def test_half_the_size_is_the_mean_of_four() -> None:
    flat = torch.nn.functional.avg_pool2d(pictures().float(), 2)
    assert (warp(pictures(), 8, NONE, seed()).float() - flat).abs().max() <= 0.51


def test_a_right_angle_turns() -> None:
    bar = torch.full((200, 3, 17, 17), 255, dtype=torch.uint8)
    bar[:, :, 8, 3:14] = 0  # across
    turned = warp(bar, 17, with_only(rotation=90.0), seed())
    upright = (turned[:, 0, 3:14, 8] < 60).all(1)
    across = (turned[:, 0, 8, 3:14] < 60).all(1)
    assert 0 < int(upright.sum()) < 40
    assert 0 < int(across.sum()) < 40
    assert (turned[:, :, 0, 0] == 255).all()


def test_what_comes_into_view_has_the_corners_colour() -> None:
    red = torch.zeros(50, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 200
    moved = warp(red, 16, with_only(shift=0.4, scale=0.5, rotation=45), seed())
    assert torch.equal(moved, red)


def test_scale_and_stretch_keep_within_their_reach() -> None:
    square = torch.full((300, 3, 64, 64), 255, dtype=torch.uint8)
    square[:, :, 22:42, 22:42] = 0
    sides = (warp(square, 64, with_only(scale=0.5), seed())[:, 0, 32] < 128).sum(1)
    assert 12 <= int(sides.min()) < 15
    assert 27 < int(sides.max()) <= 31
    stretched = warp(square, 64, with_only(stretch=0.5), seed())[:, 0] < 128
    wide, high = stretched[:, 32].sum(1), stretched[:, :, 32].sum(1)
    assert (wide > high + 3).any()
    assert (high > wide + 3).any()


def test_erased_share_and_range() -> None:
    white = torch.ones(400, 3, 32, 32)
    changed = (spoil(white, with_only(erase=0.3), seed()) != 1).flatten(1).float().mean(1)
    assert 0.2 < (changed > 0).float().mean() < 0.4
    assert changed.max() <= 0.4**2 + 0.05


def test_noise_and_blur() -> None:
    grey = torch.zeros(500, 3, 16, 16)
    deviation = spoil(grey, with_only(noise=0.1), seed()).flatten(1).std(1)
    assert deviation.max() < 0.115
    assert abs(float(deviation.mean()) - 0.05) < 0.005
    rough = floats(300)
    blurred = spoil(rough, with_only(blur=0.5), seed())
    same = (blurred == rough).flatten(1).all(1).float().mean()
    assert 0.4 < same < 0.6
    assert blurred.std() < rough.std()


def test_mixing_is_what_it_says() -> None:
    pixels = floats(256)
    mixed, other, there = mix(pixels, with_only(mixup=1.0), seed())
    weight = there[:, None, None, None]
    assert torch.allclose(mixed, (1 - weight) * pixels + weight * pixels[other], atol=1e-6)
    assert 0 <= float(there.min()) < 0.05
    assert 0.45 < float(there.max()) <= 0.5
    pasted, other, there = mix(pixels, with_only(cutmix=1.0), seed())
    strange = (pasted == pixels[other]).all(1) & (pasted != pixels).any(1)
    own = (pasted == pixels).all(1)
    assert (strange | own).all()
    differs = other != torch.arange(256)
    assert torch.allclose(strange.float().mean((1, 2))[differs], there[differs], atol=0.02)


def test_a_seed_repeats_itself() -> None:
    settings = Distort()
    for run in (
        lambda: warp(pictures(), 12, settings, seed(3)),
        lambda: spoil(floats(), settings, seed(3)),
        lambda: mix(floats(), settings, seed(3))[0],
    ):
        assert torch.equal(run(), run())
    assert not torch.equal(warp(pictures(), 12, settings, seed(3)), warp(pictures(), 12, settings, seed(4)))
