"""DWPose (Yang et al. 2023): whole bodies with hands and faces, by two ONNX files (the extra [detect]).

yolox_l.onnx finds people (YOLOX, Ge et al. 2021), dw-ll_ucoco_384.onnx their 133 points (COCO-WholeBody's, by RTMPose's
SimCC: Li et al. 2022), which become OpenPose's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danqing.adapters.pose import Person, Point, Posing
from danqing.adapters.preprocess import pixels_of
from danqing.errors import DanqingError
from danqing.runtime.onnx import open_session

Array = NDArray[np.float32]
Run = Callable[[Array], list[Array]]
"""An ONNX file's network: its one input -> its outputs."""

_GREY = 114
"""Of the margins of YOLOX' training pictures."""
_OVERLAP, _LISTED, _PERSON, _SURE = 0.45, 0.1, 0.3, 0.3
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, of RGB from 0 to 255."""
_MARGIN = 1.25
_ORDER = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""OpenPose's body parts among COCO's 17; the 18th is the neck, between the shoulders."""
_LEFT, _RIGHT = 5, 6
_FACE, _HANDS = slice(23, 91), (slice(91, 112), slice(112, 133))


def whole_bodies(detector: Path, poses: Path) -> Posing:
    """The people in a picture, with hands and faces, in OpenPose's points.

    Raises DanqingError for files that are others, or without onnxruntime.
    """
    find, tell = _session(detector, (640, 640), 1), _session(poses, (384, 288), 2)

    def found(picture: Image.Image) -> list[Person]:
        image = pixels_of(picture)
        boxes = people_boxes(find, image) or [(0.0, 0.0, float(picture.width), float(picture.height))]
        return [person_of(*points_in(tell, image, box)) for box in boxes]

    return Posing(found)


def _session(path: Path, size: tuple[int, int], outputs: int) -> Run:
    session = open_session(path, "control")
    inputs = session.get_inputs()
    if len(inputs) != 1 or list(inputs[0].shape[2:]) != list(size) or len(session.get_outputs()) != outputs:
        raise DanqingError(f"{path}: is another network than DWPose's yolox_l.onnx or dw-ll_ucoco_384.onnx")
    return lambda x: [np.asarray(output) for output in session.run(None, {inputs[0].name: x})]


def people_boxes(run: Run, image: Array) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each person in an image (H, W, 3), RGB from 0 to 255."""
    height, width = image.shape[:2]
    scale = min(640 / width, 640 / height)
    inner = max(int(width * scale), 1), max(int(height * scale), 1)
    sheet = np.full((640, 640, 3), _GREY, np.float32)
    sheet[: inner[1], : inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    rows = run(np.ascontiguousarray(sheet[..., ::-1].transpose(2, 0, 1)[None]))[0][0]  # (8400, 4 + 1 + 80)
    cells = [(np.indices((640 // s, 640 // s))[::-1].reshape(2, -1).T, s) for s in (8, 16, 32)]
    grid = np.concatenate([cell for cell, _ in cells])
    stride = np.concatenate([np.full((len(cell), 1), s) for cell, s in cells])
    middle, sides = (rows[:, :2] + grid) * stride, np.exp(rows[:, 2:4]) * stride
    boxes = np.concatenate([middle - sides / 2, sides], 1) / scale
    scores = rows[:, 4] * rows[:, 5]  # class 0 is a person
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), _LISTED, _OVERLAP)
    found = []
    for index in np.asarray(kept, int).ravel():
        if scores[index] > _PERSON:
            left, top, wide, high = (float(value) for value in boxes[index])
            found.append((left, top, left + wide, top + high))
    return found


def points_in(run: Run, image: Array, box: tuple[float, float, float, float]) -> tuple[Array, Array]:
    """(133, 2) X and Y in the image's pixels, and (133,) how sure, of the person in a box."""
    middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    sides = np.array([box[2] - box[0], box[3] - box[1]]) * _MARGIN
    sides = np.maximum(sides, sides[::-1] * (288 / 384, 384 / 288))
    corner, scale = middle - sides / 2, np.array([288, 384]) / sides
    way = np.array([[scale[0], 0, -corner[0] * scale[0]], [0, scale[1], -corner[1] * scale[1]]])
    cut = cv2.warpAffine(image, way, (288, 384), flags=cv2.INTER_LINEAR)
    shown = ((cut - np.array(_MEAN)) / np.array(_DEVIATION)).astype(np.float32)
    along_x, along_y = (output[0] for output in run(np.ascontiguousarray(shown.transpose(2, 0, 1)[None])))
    # SimCC: a bar of half pixels for each axis, whose highest place is the coordinate
    places = np.stack([along_x.argmax(-1), along_y.argmax(-1)], -1) / 2
    sure = np.minimum(along_x.max(-1), along_y.max(-1))
    return (places / scale + corner).astype(np.float32), sure.astype(np.float32)


def person_of(points: Array, sure: Array) -> Person:
    """OpenPose's points of COCO-WholeBody's 133; a face has the pupils last, for which the eyes stand."""
    neck = points[[_LEFT, _RIGHT]].mean(0)
    seen: list[Point] = [
        (float(x), float(y)) if how >= _SURE else None
        for (x, y), how in zip([*points[:17], neck], [*sure[:17], min(sure[_LEFT], sure[_RIGHT])])
    ]
    rest: list[Point] = [(float(x), float(y)) if how >= _SURE else None for (x, y), how in zip(points[17:], sure[17:])]
    far = [None] * 17 + rest
    body = tuple(seen[index] for index in _ORDER)
    hands = tuple(tuple(far[part]) for part in _HANDS)
    face = (*far[_FACE], body[14], body[15])
    return Person(body, hands, face if any(point is not None for point in face[:-2]) else ())
