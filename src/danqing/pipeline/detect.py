"""Finding things in pictures: detectors from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from danqing.errors import DanqingError
from danqing.paths import path_of
from danqing.runtime.onnx import open_session

_PAD = 114
"""The grey that YOLO's training pictures are padded with."""
_OVERLAP = 0.7
"""Boxes of one class that overlap by more (intersection over union) are one thing: Ultralytics' default."""
_LEAST = 0.05
"""What is less sure than this is not even listed."""


@dataclass(frozen=True, eq=False)
class Found:
    """A thing in a picture."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    confidence: float
    label: int = 0
    """The detector's number for what it is."""
    mask: Image.Image | None = None
    """L, of the picture's size, 255 where the thing is; None where only the box is known."""

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


Detect = Callable[[Image.Image], Sequence[Found]]
"""An RGB picture -> what was found in it."""


def load_detector(name: str) -> Detect:
    """The detector in an ONNX file: a YOLO (v8, v9, 11, 12) as `yolo export format=onnx` writes it, boxes or masks.

    ONNX files hold no code. Needs the extra [detect]. Raises DanqingError for a file that is missing or another model.
    """
    session = open_session(detector_file(name), "detector")
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(session.get_outputs()) not in (1, 2):
        raise DanqingError(f"detector: '{name}' is no YOLO detector; see `yolo export format=onnx`")
    sides = [side if isinstance(side, int) else 640 for side in inputs[0].shape[2:]]

    def detect(image: Image.Image) -> list[Found]:
        pixels, scale, left, top = _letterboxed(image, sides[1], sides[0])
        outputs = [np.asarray(output) for output in session.run(None, {inputs[0].name: pixels})]
        return read_yolo(outputs, image.size, scale, (left, top), (sides[1], sides[0]))

    return detect


def detector_file(name: str) -> Path:
    """Where a detector's weights lie. Raises DanqingError for a file that is missing, or no ONNX file by its name."""
    path = path_of(name)
    if not path.is_file():
        raise DanqingError(f"detector: there is no file '{name}'")
    if path.suffix.lower() != ".onnx":
        raise DanqingError(f"detector: '{name}' is no ONNX file; `yolo export model={path.name} format=onnx` makes one")
    return path


def _letterboxed(image: Image.Image, width: int, height: int) -> tuple[np.ndarray, float, int, int]:
    """((1, 3, height, width) float32 in [0, 1], scale, left, top): the picture whole, in the middle, on grey."""
    scale = min(width / image.width, height / image.height)
    inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    sheet = Image.new("RGB", (width, height), (_PAD, _PAD, _PAD))
    sheet.paste(image.convert("RGB").resize(inner, Image.Resampling.BILINEAR), (left, top))
    values = np.asarray(sheet, dtype=np.float32).transpose(2, 0, 1)[None] / 255
    return np.ascontiguousarray(values), scale, left, top


def read_yolo(
    outputs: Sequence[np.ndarray],
    size: tuple[int, int],
    scale: float,
    offset: tuple[int, int],
    network: tuple[int, int],
) -> list[Found]:
    """What a YOLO's outputs say of a picture of `size` that it saw at `scale`, moved by `offset`, on `network` pixels.

    Outputs: (1, 4 + classes + coefficients, N), rows of centre, width, height and class scores; and for masks the
    prototypes (1, coefficients, h, w), whose mixtures by the coefficients are the masks' logits (Bolya et al. 2019).
    """
    rows = outputs[0][0].T.astype(np.float64)
    prototypes = outputs[1][0] if len(outputs) == 2 else None
    classes = rows.shape[1] - 4 - (0 if prototypes is None else len(prototypes))
    scores = rows[:, 4 : 4 + classes]
    labels, confidence = scores.argmax(1), scores.max(1)
    half = rows[:, 2:4] / 2
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1)
    found = []
    for index in _distinct(boxes, confidence, labels):
        corners = (boxes[index].reshape(2, 2) - offset) / scale
        left, top, right, bottom = (float(value) for value in corners.clip(0, size).ravel())
        if right - left < 1 or bottom - top < 1:
            continue
        box = (left, top, right, bottom)
        mask = None
        if prototypes is not None:
            mask = _mask(rows[index, 4 + classes :], prototypes, box, size, scale, offset, network)
        found.append(Found(box, float(confidence[index]), int(labels[index]), mask))
    return found


def _distinct(boxes: np.ndarray, confidence: np.ndarray, labels: np.ndarray) -> list[int]:
    """The boxes that no surer one of their class covers, the surest first (non-maximum suppression)."""
    order = [int(i) for i in np.argsort(-confidence, kind="stable") if confidence[i] >= _LEAST]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    for index in order:
        rivals = [i for i in kept if labels[i] == labels[index]]
        if rivals:
            low = np.maximum(boxes[rivals, :2], boxes[index, :2])
            high = np.minimum(boxes[rivals, 2:], boxes[index, 2:])
            common = np.prod((high - low).clip(min=0), axis=1)
            if (common / (areas[rivals] + areas[index] - common + 1e-9)).max() > _OVERLAP:
                continue
        kept.append(index)
    return kept


def _mask(
    coefficients: np.ndarray,
    prototypes: np.ndarray,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    scale: float,
    offset: tuple[int, int],
    network: tuple[int, int],
) -> Image.Image:
    logits = np.tensordot(coefficients.astype(np.float32), prototypes.astype(np.float32), axes=1)
    small = Image.fromarray(logits.astype(np.float32)).resize(network, Image.Resampling.BILINEAR)
    inner = (*offset, offset[0] + round(size[0] * scale), offset[1] + round(size[1] * scale))
    whole = np.asarray(small.crop(inner).resize(size, Image.Resampling.BILINEAR)) > 0
    inside = np.zeros_like(whole)
    left, top, right, bottom = (round(side) for side in box)
    inside[top:bottom, left:right] = True
    return Image.fromarray((whole & inside).astype(np.uint8) * 255)
