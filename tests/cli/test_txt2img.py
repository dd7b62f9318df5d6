"""What `danqing txt2img` writes, where, and how it ends."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import danqing
from danqing.cli.options import UNASKED, request_options
from danqing.cli.paint import COMMANDS
from danqing.requests import ResolvedRequest, TextToImage

from .conftest import Run

QUICK = ("--steps", "1", "--size", "64x64")
PROGRAM = (sys.executable, "-c", "from danqing.cli import main; main()")


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_every_field_is_an_option() -> None:
    given = set(inspect.signature(COMMANDS["txt2img"]).parameters)
    assert TextToImage.model_fields.keys() - UNASKED <= given
    options = {p.name: p.annotation.__metadata__[0] for p in request_options(TextToImage, skip=set())}
    for name, info in TextToImage.model_fields.items():
        if name in UNASKED:
            continue
        # in an annotation, typer has an option's first name in the place of its default
        assert f"--{name.replace('_', '-')}" in (options[name].default, *options[name].param_decls)
        assert info.description, f"{name} has no description"
        assert info.description in options[name].help


def test_the_help_has_headings_and_names_all(run: Run) -> None:
    answer = run("txt2img", "--help")
    assert answer.code == 0
    for name in TextToImage.model_fields.keys() - UNASKED - {"prompt"}:
        assert f"--{name.replace('_', '-')}" in answer.out
    headings = re.findall(r"^(\w.*):$", answer.out, re.MULTILINE)
    assert headings[0] == "What to paint"
    assert len(headings) == len(set(headings)) > 5
    assert max(map(len, answer.out.splitlines())) <= 110


def test_options_reach_the_request(run: Run) -> None:
    answer = run(
        "txt2img", "a (red:1.2) apple", *QUICK, "--negative-prompt", "pear", "--sampler", "k_euler_a", "--scheduler",
        "karras", "--cfg-scale", "5.5", "--seed", "7", "--batch-count", "2", "--ensd", "31337", "--emphasis", "No norm",
        "--dynamic-thresholding", "6,0.99", "--discard-penultimate", "yes", "-o", "x.png",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    record = ResolvedRequest.model_validate_json(Image.open("x-2.png").text["danqing"])
    request = record.request
    assert (request.width, request.height, request.steps) == (64, 64, 1)
    assert (request.prompt, request.negative_prompt) == ("a (red:1.2) apple", "pear")
    assert (request.sampler_name, request.scheduler, request.cfg_scale) == ("Euler a", "Karras", 5.5)
    assert (request.seed, request.eta_noise_seed_delta, request.emphasis) == (8, 31337, "no norm")
    assert request.dynamic_thresholding is not None
    assert (request.dynamic_thresholding.mimic_scale, request.dynamic_thresholding.percentile) == (6, 0.99)
    assert request.discard_penultimate is True


def test_the_record_paints_the_same_picture_again(run: Run) -> None:
    assert run("txt2img", "x", "--steps", 2, "--size", "64x72", "--seed", 3, "--batch-size", 2, "-o", "x.png").code == 0
    for name in ("x-1.png", "x-2.png"):
        picture = Image.open(name)
        record = ResolvedRequest.model_validate_json(picture.text["danqing"])
        (again,) = danqing.paint(record.request, say=lambda line: None)
        assert again.image.tobytes() == picture.tobytes()


def test_the_network_is_never_asked(run: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    assert run("txt2img", "x", *QUICK, "-o", "x.png").code == 0
    assert run("txt2img", "x", *QUICK, "--model", models / "tiny", "-o", "y.png").code == 0
    assert names() == ["x.png", "y.png"]


@pytest.mark.parametrize("name", ["tiny", "tiny.safetensors"])
def test_a_checkpoint_and_its_hash(run: Run, models: Path, name: str) -> None:
    assert run("txt2img", "x", *QUICK, "--model", models / name, "-o", "x.png").code == 0
    text = Image.open("x.png").text
    assert "Model: tiny" in text["parameters"]
    if name != "tiny":
        digest = hashlib.sha256((models / name).read_bytes()).hexdigest()
        assert f"Model hash: {digest[:10]}, Model: tiny" in text["parameters"]
        assert ResolvedRequest.model_validate_json(text["danqing"]).checkpoint.sha256 == digest


def test_names(run: Run) -> None:
    def paint(*options: object) -> str:
        answer = run("txt2img", "x", *QUICK, "--seed", 5, *options)
        assert answer.code == 0, answer.err
        return answer.out

    assert paint("-o", "a.png") == "wrote a.png\n"
    assert paint("-o", "a.png") == "wrote a-2.png\n"
    before = Path("a.png").stat().st_ino
    assert paint("-o", "a.png", "--overwrite") == "wrote a.png\n"
    assert Path("a.png").stat().st_ino != before
    assert paint("-o", "new/folder") == "wrote new/folder/5.png\n"
    assert paint() == "wrote outputs/5.png\n"
    assert paint("-o", "b.JPG", "--batch-size", 2, "--grid") == "wrote b-1.JPG\nwrote b-2.JPG\nwrote b-grid.JPG\n"
    assert Image.open("b-grid.JPG").size == (128, 64)
    assert Image.open("b-1.JPG").format == "JPEG"
    assert paint("-o", "c.webp") == "wrote c.webp\n"
    assert Image.open("c.webp").format == "WEBP"
    assert not [name for name in names() if name.startswith(".")]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_without_metadata(run: Run, suffix: str) -> None:
    target = f"x.{suffix}"
    assert run("txt2img", "secret", *QUICK, "-o", target, "--no-metadata").code == 0
    data = Path(target).read_bytes()
    assert b"secret" not in data
    assert "secret".encode("utf-16-be") not in data
    assert not Image.open(target).getexif()
    run("config", "write_metadata", "false")
    assert run("txt2img", "secret", *QUICK, "-o", f"y.{suffix}").code == 0
    assert not Image.open(f"y.{suffix}").getexif()
    assert not getattr(Image.open(f"y.{suffix}"), "text", {})


def test_what_has_no_effect_is_said(run: Run) -> None:
    answer = run("txt2img", "x", *QUICK, "--sampler", "Euler", "--eta", "0.5", "--subseed", "3", "-o", "x.png")
    assert any("eta has no effect" in note for note in answer.notes)
    assert any("subseed has no effect" in note for note in answer.notes)
    assert not any("subseed" in note for note in run("txt2img", "x", *QUICK, "--subseed", "-1").notes)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "DANQING_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_names_count_what_wildcards_made_of_the_request(run: Run) -> None:
    answer = run("txt2img", "a {red|green|blue} cat", "--dynamic", "all", *QUICK, "--seed", "4", "-o", "x.png")
    assert answer.code == 0, answer.err
    assert names() == ["x-1.png", "x-2.png", "x-3.png"]
    answer = run("txt2img", "a {red|green} cat", "--dynamic", "all", *QUICK, "--seed", "4",
                 "-o", "n/[seed]-[generation_number].png")  # fmt: skip
    assert answer.code == 0, answer.err
    assert names("n") == ["4-1.png", "5-2.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to another process")
def test_ctrl_c_ends_after_the_step_and_keeps_what_is_finished(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    process = start(tmp_path, "txt2img", "x", "--steps", "3", "--size", "64x64", "--seed", "1", "--batch-count", "1000",
                    "-o", "pictures")  # fmt: skip
    until = time.monotonic() + 60
    while len(list(pictures.glob("*.png"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "danqing: stopping after this step; finished pictures are kept"
    kept = sorted(pictures.iterdir(), key=lambda path: int(path.stem))
    assert 2 <= len(kept) < 1000
    assert out.splitlines() == [f"wrote {path.relative_to(tmp_path)}" for path in kept]
    for path in kept:
        Image.open(path).load()


def test_a_full_disk_midway_keeps_and_names_what_is_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "x-3.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    answer = run("txt2img", "x", *QUICK, "--batch-count", "4", "-o", "x.png")
    assert answer.code == 2
    assert answer.out == "wrote x-1.png\nwrote x-2.png\n"
    assert answer.err.splitlines()[-1].startswith(
        "danqing: x-3.png: the picture could not be written: the disk is full"
    )
    assert names() == ["x-1.png", "x-2.png"]
