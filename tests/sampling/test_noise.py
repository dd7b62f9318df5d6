import math

import numpy as np
import pytest
import torch

from danqing.errors import DanqingError
from danqing.sampling.noise import DRAWING, brownian_noise, philox, picture_noise, sampling_noise, slerp
from danqing.vocabulary import find_sampler

SHAPE = (4, 8, 6)
SOURCES = ("cpu", "gpu", "philox")


def test_philox_gives_cudas_numbers() -> None:
    """Vectors made by running AUTOMATIC1111 1.10.1's rng_philox.py (commit 82a973c0)."""
    expected = [
        [-0.92466, -0.42534, -2.64385, 0.14518],
        [-0.12087, -0.57973, -0.62285, -0.32839],
        [-1.07454, -0.36314, -1.67105, 2.26551],
    ]
    assert philox(0, (3, 4)) == pytest.approx(np.array(expected), abs=5.1e-6)
    assert philox(0, (2, 2), 1) == pytest.approx(np.array([[0.18083, -0.55226], [0.92381, -0.73497]]), abs=5.1e-6)
    large = np.array([[-0.47905, -1.27825], [-0.24157, -0.38500]])
    assert philox(2**40 + 7, (2, 2)) == pytest.approx(large, abs=5.1e-6)
    assert philox(0, (3, 4)).dtype == np.float32


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_normal(source: str) -> None:
    x = picture_noise([3], (4, 64, 64), source=source)(2).double()
    assert abs(float(x.mean())) < 0.03
    assert abs(float(x.std()) - 1) < 0.02
    assert abs(float((x**4).mean()) - 3) < 0.25


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ensd", [0, 31337])
def test_draws_are_addressed(source: str, ensd: int) -> None:
    def fresh() -> list[torch.Tensor]:
        noise = picture_noise([5, 6], SHAPE, source=source, ensd=ensd)
        return [noise(i) for i in range(9)]

    noise = picture_noise([5, 6], SHAPE, source=source, ensd=ensd)
    wanted = fresh()
    for draw in (7, 3, 3, 0, 5, 5, 1, 8, 0):
        assert torch.equal(noise(draw), wanted[draw])
    assert len({float(x[0, 0, 0, 0]) for x in wanted}) == 9


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_does_not_depend_on_its_batch(source: str) -> None:
    options = {"source": source, "subseed_strength": 0.3, "seed_resize_from": (4, 10), "ensd": 9}
    batch = picture_noise(range(1, 9), SHAPE, subseeds=range(11, 19), **options)
    alone = picture_noise([5], SHAPE, subseeds=[15], **options)
    for draw in (0, 4, 2):
        assert torch.equal(batch(draw)[4:5], alone(draw))


def test_later_draws_go_on_with_each_pictures_generator() -> None:
    noise = picture_noise([7, 8], SHAPE)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    for draw in range(3):
        assert torch.equal(noise(draw), torch.stack([torch.randn(SHAPE, generator=g) for g in generators]))


def test_ensd_makes_new_generators_after_the_start() -> None:
    plain, delta = picture_noise([7], SHAPE), picture_noise([7], SHAPE, ensd=31337)
    assert torch.equal(plain(0), delta(0))
    assert torch.equal(delta(1), picture_noise([7 + 31337], SHAPE)(0))
    assert torch.equal(delta(2), picture_noise([7 + 31337], SHAPE)(1))
    assert torch.equal(picture_noise([2**64 - 1], SHAPE, ensd=3)(1), picture_noise([2], SHAPE)(0))


def test_variation_goes_from_one_seed_to_the_other() -> None:
    def start(strength: float) -> torch.Tensor:
        return picture_noise([1], SHAPE, subseeds=[2], subseed_strength=strength)(0)

    own, other = picture_noise([1], SHAPE)(0), picture_noise([2], SHAPE)(0)
    assert torch.equal(start(0), own)
    assert torch.allclose(start(1), other, atol=1e-5)
    half = start(0.5)
    low, high = own.norm(dim=-2), other.norm(dim=-2)
    cosine = (own * other).sum(-2) / (low * high)
    # halfway along the circle between vectors of lengths a and b: |a e1 + b e2| / (2 cos(angle / 2))
    expected = (low**2 + high**2 + 2 * low * high * cosine).sqrt() / (2 * (cosine.acos() / 2).cos())
    assert torch.allclose(half.norm(dim=-2), expected, atol=1e-4)
    # the sampler's draws stay the seed's
    assert torch.equal(picture_noise([1], SHAPE, subseeds=[2], subseed_strength=0.5)(1), picture_noise([1], SHAPE)(1))


def test_slerp_of_parallel_noise_is_a_mix() -> None:
    low = torch.randn(SHAPE)
    high = low * 1.5
    assert torch.equal(slerp(0.25, low, high), low * 0.25 + high * 0.75)


@pytest.mark.parametrize("size", [(6, 4), (9, 5), (4, 12), (6, 8), (3, 3), (13, 15)])
def test_seed_resize_keeps_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    noise = picture_noise([4], SHAPE, seed_resize_from=size)(0)[0]
    small, own = picture_noise([4], (4, height, width))(0)[0], picture_noise([4], SHAPE)(0)[0]
    dy, dx = (SHAPE[1] - height) // 2, (SHAPE[2] - width) // 2
    for y in range(SHAPE[1]):
        for x in range(SHAPE[2]):
            rows = height + 2 * min(dy, 0)
            columns = width + 2 * min(dx, 0)
            inside = 0 <= y - max(dy, 0) < rows and 0 <= x - max(dx, 0) < columns
            expected = small[:, y - dy, x - dx] if inside else own[:, y, x]
            assert torch.equal(noise[:, y, x], expected)
    assert torch.equal(picture_noise([4], SHAPE, seed_resize_from=size)(1), picture_noise([4], SHAPE)(1))


def test_one_draw_for_the_batch() -> None:
    noise = picture_noise([9, 10, 11], SHAPE, batch_draw=True)
    generator = torch.Generator().manual_seed(9)
    for draw in range(3):
        assert torch.equal(noise(draw), torch.randn(3, *SHAPE, generator=generator))


def test_comfyuis_samplers_draw_from_a_generator_apart() -> None:
    device = picture_noise([9, 10], SHAPE, batch_draw=True, apart="philox")
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(device(0), torch.randn(2, *SHAPE, generator=generator))
    assert torch.equal(device(1), torch.from_numpy(philox(9, (2, *SHAPE), 0)))
    assert torch.equal(device(2), torch.from_numpy(philox(9, (2, *SHAPE), 1)))
    on_cpu = picture_noise([9, 10], SHAPE, batch_draw=True, apart="cpu")
    assert torch.equal(on_cpu(1), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(10)))


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(DanqingError, match="seed"):
        picture_noise([2**64], SHAPE)


@pytest.mark.parametrize("source", SOURCES)
def test_brownian_increments_add_up(source: str) -> None:
    noise = brownian_noise([3, 4], SHAPE, 0.03, 14.6, source=source)

    def increment(a: float, b: float) -> torch.Tensor:
        return noise(1, a, b) * math.sqrt(abs(b - a)) * (1 if a < b else -1)

    whole = increment(14.6, 0.03)
    parts = increment(14.6, 5.5) + increment(5.5, 2.25) + increment(2.25, 0.03)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.equal(noise(1, 5.5, 2.25), noise(8, 5.5, 2.25))
    assert torch.equal(noise(1, 5.5, 2.25), -noise(1, 2.25, 5.5))
    alone = brownian_noise([4], SHAPE, 0.03, 14.6, source=source)
    assert torch.equal(noise(1, 5.5, 2.25)[1:], alone(1, 5.5, 2.25))


def test_brownian_noise_is_normal_and_independent_over_disjoint_steps() -> None:
    noise = brownian_noise([12], (4, 64, 64), 0.03, 14.6)
    a, b = noise(1, 10.0, 7.0), noise(2, 7.0, 6.5)
    assert abs(float(a.std()) - 1) < 0.02
    assert abs(float(b.std()) - 1) < 0.02
    assert abs(float((a * b).mean())) < 0.03


def test_brownian_noise_needs_two_levels() -> None:
    noise = brownian_noise([1], SHAPE, 0.03, 14.6)
    with pytest.raises(ValueError, match="two noise levels"):
        noise(1)
    with pytest.raises(ValueError, match="two noise levels"):
        noise(1, 2.0, 2.0)


def test_sampling_noise_by_dialect() -> None:
    sigmas = torch.tensor([14.6, 7.0, 2.0, 0.03, 0.0])
    sde, plain = find_sampler("DPM++ 2M SDE"), find_sampler("Euler a")
    seeds = [3, 4]
    ours = sampling_noise("danqing", sde, sigmas, seeds, SHAPE, source="cpu")
    assert torch.equal(ours(0), picture_noise(seeds, SHAPE)(0))
    assert torch.equal(ours(1, 7.0, 2.0), brownian_noise(seeds, SHAPE, 0.03, 14.6)(1, 7.0, 2.0))
    assert torch.equal(
        sampling_noise("a1111", plain, sigmas, seeds, SHAPE, source="philox")(2),
        torch.stack([torch.from_numpy(philox(seed, SHAPE, 2)) for seed in seeds]),
    )
    comfyui = sampling_noise("comfyui", sde, sigmas, seeds, SHAPE, source="cpu")
    assert torch.equal(comfyui(1, 7.0, 2.0), brownian_noise(seeds, SHAPE, 0.03, 14.6, batch_draw=True)(1, 7.0, 2.0))
    diffusers = sampling_noise("diffusers", sde, sigmas, seeds, SHAPE, source="cpu")
    assert torch.equal(diffusers(1, 7.0, 2.0), picture_noise(seeds, SHAPE, batch_draw=True)(1))
    assert set(DRAWING) == {"danqing", "a1111", "comfyui", "diffusers"}
