"""What `danqing img2img`, `inpaint` and `outpaint` write, and what they say of bad pictures and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.cli.options import UNASKED
from danqing.models.clip import CLIPText
from danqing.requests import REQUESTS, Kind, ResolvedRequest

from .conftest import Run

QUICK = ("--steps", "1", "--seed", "3")


@pytest.fixture
def photo(run: Run) -> Path:
    """`photo.png`, with a white square in `mask.png`, in the folder where commands run."""
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save("photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 24, 24))
    mask.save("mask.png")
    return Path("photo.png")


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "outpaint"])
def test_the_help_names_the_picture_and_every_field(run: Run, kind: Kind) -> None:
    answer = run(kind, "--help")
    assert answer.code == 0
    assert "IMAGE" in answer.out
    for name in REQUESTS[kind].model_fields.keys() - UNASKED - {"prompt", "image", "sd_upscale"}:
        assert f"--{name.replace('_', '-')}" in answer.out
    assert ("--sd-upscale" in answer.out) == (kind == "img2img"), "tiles know of no mask"


def test_sd_upscale(run: Run, photo: Path) -> None:
    answer = run("img2img", photo, *QUICK, "--sd-upscale", "1.5,16", "--size", "64x64", "-o", "out.png")
    assert answer.code == 0, answer.err
    with Image.open("out.png") as picture:
        assert picture.size == (96, 96)


def test_a_picture_is_painted_over_and_says_from_what(run: Run, photo: Path) -> None:
    answer = run("img2img", photo, "a cat", *QUICK, "-o", "out.png")
    assert answer.code == 0, answer.err
    picture = Image.open("out.png")
    record = ResolvedRequest.model_validate_json(picture.text["danqing"])
    assert (picture.size, record.kind, record.request.prompt) == ((64, 64), "img2img", "a cat")
    assert record.request.image.name == "photo.png"
    assert "base64" not in picture.text["danqing"]


def test_only_the_masked_part_changes(run: Run, photo: Path) -> None:
    answer = run("inpaint", photo, *QUICK, "--mask", "mask.png", "--inpaint-full-res", "yes", "-o", "out.png")
    assert answer.code == 0, answer.err
    changed = (np.asarray(Image.open("out.png")) != np.asarray(Image.open(photo))).any(-1)
    assert changed[10:22, 10:22].any()
    assert not changed[40:, :].any()


def test_a_folder_is_painted_over_but_for_what_cannot_be_read(run: Run, photo: Path) -> None:
    Path("in").mkdir()
    for name in ("a.png", "b.png"):
        Image.open(photo).save(f"in/{name}")
    Path("in/bad.png").write_text("no picture")
    answer = run("img2img", "in", *QUICK, "-o", "out")
    assert answer.code == 2
    assert len(list(Path("out").iterdir())) == 2
    assert "'in/bad.png' is no picture that can be read" in answer.err
    assert answer.err.splitlines()[-1] == "danqing: image: 1 of 3 pictures were left out; see above"


def test_a_picture_that_cannot_be_painted_stops_no_other_of_its_folder(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("in", "masks"):
        Path(folder).mkdir()
    for name in ("a", "b", "c"):
        Image.open(photo).save(f"in/{name}.png")
        Image.open("mask.png").point(lambda value, name=name: 0 if name == "b" else value).save(f"masks/{name}.png")
    towers = 0
    forward = CLIPText.forward

    def counted(self: CLIPText, *given: Any, **more: Any) -> Any:
        nonlocal towers
        towers += 1
        return forward(self, *given, **more)

    monkeypatch.setattr(CLIPText, "forward", counted)
    answer = run("inpaint", "in", "a cat", *QUICK, "--mask", "masks", "--cfg-scale", 2, "-o", "out")
    assert answer.code == 2
    assert answer.out.splitlines() == ["wrote out/a.png", "wrote out/c.png"]
    assert "note: left out: in/b.png: mask: all of it is black" in answer.err
    assert answer.err.splitlines()[-1] == "danqing: image: 1 of 3 pictures were left out; see above"
    assert towers == 2, "the prompts are encoded once for all"


def test_pictures_of_a_folder_keep_their_names(run: Run, photo: Path) -> None:
    Path("in").mkdir()
    for name in ("castle", "tree"):
        Image.open(photo).save(f"in/{name}.png")
    assert run("img2img", "in", *QUICK, "-o", "out").out.split()[1::2] == ["out/castle.png", "out/tree.png"]
    answer = run("img2img", "in", *QUICK, "--n-iter", 2, "-o", "out")
    assert answer.out.split()[1::2] == [f"out/{name}-{seed}.png" for name in ("castle", "tree") for seed in (3, 4)]
    answer = run("img2img", "in", *QUICK, "-o", "out/[steps].png", "--overwrite")
    assert answer.out.split()[1::2] == ["out/1.png", "out/1-2.png"], "what one command writes it never replaces"
    answer = run("img2img", "in", *QUICK, "-o", "[basename] [seed].webp")
    assert answer.out.splitlines() == ["wrote castle 3.webp", "wrote tree 3.webp"]
    answer = run("img2img", "in/tree.png", *QUICK, "-o", "[basename]-over.png")
    assert answer.out.splitlines() == ["wrote tree-over.png"]
    run("config", "output_pattern", "[width]")
    assert run("img2img", "in", *QUICK, "-o", "wide").out.splitlines() == ["wrote wide/64.png", "wrote wide/64-2.png"]


def test_what_is_missing_for_a_whole_folder_is_one_line(run: Run, photo: Path) -> None:
    Path("in").mkdir()
    for name in ("a.png", "b.png"):
        Image.open(photo).save(f"in/{name}")
    answer = run("img2img", "in", *QUICK, "--refiner-checkpoint", "none.safetensors", "-o", "out")
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert "none.safetensors" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("img2img", "none.png"), "image: there is no file 'none.png'"),
        (("img2img", "bad.png"), "image: 'bad.png' is no picture that can be read"),
        (("img2img", "photo.png", "--denoising-strength", "0"), "denoising_strength: 0 leaves the picture as it is"),
        (("inpaint", "photo.png"), "mask: give one"),
        (("inpaint", "photo.png", "--mask", "black.png"), "mask: all of it is black"),
        (("outpaint", "photo.png"), "left: nothing to paint"),
    ],
)
def test_bad_input_is_one_line(run: Run, photo: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("bad.png").write_text("no picture")
    Image.new("L", (64, 64)).save("black.png")
    answer = run(*arguments, *QUICK)
    told = [line for line in answer.err.splitlines() if not line.startswith("note: ")]
    assert (answer.code, len(told)) == (2, 1)
    assert words in told[0]


class Bar:
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.told: list[list[tuple[Any, Any]]] = []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, name: str, **fields: Any) -> int:
        self.tasks.append({"name": name, **fields})
        self.told.append([])
        return len(self.tasks) - 1

    def update(self, task: int, **fields: Any) -> None:
        self.tasks[task] |= fields
        self.told[task].append((fields["completed"], fields["total"]))


@pytest.mark.parametrize("several", [True, False])
def test_the_whole_and_the_part_are_shown(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    bar = Bar()
    monkeypatch.setattr("danqing.cli.show.progress_bar", lambda: bar)
    Path("in").mkdir()
    for name in ("a.png", "b.png"):
        Image.open(photo).save(f"in/{name}")
    strength = ("--exact-steps", "yes", "--steps", 2)
    assert run("img2img", "in" if several else photo, *strength, "--seed", 3, "-o", "out").code == 0
    whole, part, side = bar.tasks
    assert not side["visible"]
    assert (whole["visible"], part["total"], part["completed"]) == (several, 2, 2)
    if several:
        assert bar.told[0] == [(0.5, 2), (1, 2), (1.5, 2), (2, 2)]
        assert bar.told[1] == [(1, 2), (2, 2), (1, 2), (2, 2)]
