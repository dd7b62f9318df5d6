"""What is made of a picture before a network is shown it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from danqing.adapters import preprocess
from danqing.adapters.annotators import find_preprocessor
from danqing.adapters.preprocess import PREPROCESSORS, inpaint_hint, to_hint
from danqing.errors import DanqingError
from danqing.vocabulary import MODULES, find_module


def drawing(width: int = 96, height: int = 72) -> Image.Image:
    """A gradient with a disc and a line, and noise, so that every direction has edges."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    image = Image.fromarray((np.stack([x, y, 200 - x], -1) + noise).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 12, 60, 52), fill=(230, 30, 20))
    pen.line((4, 66, 90, 8), fill=(0, 0, 0), width=2)
    return image


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int32)


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("size", [(96, 72), (7, 3), (1, 1)])
def test_every_one_keeps_the_size_and_the_picture(name: str, size: tuple[int, int]) -> None:
    image = drawing().resize(size)
    before = array(image)
    made = PREPROCESSORS[name](image)
    assert made.size == size
    assert made.mode == "RGB"
    np.testing.assert_array_equal(array(image), before)
    np.testing.assert_array_equal(array(made), array(PREPROCESSORS[name](image)))
    assert PREPROCESSORS[name](image.convert("L")).size == size


@pytest.mark.parametrize("name", sorted(set(PREPROCESSORS) - {"none", "tile"}))
def test_every_one_does_something(name: str) -> None:
    made = array(PREPROCESSORS[name](drawing()))
    assert (made != array(drawing())).any()
    assert made.std() > 5


def test_canny_has_fewer_edges_at_higher_thresholds() -> None:
    made = [array(preprocess.canny(drawing(), low, high))[..., 0] for low, high in ((30, 60), (100, 200), (300, 600))]
    counts = [(edges > 0).sum() for edges in made]
    assert counts[0] > counts[1] > counts[2] > 0
    assert set(np.unique(made[1])) == {0, 255}
    with pytest.raises(DanqingError, match="should rise"):
        preprocess.canny(drawing(), 200, 100)


def test_blur_keeps_brightness_and_loses_detail() -> None:
    first, more = (array(preprocess.blur(drawing(), sigma)) for sigma in (1, 9))
    assert array(drawing()).std() > first.std() > more.std()
    assert abs(first.mean() - array(drawing()).mean()) < 2


def test_luminance_and_intensity_of_known_colours() -> None:
    colours = Image.fromarray(np.array([[(0, 0, 0), (255, 255, 255), (255, 0, 0), (119, 119, 119)]], dtype=np.uint8))
    found = array(preprocess.luminance(colours))[0, :, 0]
    assert np.abs(found - [0, 255, 135.8, 127.6]).max() <= 1  # L* is 53.24 of red, 50.03 of 119
    assert array(preprocess.intensity(colours))[0, :, 0].tolist() == [0, 255, 255, 119]


def test_threshold_finds_its_level() -> None:
    grey = Image.fromarray(np.array([[10, 20, 30, 40, 180, 190, 200, 210]], dtype=np.uint8))
    assert array(preprocess.threshold(grey))[0, :, 0].tolist() == [0, 0, 0, 0, 255, 255, 255, 255]


def test_threshold_at_a_level() -> None:
    grey = Image.fromarray(np.array([[0, 99, 100, 101, 255]], dtype=np.uint8))
    assert array(preprocess.threshold(grey, 100))[0, :, 0].tolist() == [0, 0, 0, 255, 255]


def test_lines_of_a_drawing() -> None:
    """A black line on white paper is found as white on black, and nothing besides it."""
    paper = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(paper).line((32, 0, 32, 63), fill="black", width=2)
    for made in (array(preprocess.line_art(paper)), array(preprocess.scribble(paper))):
        assert made[32, 32, 0] > 100
        assert made[:, :8].max() == made[:, 56:].max() == 0
    assert array(preprocess.invert(paper))[32, 32].tolist() == [255, 255, 255]


def test_an_even_picture_has_no_lines() -> None:
    even = Image.new("RGB", (40, 30), (120, 130, 140))
    for name in ("canny", "scribble", "line art"):
        assert array(PREPROCESSORS[name](even)).max() == 0


def test_tile_loses_detail() -> None:
    np.testing.assert_array_equal(array(preprocess.tile(drawing())), array(drawing()))
    assert array(preprocess.tile(drawing(), 8)).std() < array(drawing()).std()
    with pytest.raises(DanqingError, match="at least 1"):
        preprocess.tile(drawing(), 0.5)


def test_shuffle_moves_pixels_by_its_seed() -> None:
    first, again, other = (array(preprocess.shuffle(drawing(), seed, 32)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    red = np.array([230, 30, 20])
    there, before = (np.abs(image - red).max(-1) <= 1 for image in (first, array(drawing())))
    assert there.sum() > 20  # the disc is still there, and elsewhere
    assert (there != before).sum() > 100


def test_hints() -> None:
    hint = to_hint(drawing())
    assert hint.shape == (1, 3, 72, 96)
    assert torch.equal((hint * 255).round().to(torch.int32)[0].permute(1, 2, 0), torch.from_numpy(array(drawing())))
    clear = drawing().convert("RGBA")
    clear.putalpha(0)
    assert to_hint(clear).abs().max() == 0
    mask = Image.new("L", (96, 72))
    ImageDraw.Draw(mask).rectangle((10, 20, 29, 39), fill=255)
    hidden = inpaint_hint(drawing(), mask)
    assert (hidden[0, :, 20:40, 10:30] == -1).all()
    assert int((hidden == -1).sum()) == 3 * 20 * 20
    assert torch.equal(hidden[..., 60:], hint[..., 60:])
    with pytest.raises(DanqingError, match="mask: is 5x5"):
        inpaint_hint(drawing(), Image.new("L", (5, 5)))


def test_names() -> None:
    assert find_preprocessor(" Canny ") is preprocess.canny
    assert find_preprocessor("lineart_standard (from white bg & black line)") is preprocess.line_art
    with pytest.raises(DanqingError, match="no preprocessor is called 'hedge'"):
        find_preprocessor("hedge")
    with pytest.raises(DanqingError, match="should rise from 0"):
        preprocess.canny(drawing(), 200, 100)
    weightless = {module.name for module in MODULES if not module.files}
    assert weightless == {*PREPROCESSORS, "inpaint"}
    assert find_module("Softedge HED")[0] is find_module("soft_edge")[0]
    assert find_module("depth: C:/models/depth")[1] == "C:/models/depth"
    names = [name for module in MODULES for name in (module.name, *module.aliases)]
    assert len(set(names)) == len(names)


def test_numbers() -> None:
    few = find_preprocessor("canny", threshold_a=300, threshold_b=600)(drawing())
    np.testing.assert_array_equal(array(few), array(preprocess.canny(drawing(), 300, 600)))
    soft = find_preprocessor("blur_gaussian", threshold_a=2)(drawing())
    np.testing.assert_array_equal(array(soft), array(preprocess.blur(drawing(), 2)))
    for module in MODULES:
        if module.files or not module.thresholds:
            continue
        numbers = {"threshold_a": module.thresholds[0].default}  # what is unset is the default
        same = find_preprocessor(module.name, **numbers)(drawing())
        np.testing.assert_array_equal(array(same), array(find_preprocessor(module.name)(drawing())))
    with pytest.raises(DanqingError, match="'inpaint' is made of a picture and its mask"):
        find_preprocessor("inpaint_only")
    with pytest.raises(DanqingError, match="'invert' takes no threshold_a"):
        find_preprocessor("invert", threshold_a=1)
