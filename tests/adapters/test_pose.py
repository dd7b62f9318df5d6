"""People made of OpenPose's maps, and drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from danqing.adapters import pose
from danqing.adapters.pose import COLOURS, LIMBS, PARTS, Person, draw, group

STANDING = [(50, 20), (50, 40), (40, 40), (35, 60), (32, 80), (60, 40), (65, 60), (68, 80), (44, 80), (44, 110),
            (44, 140), (56, 80), (56, 110), (56, 140), (47, 16), (53, 16), (42, 18), (58, 18)]  # fmt: skip
HEIGHT, WIDTH = 160, 240


def links_of(*people: list[tuple[int, int]]) -> np.ndarray:
    """Ideal maps (38, H, W): along each limb a band of its direction."""
    maps = np.zeros((38, HEIGHT, WIDTH), np.float32)
    for person in people:
        for (a, b), channel in zip(LIMBS, pose._LINK_MAPS):
            start, end = np.array(person[a]), np.array(person[b])
            way = (end - start) / np.linalg.norm(end - start)
            for x, y in np.linspace(start, end, 200).round().astype(int):
                maps[channel : channel + 2, y - 1 : y + 2, x - 1 : x + 2] = way[:, None, None]
    return maps


def moved(right: int) -> list[tuple[int, int]]:
    return [(x + right, y) for x, y in STANDING]


def test_two_people_are_told_apart() -> None:
    first, second = STANDING, moved(110)
    peaks = [[(*second[part], 0.8), (*first[part], 0.9)] for part in range(PARTS)]
    found = group(peaks, links_of(first, second))
    assert sorted([list(person.body) for person in found]) == sorted([first, second])


def test_what_is_hidden_is_none_and_few_parts_are_nobody() -> None:
    hidden = {4, 9, 10, 16}
    peaks = [[] if part in hidden else [(*STANDING[part], 0.9)] for part in range(PARTS)]
    (person,) = group(peaks, links_of(STANDING))
    assert [part for part, point in enumerate(person.body) if point is None] == sorted(hidden)
    few = [peak if part in (1, 2, 3) else [] for part, peak in enumerate(peaks)]
    assert group(few, links_of(STANDING)) == []
    assert group(peaks, np.zeros_like(links_of())) == []


class Body(nn.Module):
    """Maps at an eighth of the size, of one who stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown = torch.empty(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.shown = x
        rows, columns = x.shape[-2] // 8, x.shape[-1] // 8
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        points = torch.zeros(1, 19, rows, columns)
        for part, (px, py) in enumerate(STANDING):
            far = ((x + 0.5) * WIDTH / columns - px) ** 2 + ((y + 0.5) * HEIGHT / rows - py) ** 2
            points[0, part] = torch.exp(-far / (2 * 7.0**2))
        links = torch.from_numpy(links_of(STANDING))[None]
        wide = nn.functional.max_pool2d(links, 9, 1, 4) - nn.functional.max_pool2d(-links, 9, 1, 4)
        return nn.functional.interpolate(wide, (rows, columns), mode="area"), points


def test_a_picture_of_one() -> None:
    network = Body()
    image = np.full((HEIGHT, WIDTH, 3), (10, 20, 30), np.uint8)
    (person,) = pose.find_people(network, image)  # type: ignore[arg-type]
    assert network.shown.shape == (1, 3, 184, 280)  # half of 368 pixels high, 276 wide up to a multiple of 8
    assert torch.allclose(network.shown[0, :, 0, 0], torch.tensor([30.0, 20, 10]) / 256 - 0.5)
    assert torch.allclose(network.shown[0, :, 0, 279], torch.tensor(0.0))  # grey margins
    missed = [part for part in range(PARTS) if person.body[part] is None]
    assert not missed
    far = [np.hypot(*np.subtract(point, STANDING[part])) for part, point in enumerate(person.body) if point]
    assert max(far) <= 4
    drawn = pose.openpose(network)(Image.fromarray(image))  # type: ignore[arg-type]
    assert drawn.size == (WIDTH, HEIGHT)
    assert np.asarray(drawn).max() == 255


class Spot(nn.Module):
    """Every map has a spot at the same share of the width and height, but the third, which is empty."""

    def __init__(self, count: int, x: float, y: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.count, self.x, self.y, self.sizes = count, x, y, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        rows, columns = x.shape[-2] // 8, x.shape[-1] // 8
        ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        far = ((xs + 0.5) / columns - self.x) ** 2 + ((ys + 0.5) / rows - self.y) ** 2
        maps = torch.exp(-far / (2 * 0.08**2)).expand(1, self.count, -1, -1).clone()
        maps[:, 2] = 0
        return maps


def test_hands_and_faces() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    network = Spot(22, 0.25, 0.5)
    person = Person(tuple(STANDING))
    hands = pose._hands(network, image, person)  # type: ignore[arg-type]
    assert network.sizes[:4] == [(184, 184), (368, 368), (552, 552), (736, 736)]
    assert len(hands) == 2
    assert [point is None for point in hands[0]] == [index == 2 for index in range(21)]
    # the left arm: elbow (65, 60), wrist (68, 80), so a square of 1.5 times their distance, 0.33 beyond the wrist
    side = 1.5 * np.hypot(3, 20)
    expected = np.array([68 + 0.99 - side / 2 + 0.25 * side, 80 + 6.6 - side / 2 + 0.5 * side])
    assert np.abs(np.array(hands[0][0]) - expected).max() <= 2
    face = Spot(71, 0.5, 0.25)
    points = pose._face(face, image, person)  # type: ignore[arg-type]
    assert face.sizes == [(384, 384)]
    assert len(points) == 70
    reach = max(3 * 4, 1.5 * 8)
    assert np.abs(np.array(points[0]) - [50, 20 - reach + 0.5 * reach]).max() <= 2
    assert pose._face(face, image, Person((None,) * PARTS)) == ()  # type: ignore[arg-type]
    assert pose._hands(network, image, Person((None,) * PARTS)) == ((), ())  # type: ignore[arg-type]


def test_colours() -> None:
    drawn = np.asarray(draw([Person(tuple(STANDING))], (WIDTH, HEIGHT)))
    for part in (0, 1, 4, 10, 13):
        x, y = STANDING[part]
        assert tuple(drawn[y, x]) == COLOURS[part]
    assert tuple(drawn[95, 44]) == tuple(int(level * 0.6) for level in COLOURS[LIMBS.index((8, 9))])
    assert drawn[:, 150:].max() == 0
    hand = tuple((10.0 + 5 * joint, 10.0) for joint in range(21))
    drawn = np.asarray(draw([Person((), (hand,), ((30.0, 60.0), None))], (WIDTH, HEIGHT)))
    assert drawn[10, 10].tolist() == [0, 0, 255]
    assert drawn[60, 30].tolist() == [255, 255, 255]
    assert draw([], (5, 4)).size == (5, 4)


@pytest.mark.parametrize("size", [(1, 1), (20, 9)])
def test_small_pictures(size: tuple[int, int]) -> None:
    assert pose.openpose(Spotless())(Image.new("RGB", size)).size == size  # type: ignore[arg-type]


class Spotless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(torch.zeros(1, count, x.shape[-2] // 8, x.shape[-1] // 8) for count in (38, 19))  # type: ignore[return-value]
