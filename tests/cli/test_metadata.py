"""`danqing pnginfo` and `danqing replay`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Run

QUICK = ("--steps", 1, "--size", "64x64", "--seed", 5)


def test_replay_and_pnginfo(run: Run, models: Path) -> None:
    assert run("txt2img", "a cat", *QUICK, "--model", models / "tiny.safetensors", "-o", "x.png").code == 0
    answer = run("replay", "x.png", "-o", "again.png")
    assert (answer.code, answer.out) == (0, "x.png: identical\nwrote again.png\n")
    assert Image.open("again.png").tobytes() == Image.open("x.png").tobytes()
    assert run("pnginfo", "x.png").out == Image.open("x.png").text["parameters"] + "\n"
    record = json.loads(run("pnginfo", "x.png", "--json").out)
    assert (record["tool"], record["request"]["prompt"], record["platform"]["device"]) == ("Danqing", "a cat", "cpu")
    assert len(record["pixels"]) == len(record["checkpoint"]["sha256"]) == 64


def test_names_by_pattern(run: Run, models: Path) -> None:
    model = ("--model", models / "tiny.safetensors")
    assert run("txt2img", "a cat", *QUICK, *model, "-o", "[width]/[seed]-[prompt_words].webp").out == (
        "wrote 64/5-a cat.webp\n"
    )
    run("config", "output_pattern", "[model_name]-[steps]")
    run("config", "output_format", "jpg")
    run("config", "picture_quality", "80")
    assert run("txt2img", "a cat", *QUICK, *model, "-o", "here").out == "wrote here/tiny-1.jpg\n"


@pytest.mark.parametrize("command", ["replay", "pnginfo"])
def test_mistakes_are_one_line(run: Run, command: str) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("text.png").write_text("hello")
    Image.effect_noise((64, 64), 50).save("cut.png")
    data = Path("cut.png").read_bytes()
    Path("cut.png").write_bytes(data[: len(data) // 2])
    Path("folder").mkdir()
    for name, word in (("plain.png", "does not say"), ("text.png", "not a picture"), ("cut.png", "cut short"),
                       ("none.png", "no such file"), ("folder", "folder")):  # fmt: skip
        answer = run(command, name)
        assert answer.code == 2
        assert answer.err.count("\n") == 1
        assert answer.err.startswith(f"danqing: {name}: ")
        assert word in answer.err
