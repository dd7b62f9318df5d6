"""Faces: aligned, pasted back, and what is no face left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from danqing.errors import DanqingError
from danqing.library.settings import Settings
from danqing.pipeline.faces import (
    SIDE,
    TEMPLATE,
    Face,
    alignment,
    load_face_detector,
    load_restorer,
    network_restorer,
    restore_faces,
)
from spandrels import import_spandrel

Floats = np.ndarray


def _photograph(width: int = 640, height: int = 560) -> Image.Image:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / 23 + k) * np.cos(y / (19 + k)) for k in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 110 + 10).astype(np.uint8))


def _placed(scale: float, degrees: float, x: float, y: float) -> Floats:
    """The template's landmarks about (x, y), turned and scaled."""
    turn = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (TEMPLATE - SIDE / 2) @ matrix.T + [x, y]


def _white(aligned: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(aligned)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.1, 3), st.floats(-180, 180), st.floats(-500, 900), st.floats(-500, 900))
def test_alignment_finds_the_similarity_back(scale: float, degrees: float, x: float, y: float) -> None:
    landmarks = _placed(scale, degrees, x, y)
    aligned = np.c_[landmarks, np.ones(5)] @ alignment(landmarks).T
    np.testing.assert_allclose(aligned[:, :2], TEMPLATE, atol=1e-6)


def test_alignment_is_the_least_squares_similarity() -> None:
    landmarks = _placed(0.6, 12, 300, 250) + np.random.default_rng(0).normal(0, 6, (5, 2))
    # x' = a x - b y + c, y' = b x + a y + d
    rows = [[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in landmarks]
    a, b, c, d = np.linalg.lstsq(np.array(rows).reshape(10, 4), TEMPLATE.ravel(), rcond=None)[0]
    np.testing.assert_allclose(alignment(landmarks)[:2], [[a, -b, c], [b, a, d]], atol=1e-9)


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (0.5, 0.0), (0.45, 17.0), (0.3, -40.0)])
def test_a_restorer_that_does_nothing_leaves_the_picture(scale: float, degrees: float) -> None:
    image = _photograph()
    face = Face(_placed(scale, degrees, 320, 280))
    out, count = restore_faces(image, lambda _: [face], lambda aligned: aligned)
    difference = np.abs(np.asarray(out).astype(int) - np.asarray(image))
    assert count == 1
    assert difference.max() <= 1
    assert difference.mean() < 0.02


def test_only_the_face_changes_and_fades_in() -> None:
    image = _photograph()
    out, _ = restore_faces(image, lambda _: [Face(_placed(0.5, 0, 320, 280))], _white)
    before, after = np.asarray(image).astype(int), np.asarray(out).astype(int)
    changed = (before != after).any(-1)
    # the aligned square of 512 is 256 here, about (320, 280)
    assert not changed[: 280 - 129].any()
    assert not changed[280 + 129 :].any()
    assert not changed[:, : 320 - 129].any()
    assert not changed[:, 320 + 129 :].any()
    assert (after[280 - 90 : 280 + 90, 320 - 90 : 320 + 90] == 255).all()
    steps = np.diff((after - before).max(-1)[280, 190:240])
    assert np.abs(steps).max() < 60  # no hard edge: a pasted white square would jump by up to 245


def test_visibility_mixes_and_none_is_the_same_bits() -> None:
    image = _photograph()
    faces = [Face(_placed(0.5, 0, 320, 280))]
    half, _ = restore_faces(image, lambda _: faces, _white, 0.5)
    centre = np.asarray(image)[280, 320].astype(float)
    np.testing.assert_allclose(np.asarray(half)[280, 320], (centre + 255) / 2, atol=1)
    none, count = restore_faces(image, lambda _: faces, _white, 0.0)
    assert (none.tobytes(), count) == (image.tobytes(), 0)
    nobody, count = restore_faces(image, lambda _: [], _white)
    assert (nobody.tobytes(), count) == (image.tobytes(), 0)


def test_a_face_at_the_edge_larger_than_the_picture_and_a_tiny_one() -> None:
    image = _photograph(200, 150)
    for scale, x, y in [(0.5, 0, 0), (0.5, 199, 149), (2.0, 100, 75), (0.02, 100, 75)]:
        faces = [Face(_placed(scale, 5, x, y))]
        out, count = restore_faces(image, lambda _, faces=faces: faces, lambda aligned: aligned)
        assert (out.size, count) == (image.size, 1)
        assert np.abs(np.asarray(out).astype(int) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_alpha_are_kept(mode: str) -> None:
    image = _photograph(300, 300).convert("L").convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    out, _ = restore_faces(image, lambda _: [Face(_placed(0.3, 0, 150, 150))], _white)
    assert out.mode == mode
    if "A" in mode:
        assert out.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_landmarks_of_one_point_and_a_visibility_that_is_none() -> None:
    image = _photograph(64, 64)
    with pytest.raises(DanqingError, match="one point"):
        restore_faces(image, lambda _: [Face(np.full((5, 2), 30.0))], _white)
    with pytest.raises(DanqingError, match="from 0 to 1"):
        restore_faces(image, lambda _: [], _white, 1.5)


class _Model(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: float = -1.0, randomize_noise: bool = True) -> tuple[torch.Tensor, int]:
        assert x.min() < 0  # pixels in [-1, 1]
        return x * weight if weight >= 0 else x * (0.0 if randomize_noise else 0.5), 0


class _Descriptor:
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, name: str) -> None:
        self.architecture = type("Architecture", (), {"id": name})
        self.model = _Model()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - x


def test_ranges_and_fidelity_of_the_architectures() -> None:
    aligned = torch.rand(1, 3, 8, 8)
    signed = aligned * 2 - 1
    torch.testing.assert_close(network_restorer(_Descriptor("CodeFormer"), 0.25)(aligned), signed * 0.25 / 2 + 0.5)
    torch.testing.assert_close(network_restorer(_Descriptor("GFPGAN"), 0.25)(aligned), signed * 0.5 / 2 + 0.5)
    torch.testing.assert_close(network_restorer(_Descriptor("RestoreFormer"), 0.25)(aligned), 1 - aligned)


def test_an_upscaler_is_no_face_restorer(tmp_path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    path = tmp_path / "4x.pth"
    torch.save(ESRGAN(num_blocks=1, num_filters=8).state_dict(), path)
    own = Settings(path=tmp_path / "config.toml", data_dir=tmp_path)
    with pytest.raises(DanqingError, match="ESRGAN, which is no face restorer"):
        load_restorer(path, device="cpu", settings=own)
    with pytest.raises(DanqingError, match="fidelity"):
        load_restorer(path, fidelity=2, device="cpu", settings=own)


def test_a_file_that_is_no_yunet(tmp_path: Path) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(DanqingError, match="OpenCV reads no YuNet"):
        load_face_detector(path, settings=Settings(path=tmp_path / "config.toml", data_dir=tmp_path))


def test_a_drawn_face_is_where_it_was() -> None:
    """Colours go to the restorer in RGB and upright: the left eye of the template is left in the aligned face."""
    image = Image.new("RGB", (400, 400), (10, 10, 10))
    landmarks = _placed(0.4, 0, 200, 200)
    draw = ImageDraw.Draw(image)
    for (x, y), colour in zip(landmarks, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]):
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    seen: list[torch.Tensor] = []

    def keep(aligned: torch.Tensor) -> torch.Tensor:
        seen.append(aligned)
        return aligned

    restore_faces(image, lambda _: [Face(landmarks)], keep)
    (aligned,) = seen
    assert aligned.shape == (1, 3, SIDE, SIDE)
    for (x, y), colour in zip(TEMPLATE.round().astype(int), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]):
        torch.testing.assert_close(aligned[0, :, y, x], torch.tensor(colour, dtype=torch.float32), atol=0.02, rtol=0)
