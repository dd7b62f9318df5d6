import torch

from danqing.models.clip_vision import CLIPVision, CLIPVisionConfig, SafetyChecker, prepare

SMALL = CLIPVisionConfig(width=32, intermediate=64, layers=2, heads=2, picture=32, patch=8, projection=16)


def test_shapes() -> None:
    out = CLIPVision(SMALL)(torch.rand(2, 3, 32, 32))
    assert [tuple(t.shape) for t in out.hidden] == [(2, 17, 32)] * 3
    assert out.pooled.shape == (2, 32)
    assert out.projected.shape == (2, 16)


def test_pictures_of_any_shape_are_cropped_to_the_middle() -> None:
    picture = torch.zeros(1, 3, 40, 120)
    picture[..., 40:80] = 1
    middle = prepare(picture, 32)
    assert middle.shape == (1, 3, 32, 32)
    assert torch.allclose(middle, prepare(torch.ones(1, 3, 32, 32), 32), atol=0.2)


def test_a_concept_that_is_the_picture_flags_it_and_a_far_one_does_not() -> None:
    torch.manual_seed(0)
    checker = SafetyChecker(SMALL).eval()
    pixels = prepare(torch.rand(1, 3, 32, 32), 32)
    with torch.no_grad():
        vector = checker(pixels).projected
        checker.concept_embeds.copy_(-vector.expand(17, -1))
        checker.concept_embeds_weights.fill_(0.5)
        checker.special_care_embeds.copy_(-vector.expand(3, -1))
        checker.special_care_embeds_weights.fill_(0.5)
        assert checker.flagged(pixels) == [False]
        checker.concept_embeds[5] = vector[0]
        assert checker.flagged(pixels) == [True]


def test_special_care_makes_it_stricter() -> None:
    torch.manual_seed(0)
    checker = SafetyChecker(SMALL).eval()
    pixels = prepare(torch.rand(1, 3, 32, 32), 32)
    with torch.no_grad():
        vector = checker(pixels).projected
        checker.concept_embeds.copy_(vector.expand(17, -1))
        checker.concept_embeds_weights.fill_(1.005)
        checker.special_care_embeds.copy_(-vector.expand(3, -1))
        checker.special_care_embeds_weights.fill_(0.5)
        assert checker.flagged(pixels) == [False]
        checker.special_care_embeds.copy_(vector.expand(3, -1))
        assert checker.flagged(pixels) == [True]
