"""Faces restored: found, aligned, given to a network, and pasted back.

The template is that of FFHQ at 512 pixels, which GFPGAN (Wang et al. 2021), CodeFormer (Zhou et al. 2022) and
RestoreFormer (Wang et al. 2022) were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from danqing.errors import DanqingError
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.networks import load_network
from danqing.pipeline.upscale import plain
from danqing.runtime.devices import pick_device

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

SIDE = 512
TEMPLATE: Floats = np.array(
    # facexlib 0.3.0, FaceRestoreHelper.face_template for 512 pixels
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""Where an aligned face has its landmarks: the eyes, the nose's tip, the mouth's corners, each left one first."""
FEATHER = 32
"""Pixels of the aligned face over which the restored one fades into the picture."""
DETECTOR_SIDE = 1280
"""Larger pictures are shrunk to this for finding faces, whose size in the picture a detector was trained for."""


@dataclass(frozen=True)
class Face:
    """A face in a picture."""

    landmarks: Floats
    """(5, 2) x and y in pixels, in `TEMPLATE`'s order: left and right as they are seen."""
    confidence: float = 1.0


Detector = Callable[[Image.Image], Sequence[Face]]
"""An RGB picture -> its faces."""
Restorer = Callable[[Tensor], Tensor]
"""An aligned face (1, 3, 512, 512) in [0, 1] -> the restored one, likewise."""


def restore_faces(
    image: Image.Image, detect: Detector, restore: Restorer, visibility: float = 1.0
) -> tuple[Image.Image, int]:
    """(`image` with its faces restored, how many were found); what is no face keeps its bits, alpha is kept.

    `visibility` in [0, 1] is how much of a restored face shows. Raises DanqingError for another.
    """
    if not 0 <= visibility <= 1:
        raise DanqingError(f"face visibility: should be from 0 to 1, but it is {visibility:g}")
    image = plain(image)
    pixels = _tensor(image.convert("RGB"))
    faces = detect(image.convert("RGB")) if visibility else ()
    result = pixels.clone()
    for face in faces:
        matrix = alignment(face.landmarks)
        # every face is taken from the picture as it was
        aligned = _warped(pixels, np.linalg.inv(matrix), (0, 0, SIDE, SIDE), "reflection").clamp(0, 1)
        with torch.no_grad():
            restored = restore(aligned).float().cpu().clamp(0, 1)
        left, top, right, bottom = box = _reach(matrix, image.size)
        if left >= right or top >= bottom:
            continue
        layer = _warped(restored, matrix, box, "border")
        weight = _warped(_mask(), matrix, box, "zeros").clamp(0, 1) * visibility
        part = result[:, :, top:bottom, left:right]
        part += (layer - part) * weight
    if not faces:
        return image, 0
    values = (result[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    out = Image.fromarray(values).convert(image.mode.replace("A", ""))
    if "A" in image.mode:
        out.putalpha(image.getchannel("A"))
    return out, len(faces)


def alignment(landmarks: Floats) -> Floats:
    """(3, 3): the similarity that brings `landmarks` (N, 2) nearest to `TEMPLATE` (Umeyama 1991, equations 40 to 42).

    Picture coordinates to the aligned face's. Raises DanqingError for landmarks that are all one point.
    """
    source, target = np.asarray(landmarks, dtype=np.float64), TEMPLATE
    centre, goal = source.mean(0), target.mean(0)
    spread = ((source - centre) ** 2).sum(1).mean()
    if not np.isfinite(spread) or spread < 1e-6:
        raise DanqingError("a detector found a face whose landmarks are one point; its weights are damaged")
    u, values, v = np.linalg.svd((target - goal).T @ (source - centre) / len(source))
    flip = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ flip @ v
    scale = (values * np.diag(flip)).sum() / spread
    matrix = np.eye(3)
    matrix[:2, :2] = scale * turn
    matrix[:2, 2] = goal - scale * turn @ centre
    return matrix


def _warped(pixels: Tensor, inverse: Floats, box: tuple[int, int, int, int], beyond: str) -> Tensor:
    """The part `box` (left, top, right, bottom) of `pixels` (1, C, H, W) through a similarity, (1, C, h, w).

    `inverse` leads from the new pixels back to the old. Bicubic; where the picture shrinks to less than a half it is
    first averaged, so that nothing is skipped. `beyond` its edges as torch's `grid_sample` has it.
    """
    factor = max(int(np.sqrt(abs(np.linalg.det(inverse[:2, :2])))), 1)
    if factor > 1:
        pixels = F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False)
    left, top, right, bottom = box
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    places = np.stack([x, y, np.ones_like(x)], -1) @ inverse[:2].T / factor  # (h, w, 2)
    grid = torch.from_numpy(places / np.array([pixels.shape[-1], pixels.shape[-2]]) * 2 - 1).float()[None]
    return F.grid_sample(pixels, grid, mode="bicubic", padding_mode=beyond, align_corners=False)


def _reach(matrix: Floats, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a picture of `size` in which the aligned square lies: left, top, right, bottom."""
    corners = np.array([(0, 0, 1), (SIDE, 0, 1), (0, SIDE, 1), (SIDE, SIDE, 1)]) @ np.linalg.inv(matrix)[:2].T
    low, high = np.floor(corners.min(0)), np.ceil(corners.max(0))
    left, top = (int(min(max(value, 0), side)) for value, side in zip(low, size))
    right, bottom = (int(min(max(value, 0), side)) for value, side in zip(high, size))
    return left, top, right, bottom


def _mask() -> Tensor:
    """(1, 1, SIDE, SIDE): 1, falling to 0 along the edges as half a cosine."""
    at = torch.arange(SIDE) + 0.5
    edge = ((torch.minimum(at, SIDE - at) - 4) / FEATHER).clamp(0, 1)
    weight = 0.5 - 0.5 * torch.cos(torch.pi * edge)
    return torch.minimum(weight[:, None], weight)[None, None]


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def load_restorer(
    name: str | Path, *, fidelity: float = 0.5, device: str | None = None, settings: Settings | None = None
) -> Restorer:
    """The face restorer of that path or name: GFPGAN, RestoreFormer, and with spandrel-extra-arches CodeFormer.

    `fidelity` in [0, 1] is CodeFormer's weight: 0 restores most, 1 stays nearest to what is there; others have none.
    Raises DanqingError for an unknown name, a file that holds no face restorer, a fidelity that is none.
    """
    if not 0 <= fidelity <= 1:
        raise DanqingError(f"fidelity: should be from 0 to 1, but it is {fidelity:g}")
    settings = settings or load_settings()
    path = find(str(name), "face_restorer", settings).path
    target = pick_device(device or settings.device)
    network = load_network(path, target)
    if network.purpose != "FaceSR":
        raise DanqingError(f"{path}: holds {network.architecture.name}, which is no face restorer")
    return network_restorer(network, fidelity)


def network_restorer(network: Any, fidelity: float) -> Restorer:
    """A restorer of spandrel's descriptor; `fidelity` is CodeFormer's.

    GFPGAN and CodeFormer take and give [-1, 1], which spandrel leaves to its caller. GFPGAN's noise is the one in its
    file, so that the same picture always comes out the same.
    """
    known: dict[str, dict[str, Any]] = {"GFPGAN": {"randomize_noise": False}, "CodeFormer": {"weight": fidelity}}
    options = known.get(network.architecture.id)

    def restore(aligned: Tensor) -> Tensor:
        aligned = aligned.to(network.device, network.dtype)
        if options is None:
            output: Tensor = network(aligned)
            return output
        output = network.model(aligned * 2 - 1, **options)[0]
        return output / 2 + 0.5

    return restore


def load_face_detector(name: str | Path, *, threshold: float = 0.6, settings: Settings | None = None) -> Detector:
    """YuNet (Wu et al. 2023) from its .onnx file, by path or name, through OpenCV; ONNX files hold no code.

    OpenCV's model zoo gives the file (face_detection_yunet_2023mar.onnx, MIT). `threshold` in [0, 1] is how sure it
    has to be. Raises DanqingError for an unknown name or another file.
    """
    path = find(str(name), "face_detector", settings or load_settings()).path
    try:
        network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), threshold, 0.3, 5000)
    except cv2.error as error:
        raise DanqingError(f"{path}: OpenCV reads no YuNet from it: {_short(error)}") from None

    def detect(image: Image.Image) -> list[Face]:
        shrink = min(DETECTOR_SIDE / max(image.size), 1.0)
        small = image if shrink == 1 else image.resize([max(round(side * shrink), 1) for side in image.size])
        back = np.array(image.size) / np.array(small.size)
        network.setInputSize(small.size)
        try:
            _, rows = network.detect(np.ascontiguousarray(np.asarray(small)[..., ::-1]))
        except cv2.error as error:
            raise DanqingError(f"{path}: is no YuNet that finds faces: {_short(error)}") from None
        # a row: box (4), right eye, left eye, nose, right and left corner of the mouth as the person has them, score
        rows = np.empty((0, 15)) if rows is None else np.asarray(rows, dtype=np.float64)
        return [Face(row[4:14].reshape(5, 2) * back, float(row[14])) for row in rows]

    return detect


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
