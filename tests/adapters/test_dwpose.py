"""DWPose: what its two networks answer becomes people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from danqing.adapters import dwpose
from danqing.adapters.annotators import find_preprocessor
from danqing.adapters.pose import COLOURS
from danqing.errors import DanqingError


def rows(*found: tuple[int, int, int, float, float, float]) -> np.ndarray:
    """YOLOX' answer (1, 8400, 85): (row of cells of 32, column, class, log width, log height, how sure)."""
    answer = np.zeros((1, 8400, 85), np.float32)
    for row, column, label, wide, high, sure in found:
        place = answer[0, 80 * 80 + 40 * 40 + row * 20 + column]
        place[:4] = (0.5, 0.25, wide, high)
        place[4], place[5 + label] = 1, sure
    return answer


def test_boxes_of_people() -> None:
    shown = []

    def run(x: np.ndarray) -> list[np.ndarray]:
        shown.append(x)
        return [rows((5, 3, 0, 1.0, 1.5, 0.9), (5, 4, 0, 1.0, 1.5, 0.5), (9, 9, 1, 1, 1, 0.9), (12, 12, 0, 1, 1, 0.2))]

    image = np.zeros((160, 320, 3), np.float32)
    image[..., 0] = 200
    (box,) = dwpose.people_boxes(run, image)  # the second covers the first, the third is no person, the last unsure
    middle, sides = np.array([3.5, 5.25]) * 32 / 2, np.exp([1.0, 1.5]) * 32 / 2  # seen at twice the size
    assert np.allclose(box, [*(middle - sides / 2), *(middle + sides / 2)], atol=1e-3)
    assert shown[0].shape == (1, 3, 640, 640)
    assert shown[0][0, :, 10, 10].tolist() == [0, 0, 200]
    assert shown[0][0, :, 600, 10].tolist() == [114, 114, 114]


def bars(places: dict[int, tuple[int, int]], sure: float = 0.8) -> list[np.ndarray]:
    x, y = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
    for part, (px, py) in places.items():
        x[0, part, 2 * px], y[0, part, 2 * py] = sure, sure
    return [x, y]


def test_points_in_a_box() -> None:
    shown = []

    def run(x: np.ndarray) -> list[np.ndarray]:
        shown.append(x)
        return bars({0: (144, 192), 5: (0, 0), 6: (288 - 1, 384 - 1)})

    image = np.full((200, 300, 3), 123.675, np.float32)
    points, sure = dwpose.points_in(run, image, (100, 40, 160, 120))
    assert shown[0].shape == (1, 3, 384, 288)
    assert shown[0][0, 0, 192, 144] == pytest.approx(0, abs=1e-4)
    sides = np.array([75, 100])  # 1.25 times, and wide enough: 100 high asks for 75
    corner = np.array([130, 80]) - sides / 2
    assert np.allclose(points[0], [130, 80], atol=1e-3)
    assert np.allclose(points[5], corner, atol=1e-3)
    assert np.allclose(points[6], corner + sides * (287 / 288, 383 / 384), atol=1e-3)
    assert sure[0] == pytest.approx(0.8)
    assert sure[1] == 0


def test_whole_body_to_openpose() -> None:
    points = np.stack([np.arange(133), 200 + np.arange(133)], -1).astype(np.float32)
    sure = np.ones(133, np.float32)
    sure[[9, 40]] = 0.2
    person = dwpose.person_of(points, sure)
    numbers = [None if point is None else int(point[0]) for point in person.body]
    # nose, neck (between shoulders 5 and 6), right arm, left arm, right leg, left leg, eyes, ears
    assert numbers == [0, 5, 6, 8, 10, 5, 7, None, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert person.body[1] == (5.5, 205.5)
    assert [int(hand[0][0]) for hand in person.hands if hand[0]] == [91, 112]
    assert [len(hand) for hand in person.hands] == [21, 21]
    assert len(person.face) == 70
    assert person.face[17] is None
    assert person.face[68:] == (points_of(2), points_of(1))
    sure[5] = 0.1
    assert dwpose.person_of(points, sure).body[1] is None


def points_of(index: int) -> tuple[float, float]:
    return float(index), 200.0 + index


def constant(path: Path, size: tuple[int, int], answers: list[np.ndarray]) -> None:
    """An ONNX file that looks at (1, 3, *size) and always gives the same."""
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *size])
    names = [f"answer{index}" for index in range(len(answers))]
    nodes = [
        helper.make_node("ReduceSum", ["input"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nil"], ["no"]),
    ]
    nodes += [helper.make_node("Add", [f"c{index}", "no"], [name]) for index, name in enumerate(names)]
    kept = [numpy_helper.from_array(answer, f"c{index}") for index, answer in enumerate(answers)]
    kept.append(numpy_helper.from_array(np.zeros((), np.float32), "nil"))
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in zip(names, answers)]
    graph = helper.make_graph(nodes, "constant", [given], outputs, kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_from_two_files(tmp_path: Path) -> None:
    finder, teller = tmp_path / "yolox_l.onnx", tmp_path / "dw-ll_ucoco_384.onnx"
    constant(finder, (640, 640), [rows()])
    constant(teller, (384, 288), bars({0: (144, 192), 5: (200, 250), 6: (90, 250)}))
    drawn = np.asarray(find_preprocessor("dw_openpose_full", [finder, teller])(Image.new("RGB", (90, 120), "white")))
    assert tuple(drawn[60, 45]) == COLOURS[0]  # nobody is found, so the picture itself is looked at
    assert tuple(drawn[int(60 + (250 - 192) * 150 / 384), int(45 + 1 * 112.5 / 288)]) == COLOURS[1]
    with pytest.raises(DanqingError, match="is another network than DWPose's"):
        find_preprocessor("dw openpose", [teller, finder])
    with pytest.raises(
        DanqingError, match=r"needs yolox_l\.onnx and dw-ll_ucoco_384\.onnx \(huggingface\.co/yzd-v/DWPose\)"
    ):
        find_preprocessor("dw openpose")
    finder.write_bytes(b"no network")
    with pytest.raises(DanqingError, match="cannot be read"):
        find_preprocessor("dw openpose", [finder, teller])
