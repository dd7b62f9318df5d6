"""Denoising in windows is denoising the whole wherever it should be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from danqing.families import At
from danqing.models.conditioning import Conditioning
from danqing.sampling.guidance import classifier_free
from danqing.sampling.predict import predictor
from danqing.sampling.windows import WEIGHTS, Weight, bell, in_windows
from tiny_model import tiny_model

AT = At(1.5, 0)


def _branch(value: float, **fields: Tensor) -> Conditioning:
    return Conditioning(torch.full((1, 3, 4), value), **fields)


def _pointwise(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
    return [
        torch.tanh(latents) * branch.context.mean() / at.sigma + (0 if branch.channels is None else branch.channels)
        for branch in branches
    ]


def _blur(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
    return [torch.nn.functional.avg_pool2d(latents, 3, 1, 1) for _ in branches]


@pytest.mark.parametrize(("side", "overlap"), [(16, 0), (16, 4), (24, 12), (17, 16)])
def test_of_a_pointwise_denoiser_windows_are_the_whole(side: int, overlap: int) -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 37, 50)
    branches = [_branch(0.7), _branch(-0.3, channels=torch.randn(1, 4, 37, 50))]
    whole = _pointwise(latents, AT, branches)
    parts = in_windows(_pointwise, (side, side), overlap)(latents, AT, branches)
    torch.testing.assert_close(parts, whole, rtol=0, atol=3e-5)  # a cell is a sum of up to 289 windows


def test_a_window_as_large_as_the_picture_is_the_network_itself() -> None:
    model = tiny_model(torch.device("cpu"), torch.float32)
    predict = predictor(model)
    latents, branch = torch.randn(1, 4, 16, 24), Conditioning(torch.randn(1, 77, 64))
    with torch.no_grad():
        (whole,), (windowed,) = predict(latents, AT, [branch]), in_windows(predict, (24, 24), 8)(latents, AT, [branch])
    assert torch.equal(whole, windowed)


def test_every_window_counts_and_is_of_its_size() -> None:
    seen: list[tuple[int, ...]] = []

    def mean(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        seen.append(tuple(latents.shape[-2:]))
        assert [branch.area.shape[-2:] for branch in branches if branch.area is not None] == [latents.shape[-2:]]
        return [torch.full_like(latents, float(len(seen))) for _ in branches]

    area = torch.rand(1, 1, 16, 40)
    (out,) = in_windows(mean, (16, 16), 4)(torch.zeros(1, 4, 16, 40), AT, [_branch(1.0, area=area)])
    assert seen == [(16, 16)] * 3
    # the first window alone, the mean across the overlap (cells 12 to 15) by a falling and a rising weight, the next
    row = out[0, 0, 0]
    assert row[:12].eq(1).all()
    torch.testing.assert_close(row[12:16], 1 + torch.tensor([0.5, 1.5, 2.5, 3.5]) / 4)
    assert row[16:24].eq(2).all()
    assert row[28:].eq(3).all()


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("pictures", [1, 2])
def test_windows_share_calls(batch: int, pictures: int) -> None:
    calls: list[int] = []

    def counted(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        calls.append(len(latents))
        rows = [branch.context.mean((1, 2)).view(-1, 1, 1, 1) for branch in branches]
        return [torch.tanh(latents) * row + branch.channels for row, branch in zip(rows, branches)]  # type: ignore[operator]

    latents = torch.randn(pictures, 4, 20, 44)
    context = torch.randn(pictures, 3, 4)  # a row for each picture, channels for all alike
    branches = [
        Conditioning(context, channels=torch.randn(1, 4, 20, 44)),
        _branch(1.0, channels=torch.zeros(1, 4, 20, 44)),
    ]
    alone = in_windows(counted, (12, 16), 4)(latents, AT, branches)
    assert calls == [pictures] * 10
    calls.clear()
    together = in_windows(counted, (12, 16), 4, batch)(latents, AT, branches)
    assert sum(calls) == 10 * pictures
    assert max(calls) == min(batch, 10) * pictures
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=list(WEIGHTS))
def test_weights_of_every_method_give_back_what_all_windows_agree_on(weight: Weight) -> None:
    latents = torch.randn(1, 4, 21, 40)
    (out,) = in_windows(_pointwise, (16, 12), 6, 2, weight)(latents, AT, [_branch(0.7)])
    torch.testing.assert_close(out, _pointwise(latents, AT, [_branch(0.7)])[0], rtol=0, atol=1e-5)


def test_a_bell_counts_the_middle_most() -> None:
    weights = bell((0, 0, 32, 48), 64, 96, 8)
    assert weights.shape == (32, 48)
    torch.testing.assert_close(weights[15, 23], weights.max())
    # exp(-(1/2 - 1/96)^2 / 0.02) at the left edge of the middle row, Mixture of Diffusers' variance of 0.01
    torch.testing.assert_close(weights[15, 0] / weights[15, 23], torch.tensor(6.32e-6), rtol=0.02, atol=0)


def test_inside_a_window_local_denoisers_see_no_seam() -> None:
    latents = torch.randn(1, 4, 20, 40)
    (whole,) = _blur(latents, AT, [_branch(1.0)])
    (out,) = in_windows(_blur, (20, 20), 8)(latents, AT, [_branch(1.0)])
    # a window's outermost cell has weight 1/16: the error stays below that share of the latents' range
    assert (out - whole).abs().max() < 0.1 * latents.abs().max()
    assert torch.equal(out[..., :12], whole[..., :12])


def test_guidance_around_windows_is_that_of_windows() -> None:
    latents = torch.randn(1, 4, 20, 30)
    positive, negative = [_branch(1.0)], [_branch(0.2)]
    inside = classifier_free(in_windows(_pointwise, (12, 12), 4), positive, negative, 7.0)(latents, AT)
    outside = classifier_free(_pointwise, positive, negative, 7.0)(latents, AT)
    torch.testing.assert_close(inside.clean, outside.clean)


@pytest.mark.parametrize(("side", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_windows_that_cannot_be(side: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        in_windows(_pointwise, (side, side), overlap)
