"""People's poses: OpenPose's maps made into people by its part-affinity grouping, and drawn in its colours.

Cao et al. 2019 (bodies), Simon et al. 2017 (hands). Sizes and thresholds are those of lllyasviel's ControlNet
(`annotator/openpose`), whose hints its networks were trained on.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from danqing.adapters.preprocess import pixels_of
from danqing.models.openpose import STRIDE, BodyPose, PointMaps

_Number = TypeVar("_Number", np.uint8, np.float32)

Point = tuple[float, float] | None
"""X and Y in pixels, or None where a point is not seen."""
Array = NDArray[np.float32]
Peak = tuple[int, int, float]
"""X, Y and how sure."""

PARTS = 18
"""Nose, neck; right shoulder, elbow, wrist; left ones; right hip, knee, ankle; left ones; eyes and ears, right first."""
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17))  # fmt: skip
"""From which part to which; the last two, shoulder to ear, only join people up and are not drawn."""
_LINK_MAPS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
"""Of each limb the map of X; that of Y is the next."""
_DRAWN = 17
FINGERS = tuple((0 if joint == 1 else 4 * finger + joint - 1, 4 * finger + joint)
                for finger in range(5) for joint in range(1, 5))  # fmt: skip
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))  # fmt: skip
"""OpenPose's, of limbs and of parts in their order."""

_BOX = 368
"""Pixels of a picture's height, or of a hand's, that OpenPose was trained at."""
_FACE_BOX, _HAND_MAP = 384, 128
_PEAK, _LINK, _FOUND = 0.1, 0.05, 0.05
"""How sure a body part, a limb's middle, a finger's or face's point has to be."""


@dataclass(frozen=True)
class Person:
    """Points in pixels."""

    body: tuple[Point, ...]
    """18 parts, or none."""
    hands: tuple[tuple[Point, ...], ...] = ()
    """The left one, then the right: 21 points each, the wrist, then four of each finger from the thumb on; or none."""
    face: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Posing:
    """A preprocessor that finds people, and draws them on black."""

    people: Callable[[Image.Image], list[Person]]

    def __call__(self, picture: Image.Image) -> Image.Image:
        return draw(self.people(picture), picture.size)


def openpose(
    body: BodyPose, hand: PointMaps | None = None, face: PointMaps | None = None, draw_body: bool = True
) -> Posing:
    """The people in a picture; hands and faces with the networks that find them."""

    def found(picture: Image.Image) -> list[Person]:
        image = pixels_of(picture).astype(np.uint8)
        people = find_people(body, image)
        if hand is not None:
            people = [replace(person, hands=_hands(hand, image, person)) for person in people]
        if face is not None:
            people = [replace(person, face=_face(face, image, person)) for person in people]
        return people if draw_body else [replace(person, body=()) for person in people]

    return Posing(found)


# --- bodies -----------------------------------------------------------------------------------------------------------


def find_people(network: BodyPose, image: NDArray[np.uint8]) -> list[Person]:
    """The people in an image (H, W, 3)."""
    height, width = image.shape[:2]
    scale = 0.5 * _BOX / height
    small = _resized(image, max(int(width * scale), 1), max(int(height * scale), 1))
    links, points = (_restored(maps, small.shape[:2], (height, width)) for maps in _maps(network, small))
    return group([_peaks(points[part]) for part in range(PARTS)], links)


def _maps(network: nn.Module, image: NDArray[np.uint8]) -> tuple[Tensor, ...]:
    """What a network makes of an image (H, W, 3), grey to the right and below up to whole strides: each (1, C, h, w)."""
    bottom, right = (-side % STRIDE for side in image.shape[:2])
    padded = np.pad(image[..., ::-1], ((0, bottom), (0, right), (0, 0)), constant_values=128)
    x = torch.from_numpy(padded.astype(np.float32) / 256 - 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        made = network(x.to(next(network.parameters())))
    return made if isinstance(made, tuple) else (made,)


def _restored(maps: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> Array:
    """Maps (1, C, h, w) at `size` (H, W): of the padded image's only what shows the image, `inner` (H, W)."""
    made = []
    for one in maps[0].float().cpu().numpy():
        whole = _resized(one, one.shape[1] * STRIDE, one.shape[0] * STRIDE)
        made.append(_resized(whole[: inner[0], : inner[1]], size[1], size[0]))
    return np.stack(made)


def _resized(image: NDArray[_Number], width: int, height: int) -> NDArray[_Number]:
    smaller = width + height < image.shape[0] + image.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    made: NDArray[_Number] = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=way)
    return made


def _smoothed(one: Array) -> Array:
    """A map blurred by a Gaussian of 3 pixels, cut off at four deviations."""
    made: Array = cv2.GaussianBlur(one, (25, 25), 3.0, borderType=cv2.BORDER_REFLECT)
    return made


def _peaks(one: Array) -> list[Peak]:
    """Where a map (H, W) is highest among its neighbours, row by row."""
    smooth = _smoothed(one)
    around = np.pad(smooth, 1)
    sides = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    high = np.logical_and.reduce([smooth >= side for side in sides]) & (smooth > _PEAK)
    return [(int(x), int(y), float(one[y, x])) for y, x in zip(*np.nonzero(high))]


@dataclass
class _Body:
    parts: list[int] = field(default_factory=lambda: [-1] * PARTS)
    """Which peak each part is, counted over all parts' peaks; -1 is none."""
    score: float = 0.0
    count: int = 0


def group(peaks: Sequence[Sequence[Peak]], links: Array) -> list[Person]:
    """People made of the parts' peaks, joined up limb by limb where links (38, H, W) run from one to the other.

    A greedy matching for each limb (Cao et al. 2019, section 2.3). Fewer than 4 parts, or unsure ones, are nobody.
    """
    every = [peak for part in peaks for peak in part]
    first = np.cumsum([0, *map(len, peaks)])
    bodies: list[_Body] = []
    for number, ((a, b), channel) in enumerate(zip(LIMBS, _LINK_MAPS)):
        for i, j, how in _joined(peaks[a], peaks[b], links[channel : channel + 2]):
            start, end = int(first[a]) + i, int(first[b]) + j
            own = [body for body in bodies if body.parts[a] == start or body.parts[b] == end]
            if len(own) > 1 and not any(p >= 0 <= q for p, q in zip(own[0].parts, own[1].parts)):
                own[0].parts = [max(p, q) for p, q in zip(own[0].parts, own[1].parts)]
                own[0].score += own[1].score + how
                own[0].count += own[1].count
                bodies = [body for body in bodies if body is not own[1]]
            elif len(own) > 1 or (own and own[0].parts[b] != end):
                own[0].parts[b] = end
                own[0].score += every[end][2] + how
                own[0].count += 1
            elif not own and number < _DRAWN:
                parts = [start if part == a else end if part == b else -1 for part in range(PARTS)]
                bodies.append(_Body(parts, every[start][2] + every[end][2] + how, 2))
    return [
        Person(tuple(None if part < 0 else every[part][:2] for part in body.parts))
        for body in bodies
        if body.count >= 4 and body.score / body.count >= 0.4
    ]


def _joined(starts: Sequence[Peak], ends: Sequence[Peak], link: Array) -> list[tuple[int, int, float]]:
    """(start, end, how surely) of the pairs that a limb joins, the surest first, no peak in two."""
    height = link.shape[1]
    likely = []
    for i, start in enumerate(starts):
        for j, end in enumerate(ends):
            along = np.subtract(end[:2], start[:2])
            length = max(math.hypot(*along), 0.001)
            x, y = (np.rint(np.linspace(start[n], end[n], 10)).astype(int) for n in (0, 1))
            sure = link[0, y, x] * (along[0] / length) + link[1, y, x] * (along[1] / length)
            # limbs longer than half the picture are less likely
            how = float(sure.mean()) + min(0.5 * height / length - 1, 0)
            if (sure > _LINK).sum() > 8 and how > 0:
                likely.append((i, j, how))
    taken: list[tuple[int, int, float]] = []
    for i, j, how in sorted(likely, key=lambda row: -row[2]):
        if all(i != row[0] and j != row[1] for row in taken):
            taken.append((i, j, how))
    return taken


# --- hands and faces --------------------------------------------------------------------------------------------------


def _hands(network: PointMaps, image: NDArray[np.uint8], person: Person) -> tuple[tuple[Point, ...], ...]:
    """The points of those hands whose arm is seen: a square about where the hand should be (OpenPose's handDetector)."""
    height, width = image.shape[:2]
    found: list[tuple[Point, ...]] = []
    for shoulder, elbow, wrist in ((5, 6, 7), (2, 3, 4)):
        arm = [person.body[part] for part in (shoulder, elbow, wrist)] if person.body else [None]
        if any(point is None for point in arm):
            found.append(())
            continue
        a, b, c = (np.array(point) for point in arm)
        side = 1.5 * max(float(np.linalg.norm(c - b)), 0.9 * float(np.linalg.norm(b - a)))
        left, top = np.maximum(c + 0.33 * (c - b) - side / 2, 0)
        side = min(side, width - left, height - top)
        box = int(left), int(top), int(side)
        found.append(_moved(_hand_points(network, _cut(image, box)), box) if side >= 20 else ())
    return tuple(found)


def _face(network: PointMaps, image: NDArray[np.uint8], person: Person) -> tuple[Point, ...]:
    """The points of a face: a square about the nose, as wide as eyes and ears are far from it."""
    nose = person.body[0] if person.body else None
    if nose is None:
        return ()
    reach = 0.0
    for part, times in ((14, 3.0), (15, 3.0), (16, 1.5), (17, 1.5)):
        point = person.body[part]
        if point is not None:
            reach = max(reach, times * max(abs(nose[0] - point[0]), abs(nose[1] - point[1])))
    height, width = image.shape[:2]
    left, top = max(nose[0] - reach, 0), max(nose[1] - reach, 0)
    side = min(width - left if left + reach > width else 2 * reach, height - top if top + reach > height else 2 * reach)
    if side < 20:
        return ()
    box = int(left), int(top), int(side)
    return _moved(_face_points(network, _cut(image, box)), box)


def _cut(image: NDArray[np.uint8], box: tuple[int, int, int]) -> NDArray[np.uint8]:
    left, top, side = box
    return image[top : top + side, left : left + side]


def _moved(points: Sequence[Point], box: tuple[int, int, int]) -> tuple[Point, ...]:
    return tuple(None if point is None else (point[0] + box[0], point[1] + box[1]) for point in points)


def _hand_points(network: PointMaps, image: NDArray[np.uint8]) -> list[Point]:
    """21 points in a hand's image (H, W, 3): maps of four sizes averaged, the heaviest patch of each, its highest place."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(image, (0, 0), 0.8)
    total: Array = np.zeros((21, _HAND_MAP, _HAND_MAP), np.float32)
    for scale in (0.5, 1.0, 1.5, 2.0):
        side = int(scale * _BOX)
        small = _resized(blurred, side, side)
        total += _restored(_maps(network, small)[0][:, :21], (side, side), (_HAND_MAP, _HAND_MAP)) / 4
    points: list[Point] = []
    for one in total:
        count, patches = cv2.connectedComponents((_smoothed(one) > _FOUND).astype(np.uint8), connectivity=8)
        if count < 2:
            points.append(None)
            continue
        heaviest = max(range(1, count), key=lambda patch: float(one[patches == patch].sum()))
        place = int(np.where(patches == heaviest, one, 0).argmax())
        y, x = divmod(place, _HAND_MAP)
        points.append((int(x * width / _HAND_MAP), int(y * height / _HAND_MAP)))
    return points


def _face_points(network: PointMaps, image: NDArray[np.uint8]) -> list[Point]:
    """70 points in a face's image (H, W, 3): the highest place of each map."""
    maps = _maps(network, _resized(image, _FACE_BOX, _FACE_BOX))[0]
    maps = F.interpolate(maps[:, :70], image.shape[:2], mode="bilinear", align_corners=True)[0]
    points: list[Point] = []
    for one in maps.float().cpu().numpy():
        y, x = divmod(int(one.argmax()), one.shape[1])
        points.append((x, y) if one[y, x] > _FOUND else None)
    return points


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(people: Sequence[Person], size: tuple[int, int]) -> Image.Image:
    """People on black, in a picture of (width, height): limbs dimmed under their parts, hands in a rainbow, faces white."""
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    for person in people:
        _draw_body(canvas, person.body)
        for hand in person.hands:
            _draw_hand(canvas, hand)
        for point in person.face:
            if point is not None:
                cv2.circle(canvas, _whole(point), 3, (255, 255, 255), -1)
    return Image.fromarray(canvas)


def _whole(point: tuple[float, float]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _draw_body(canvas: NDArray[np.uint8], body: Sequence[Point]) -> None:
    for (a, b), colour in zip(LIMBS[:_DRAWN] if body else (), COLOURS):
        start, end = body[a], body[b]
        if start is None or end is None:
            continue
        middle = _whole(((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        x, y = start[0] - end[0], start[1] - end[1]
        axes = (int(math.hypot(x, y) / 2), 4)
        outline = cv2.ellipse2Poly(middle, axes, int(math.degrees(math.atan2(y, x))), 0, 360, 1)
        cv2.fillConvexPoly(canvas, outline, [int(level * 0.6) for level in colour])
    for point, colour in zip(body, COLOURS):
        if point is not None:
            cv2.circle(canvas, _whole(point), 4, colour, -1)


def _draw_hand(canvas: NDArray[np.uint8], hand: Sequence[Point]) -> None:
    for index, (a, b) in enumerate(FINGERS if hand else ()):
        start, end = hand[a], hand[b]
        if start is not None and end is not None:
            colour = [255 * level for level in colorsys.hsv_to_rgb(index / len(FINGERS), 1, 1)]
            cv2.line(canvas, _whole(start), _whole(end), colour, 2)
    for point in hand:
        if point is not None:
            cv2.circle(canvas, _whole(point), 4, (0, 0, 255), -1)
