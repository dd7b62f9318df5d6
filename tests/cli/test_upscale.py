"""`danqing upscale`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin

from danqing.checkpoints.hashes import sha256
from danqing.metadata.files import read_picture
from danqing.metadata.read import tell
from danqing.pipeline.extras import postprocessed
from danqing.request_parts import Reference
from danqing.requests import Upscale
from spandrels import import_spandrel


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    path = tmp_path_factory.mktemp("networks") / "tiny4x.pth"
    torch.save({"params_ema": ESRGAN(num_blocks=1, num_filters=8).state_dict()}, path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a castle\nSteps: 20, Sampler: Euler, Seed: 7")
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(tmp_path / "castle.png", pnginfo=texts)
    return tmp_path / "castle.png"


def test_a_picture_on_its_side_is_turned_and_measured_upright(run, tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (40, 30)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "side.png", exif=exif)
    assert run("upscale", tmp_path / "side.png", "--scale", 2, "-o", "big.png").code == 0
    with Image.open("big.png") as big:
        assert big.size == (60, 80)
        assert big.text["parameters"] == "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"


def test_a_picture_by_scale_keeps_its_infotext(run, picture: Path, tmp_path: Path) -> None:
    answer = run("upscale", picture, "--scale", 2.5, "-o", "big.png")
    assert (answer.code, answer.out.strip()) == (0, "wrote big.png")
    with Image.open("big.png") as big:
        assert big.size == (100, 75)
        assert big.text["parameters"] == (
            "a castle\nSteps: 20, Sampler: Euler, Seed: 7, Postprocess upscale by: 2.5, Postprocess upscaler: Lanczos"
        )


def test_what_was_done_is_told_in_automatic1111s_words(picture: Path) -> None:
    image = Image.open(picture)
    asked = Upscale(
        upscaler="/models/4x-UltraSharp.pth", width=80, height=80, upscaler_2="Nearest", upscaler_2_visibility=0.25,
        face_restorer="codeformer-v0.1.0", face_visibility=0.5, fidelity=0.2,
    )  # fmt: skip
    assert postprocessed({}, asked, image, image.resize((80, 80))) == (
        "Postprocess upscale to: 80x80, Postprocess crop to: 80x80, Postprocess upscaler: 4x-UltraSharp.pth, "
        "Postprocess upscaler 2: Nearest, Postprocess upscaler 2 visibility: 0.25, "
        "CodeFormer visibility: 0.5, CodeFormer weight: 0.2"
    )
    for name, told in (("GFPGANv1.4.pth", "GFPGAN visibility: 1"), ("RestoreFormer", "Face restorer visibility: 1")):
        assert told in postprocessed({"parameters": "a"}, Upscale(face_restorer=name), image, image.resize((80, 60)))


def test_the_settings_say_the_format(run, picture: Path) -> None:
    run("config", "output_format", "webp")
    run("config", "picture_lossless", "false")
    assert run("upscale", picture, "-o", "out").out.strip() == "wrote out/castle.webp"
    small = Path("out/castle.webp").stat().st_size
    run("config", "picture_lossless", "true")
    assert run("upscale", picture, "-o", "out").out.strip() == "wrote out/castle-2.webp"
    with Image.open("out/castle-2.webp") as large, Image.open("out/castle.webp") as lossy:
        assert large.size == lossy.size == (80, 60)
    assert Path("out/castle-2.webp").stat().st_size != small


def test_without_metadata_nothing_is_told(run, picture: Path) -> None:
    assert run("upscale", picture, "--no-metadata", "-o", "big.png").code == 0
    with Image.open("big.png") as big:
        assert (big.size, big.text) == ((80, 60), {})


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--size", "64x64"], (64, 64)),
        (["--size", "64x64", "--crop", "no"], (85, 64)),
        (["--width", "20"], (20, 15)),
        (["--height", "60"], (80, 60)),
        ([], (80, 60)),
    ],
)
def test_sizes(run, picture: Path, options: list[str], size: tuple[int, int]) -> None:
    assert run("upscale", picture, *options, "-o", "big.png").code == 0
    with Image.open("big.png") as big:
        assert big.size == size


def test_a_folder_two_upscalers_and_a_broken_picture(run, picture: Path, network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture.rename(folder / "b.png")
    Image.new("RGBA", (10, 12), (200, 10, 10, 128)).save(folder / "c.webp", lossless=True)
    (folder / "a.png").write_text("no picture")
    answer = run("upscale", folder, "--upscaler", network, "--upscaler-2", "nearest", "--scale", 3, "-o", "out")
    assert answer.code == 2
    assert answer.out.splitlines() == ["wrote out/b.png", "wrote out/c.png"]
    assert "1 of 3 pictures were left out" in answer.err
    with Image.open("out/c.png") as out:
        assert (out.size, out.mode) == ((30, 36), "RGBA")
    assert run("upscale", folder / "b.png", "-o", "out").out.strip() == "wrote out/b-2.png"


def test_half_of_each_upscaler_shows(run, network: Path, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((16, 16)).save(tmp_path / "grey.png")
    options = ("--scale", "4", "--upscaler-2-visibility", "0.5")
    run("upscale", tmp_path / "grey.png", "--upscaler", network, "--upscaler-2", "Nearest", *options, "-o", "mix.png")
    run("upscale", tmp_path / "grey.png", "--upscaler", network, "--scale", "4", "-o", "one.png")
    run("upscale", tmp_path / "grey.png", "--upscaler", "Nearest", "--scale", "4", "-o", "two.png")
    mix, one, two = (Image.open(f"{name}.png") for name in ("mix", "one", "two"))
    assert mix.mode == "L"
    assert mix.tobytes() == Image.blend(one, two, 0.5).tobytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upscaler", "Lanzos"], "Lanczos"),
        (["--upscaler", "./none.pth"], "none.pth: no such file"),
        (["--scale", "0"], "scale"),
        (["--scale", "2", "--size", "8x8"], "not both"),
        (["--size", "8"], "no size"),
        (["--scale", "64", "--upscaler-2-visibility", "3"], "upscaler_2_visibility"),
        (["--face-restorer", "gfpgan"], "gfpgan"),
        (["-o", "[date]/[seed].png"], "patterns name painted pictures"),
    ],
)
def test_mistakes_are_one_line(run, picture: Path, options: list[str], words: str) -> None:
    answer = run("upscale", picture, *options)
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert words in line


def test_a_file_of_no_known_architecture(run, picture: Path, tmp_path: Path) -> None:
    import_spandrel()
    torch.save({"conv_last.weight": torch.zeros(3, 3)}, tmp_path / "odd.pth")
    answer = run("upscale", picture, "--upscaler", tmp_path / "odd.pth")
    assert answer.code == 2
    assert "odd.pth: is of no architecture that spandrel knows" in answer.err
    (tmp_path / "cut.pth").write_bytes((tmp_path / "odd.pth").read_bytes()[:300])
    assert "cut.pth" in run("upscale", picture, "--upscaler", tmp_path / "cut.pth").err


def test_nothing_there(run, tmp_path: Path) -> None:
    assert "no such picture or folder" in run("upscale", tmp_path / "nothing.png").err
    (tmp_path / "empty").mkdir()
    assert "no pictures in this folder" in run("upscale", tmp_path / "empty").err


def test_a_picture_made_with_an_upscaler_and_a_refiner_tells_both_files(run, models: Path, network: Path) -> None:
    steps = ("--steps", 2, "--size", "64x64", "--seed", 5, "--hr-second-pass-steps", 1)
    large = ("--enable-hr", "yes", "--hr-scale", 1.5, "--hr-upscaler", network)
    refined = ("--refiner-checkpoint", models / "tiny.safetensors", "--refiner-switch-at", 0.5)
    answer = run("txt2img", "x", *steps, *large, *refined, "--model", models / "tiny.safetensors", "-o", "x.png")
    assert answer.code == 0, answer
    others = tell(read_picture(Path("x.png"))).others
    assert others["hr_upscaler"] == Reference(name=network.name, sha256=sha256(network))
    assert others["refiner_checkpoint"] == Reference(name="tiny", sha256=sha256(models / "tiny.safetensors"))
    again = run("replay", "x.png", "-o", "again.png")
    assert "identical" in again.out, again
