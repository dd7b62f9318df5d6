"""The judge's network: sizes, what it does not depend on, and that it fits the package."""

from __future__ import annotations

import pytest
import torch

from danqing.models.judge import JudgeConfig, JudgeNetwork, resized

LABELS = {"concepts": ("apple", "pear", "plum"), "styles": ("flat", "3d")}


def small(picture: int = 16) -> JudgeNetwork:
    torch.manual_seed(0)
    return JudgeNetwork(JudgeConfig(**LABELS, picture=picture, channels=(8, 16), layers=(1, 1), features=12)).eval()


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (7, 7)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    opinion = small()(torch.rand(2, 3, *size) * 2 - 1)
    assert opinion.concepts.shape == (2, 3)
    assert opinion.styles.shape == (2, 2)
    assert opinion.features.shape == (2, 12)


def test_a_concepts_score_is_the_scaled_cosine() -> None:
    judge = small()
    opinion = judge(torch.rand(4, 3, 16, 16) * 2 - 1)
    cosine = torch.cosine_similarity(opinion.features[:, None], judge.concepts[None], dim=2)
    assert torch.allclose(opinion.concepts, 20 * cosine, atol=1e-4)
    with torch.no_grad():
        judge.concepts.mul_(torch.tensor([[1.0], [5.0], [0.2]]))  # lengths do not count
    assert torch.allclose(judge(torch.zeros(1, 3, 16, 16)).concepts, small()(torch.zeros(1, 3, 16, 16)).concepts)


def test_shrinking_is_smooth() -> None:
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    assert resized(stripes, 16).abs().max() < 0.1  # picking pixels would give 1
    assert resized(stripes, 64) is stripes


def test_the_shipped_size_fits() -> None:
    config = JudgeConfig(tuple(map(str, range(1914))), ("a", "b", "c", "d"))
    with torch.device("meta"):
        count = sum(p.numel() for p in JudgeNetwork(config).parameters())
    assert 2 * count < 8e6 - 50_000  # bfloat16, with config.json beside it
