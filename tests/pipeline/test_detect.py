"""Detectors: YOLO's outputs read, ONNX files run, what is no detector refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danqing.errors import DanqingError
from danqing.pipeline.detect import load_detector, read_yolo

ROWS = np.array(
    [
        # centre, width, height, scores of two classes
        [32, 32, 20, 20, 0.9, 0.1],
        [33, 32, 20, 20, 0.8, 0.1],  # the same thing again
        [33, 32, 20, 20, 0.1, 0.7],  # another class in the same place
        [10, 50, 8, 8, 0.01, 0.02],  # nothing
    ],
    dtype=np.float32,
)


def test_boxes_are_told_apart_and_brought_back_to_the_picture() -> None:
    found = read_yolo([ROWS.T[None]], (128, 64), 0.5, (0, 16), (64, 64))
    assert [(thing.label, round(thing.confidence, 2)) for thing in found] == [(0, 0.9), (1, 0.7)]
    assert found[0].box == (44, 12, 84, 52)
    assert found[0].area == 40 * 40


def test_masks_are_mixtures_of_prototypes_within_the_box() -> None:
    prototypes = np.full((1, 1, 16, 16), 5.0, dtype=np.float32)
    prototypes[..., :8] = -5  # the left half
    rows = np.concatenate([ROWS[:1], [[1.0]]], 1)
    (thing,) = read_yolo([rows.T[None], prototypes], (64, 64), 1.0, (0, 0), (64, 64))
    assert thing.mask is not None
    mask = np.asarray(thing.mask)
    assert (mask[25:40, 34:41] == 255).all()
    assert not mask[:, :30].any()
    assert not mask[:20].any()


def test_an_onnx_file_is_run(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("images", kind, [1, 3, 64, 64])
    output = helper.make_tensor_value_info("output0", kind, [1, 6, 4])
    constant = helper.make_tensor("rows", kind, [1, 6, 4], ROWS.T.flatten().tolist())
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Constant", [], ["rows"], value=constant),
        helper.make_node("Sub", ["mean", "mean"], ["zero"]),
        helper.make_node("Add", ["rows", "zero"], ["output0"]),
    ]
    graph = helper.make_graph(nodes, "yolo", [image], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "yolo.onnx")
    found = load_detector(str(tmp_path / "yolo.onnx"))(Image.new("RGB", (128, 64)))
    assert found[0].box == (44, 12, 84, 52)


def test_what_is_no_detector_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("x")
    for name, words in (("none.onnx", "there is no file"), ("weights.pt", "is no ONNX file")):
        with pytest.raises(DanqingError, match=words):
            load_detector(str(tmp_path / name))
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_text("x")
    with pytest.raises(DanqingError, match=r"bad\.onnx' cannot be read"):
        load_detector(str(tmp_path / "bad.onnx"))
