"""Preprocessors with weights: files known by what they hold, and what is drawn of their networks' answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

from danqing.adapters import annotators
from danqing.adapters.annotators import ARCHITECTURES, find_preprocessor, load_network, module_of
from danqing.errors import DanqingError
from danqing.models.line_art import LineArt
from danqing.models.mlsd import MLSD


class Answers(nn.Module):
    """A network that answers what it is told, and remembers what it was shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answer, self.shown = answer, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.shown = x
        return self.answer


def scene(width: int = 52, height: int = 38) -> Image.Image:
    image = Image.new("RGB", (width, height), (210, 180, 150))
    ImageDraw.Draw(image).rectangle((10, 10, 30, 25), fill=(20, 40, 90))
    return image


def test_every_file_is_known_by_its_tensors(tmp_path: Path) -> None:
    for index, known in enumerate(ARCHITECTURES):
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in known.build().state_dict().items()}
        assert set(known.marks) <= set(shapes)
        part = {f"module.{name}": torch.zeros(shapes[name]) for name in known.marks}
        path = tmp_path / f"{index}.safetensors"
        save_file(part, path)
        assert module_of(path).name == known.module
        with pytest.raises(DanqingError, match=f"is not a whole {known.title}: {len(shapes) - len(part)} missing"):
            load_network(path, known.title)
    with pytest.raises(DanqingError, match=r"is an M-LSD, not a PiDiNet"):
        load_network(tmp_path / "4.safetensors", "PiDiNet")


PUBLISHED = {"HED": 2 * 29.4, "PiDiNet": 2.87, "line art network": 17.2, "anime line art network": 218, "M-LSD": 6.34,
             "OpenPose body network": 209, "OpenPose hand network": 147, "OpenPose face network": 154}  # fmt: skip
"""Millions of bytes of the files as lllyasviel/Annotators lists them, HED's two times, which is in half precision."""


def test_published_sizes() -> None:
    for known in ARCHITECTURES:
        with torch.device("meta"):
            numbers = sum(tensor.numel() for tensor in known.build().state_dict().values())
        assert 4 * numbers / 1e6 == pytest.approx(PUBLISHED[known.title], rel=0.03), known.title


@pytest.mark.parametrize(("width", "height"), [(52, 38), (7, 3), (1, 1)])
def test_files_draw_at_any_size(width: int, height: int, tmp_path: Path) -> None:
    for known, name in ((LineArt, "lineart"), (MLSD, "mlsd")):
        torch.manual_seed(0)
        save_file(known().state_dict(), tmp_path / "net.safetensors")
        for made in (
            find_preprocessor(name, [tmp_path / "net.safetensors"]),
            find_preprocessor(f"{tmp_path}/net.safetensors"),
        ):
            drawn = made(scene(width, height))
            assert drawn.size == (width, height)
            assert drawn.mode == "RGB"


def test_line_drawings_are_white_on_black() -> None:
    network = Answers(torch.ones(1, 1, 40, 52))
    network.answer[..., 20, :] = 0.25
    drawn = np.asarray(annotators.line_drawing(network)(scene()))  # type: ignore[arg-type]
    assert drawn.shape == (38, 52, 3)
    assert (drawn[20] == 255 - 63).all()
    assert np.delete(drawn, 20, 0).max() == 0
    assert network.shown.shape == (1, 3, 40, 52)
    assert torch.allclose(network.shown[0, :, 0, 0] * 255, torch.tensor([210.0, 180, 150]))


def test_anime_drawings_are_white_on_black() -> None:
    network = Answers(torch.ones(1, 1, 256, 256))
    network.answer[..., 128:, :] = -1
    drawn = np.asarray(annotators.anime_drawing(network)(scene(128, 64)))  # type: ignore[arg-type]
    assert drawn.shape == (64, 128, 3)
    assert drawn[:30].max() == 0
    assert drawn[34:].min() == 255
    assert torch.allclose(network.shown[0, :, 0, 0], torch.tensor([210.0, 180, 150]) / 127.5 - 1)


def test_a_straight_line() -> None:
    """A middle at (8, 10) of the maps, ends 6 to the left and right: a level line at the picture's double."""
    maps = torch.full((1, 9, 32, 32), -9.0)
    maps[0, :5, 10, 8] = torch.tensor([2.0, -6, 0, 6, 0])
    network = Answers(maps)
    draw = annotators.straight_lines(network)  # type: ignore[arg-type]
    drawn = np.asarray(draw(scene(64, 64)))[..., 0]
    assert network.shown.shape == (1, 4, 64, 64)
    assert network.shown[0, 3, 0, 0] == pytest.approx(1 / 127.5 - 1)
    ys, xs = np.nonzero(drawn)
    assert (set(ys), xs.min(), xs.max(), len(xs)) == ({20}, 4, 28, 25)
    assert np.asarray(draw(scene(64, 64), score=0.9)).max() == 0
    assert np.asarray(draw(scene(64, 64), distance=12.5)).max() == 0
    wide = np.asarray(draw(scene(120, 64)))[..., 0]  # seen at 128 x 64
    assert np.nonzero(wide)[1].max() == int(28 * 120 / 128)


def test_soft_edges_safe_and_as_strokes() -> None:
    sure = torch.tensor([0.1, 0.4, 0.7, 0.999]).repeat_interleave(8).expand(1, 1, 32, 32)
    safe = np.asarray(annotators.soft_edges(Answers(sure), safe=True)(scene(32, 32)))  # type: ignore[arg-type]
    assert safe[0, ::8, 0].tolist() == [0, 127, 255, 255]
    ridge = torch.zeros(1, 1, 48, 48)
    ridge[..., 20:26, :] = 1
    for make in (annotators.soft_edges, annotators.pidinet_edges):
        drawn = np.asarray(make(Answers(ridge), strokes=True)(scene(48, 48)))[..., 0]  # type: ignore[arg-type]
        assert set(np.unique(drawn)) == {0, 255}
        assert drawn[22:24].min() == 255
        assert drawn[:10].max() == drawn[-10:].max() == 0


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for name, line in (
        (
            "lineart_coarse",
            r"needs sk_model2\.pth \(huggingface\.co/lllyasviel/Annotators\); put it into .* preprocessors, or",
        ),
        ("openpose_full", r"needs body_pose_model\.pth and hand_pose_model\.pth and facenet\.pth"),
        ("depth_anything", "needs a folder of a model of depth estimation in transformers' layout"),
    ):
        with pytest.raises(DanqingError, match=line):
            find_preprocessor(name)
    save_file({"Mconv7_stage6.weight": torch.zeros(22, 1, 1, 1)}, tmp_path / "hand.safetensors")
    with pytest.raises(DanqingError, match="is one of several files; write 'openpose hand' for the module"):
        find_preprocessor(str(tmp_path / "hand.safetensors"))
    with pytest.raises(DanqingError, match="in transformers' layout"):
        find_preprocessor(f"depth:{tmp_path}")
