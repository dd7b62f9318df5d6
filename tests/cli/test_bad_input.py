"""Every mistake is one plain line that names the file or field, exit code 2, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import Answer, Run

QUICK = ("--steps", 1, "--size", "64x64", "--seed", 5)


def refused(answer: Answer, *words: str) -> None:
    lines = [line for line in answer.err.splitlines() if not line.startswith("note: ")]
    assert answer.code == 2, answer
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("danqing: ")
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert all(path.name == "config.toml" for path in Path().rglob("*")), list(Path().rglob("*"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.safetensors", ("no such file",)),
        ("truncated.safetensors", ("cut short", "download it again")),
        ("head.safetensors", ("cut short",)),
        ("lies.safetensors", ("damaged", "header")),
        ("zip.ckpt", ("not a model", "zip archive", "readme.txt")),
        ("lora.safetensors", ("LoRA, not a checkpoint",)),
        ("empty.safetensors", ("is empty",)),
        ("text.safetensors", ("not a model", "hello world")),
        ("picture.safetensors", ("not a model", "PNG")),
        ("xl-vae", ("xl-vae",)),
        ("folder", ("folder",)),
    ],
)
def test_files_that_are_no_checkpoint(run: Run, models: Path, name: str, words: tuple[str, ...]) -> None:
    refused(run("txt2img", "x", *QUICK, "--model", models / name, "-o", "x.png"), name, *words)


def test_an_xl_vae_for_sd1(run: Run, models: Path) -> None:
    answer = run("txt2img", "x", *QUICK, "--model", models / "tiny.safetensors", "--vae", models / "xl-vae")
    refused(answer, "xl-vae", "0.13025", "Stable Diffusion XL", "0.18215")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", "0"), ("steps", "1")),
        (("--steps", "1001"), ("steps", "1000")),
        (("--steps", "many"), ("steps", "'many'")),
        (("--width", "32"), ("width", "64")),
        (("--size", "32x512"), ("width", "64")),
        (("--size", "512x63"), ("height", "64")),
        (("--size", "junk"), ("size", "'junk'", "512x768")),
        (("--size", "64x64x64"), ("size", "512x768")),
        (("--size", "-64x64"), ("size", "512x768")),
        (("--size", "64x64", "--height", "64"), ("--size", "--height")),
        (("--sampler", "Eulr"), ("sampler", "'Eulr'", "did you mean Euler or Euler a")),
        (("--sampler", "dpmpp_2n"), ("sampler", "DPM++ 2M")),
        (("--sampler", "qqq"), ("sampler", "choose one of", "UniPC")),
        (("--sampler", "Euler Carras"), ("sampler", "Euler")),
        (("--scheduler", "kerras"), ("scheduler", "Karras")),
        (("--dialect", "a111"), ("dialect", "a1111")),
        (("--emphasis", "loud"), ("emphasis", "no norm")),
        (("--noise-source", "dice"), ("noise_source", "philox")),
        (("--tiling", "z"), ("tiling", "both")),
        (("--batch-size", "0"), ("batch_size", "1")),
        (("--batch-size", "65"), ("batch_size", "64")),
        (("--batch-count", "0"), ("n_iter", "1")),
        (("--seed", "-2"), ("seed", "-1")),
        (("--seed", str(2**64)), ("seed", str(2**64 - 1))),
        (("--seed", str(2**64 - 1), "--batch-count", "2"), ("seed", "2 pictures")),
        (("--cfg-scale", "nan"), ("cfg_scale", "finite")),
        (("--cfg-scale", "inf"), ("cfg_scale", "finite")),
        (("--cfg-scale", "-1"), ("cfg_scale", "0")),
        (("--sigma-max", "1e300"), ("sigma_max",)),
        (("--sigma-min", "5", "--sigma-max", "2"), ("sigma_min", "sigma_max")),
        (("--rho", "1e-300"), ("rho",)),
        (("--guidance-start", "0.9", "--guidance-end", "0.1"), ("guidance_start", "guidance_end")),
        (("--dynamic-thresholding", "7,0.9,3"), ("dynamic_thresholding", "MIMIC_SCALE,PERCENTILE")),
        (("--dynamic-thresholding", "high"), ("dynamic_thresholding.mimic_scale",)),
        (("--discard-penultimate", "perhaps"), ("discard_penultimate",)),
        (("--negative-prompt", "\udcff"), ("negative_prompt", "Unicode")),
        (("--device", "toaster"), ("device", "'toaster'", "auto")),
        (("--dtype", "int3"), ("dtype", "'int3'", "bfloat16")),
        (("--safety-checker",), ("has no safety checker",)),
        (("-o", "x.bmp"), ("x.bmp", ".png")),
        (("-o", "x.png.gz"), (".gz", ".png")),
        (("-o", f"{'x' * 300}.png"), ("--output",)),
    ],
)
def test_fields_that_are_wrong(run: Run, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run("txt2img", "x", *options), *words)


def test_all_wrong_fields_are_told_at_once(run: Run) -> None:
    refused(run("txt2img", "x", "--steps", "0", "--width", "5", "--eta", "9"), "steps:", "width:", "eta:")


def test_a_device_that_is_not_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(run("txt2img", "x", "--device", "cuda"), "device", "CUDA", "choose cpu or auto")


def test_an_unknown_model_is_answered_with_the_nearest(run: Run, models: Path, tmp_path: Path) -> None:
    run("config", "folders", models)
    refused(run("txt2img", "x", "--model", "tinny"), "'tinny'", "did you mean", "tiny")


def test_a_picture_below_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run("txt2img", "x", *QUICK, "-o", tmp_path / "file" / "x.png"), "is a file, not a folder", "--output")


@pytest.mark.parametrize("where", ["x.png", "."])
def test_a_folder_that_cannot_be_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    refused(run("txt2img", "x", *QUICK, "-o", tmp_path / where), "nothing can be written", "--output")


class Full:
    """A file on a disk that fills up after the first kilobyte."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 1024

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        if name == "fileno":
            raise AttributeError(name)
        return getattr(self.file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real(self, mode, *args, **kwargs)
        return Full(file) if "b" in mode and "r" not in mode else file

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_full_disk(run: Run, suffix: str) -> None:
    refused(run("txt2img", "x", *QUICK, "-o", f"x{suffix}"), f"x{suffix}", "the disk is full")


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_what_was_there(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"before")
    refused(run("txt2img", "x", *QUICK, "-o", target, "--overwrite"), "the disk is full")
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "x"))) == ["x.png"]


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("target", ["x.safetensors", "x.ckpt", "x"])
def test_a_full_disk_while_converting(run: Run, models: Path, target: str) -> None:
    # torch's archive writer has words of its own for it
    refused(
        run("convert", models / "tiny.safetensors", target),
        target,
        "could not be written" if "ckpt" in target else "the disk is full",
    )


def test_too_long_a_prompt_for_a_jpeg(run: Run) -> None:
    refused(run("txt2img", "word " * 10_000, *QUICK, "-o", "x.jpg"), "x.jpg", "JPEG", ".png", "--no-metadata")


def test_convert(run: Run, models: Path, tmp_path: Path) -> None:
    for name in ("text.safetensors", "lora.safetensors", "truncated.safetensors", "missing.safetensors"):
        refused(run("convert", models / name, "out.safetensors"), name)
    refused(run("convert", models / "tiny.safetensors", models), str(models), "not empty")
    source = models / "tiny.safetensors"
    refused(run("convert", source, "out.safetensors", "--layout", "flat"), "layout", "'flat'", "diffusers")
    refused(run("convert", source, "out.safetensors", "--dtype", "int4"), "dtype", "int4", "float16")
    refused(run("convert", source, "out.safetensors", "--prediction-type", "w"), "prediction", "epsilon")
    refused(run("convert", source, "out.safetensors", "--vae", models / "xl-vae"), "xl-vae", "0.13025")


def test_models(run: Run, models: Path) -> None:
    refused(run("models", "add", models / "missing.safetensors"), "missing.safetensors", "no such file")
    refused(run("models", "add", models / "text.safetensors"), "text.safetensors", "not a model")
    refused(run("models", "add", "hf:nobody"), "hf:nobody", "hf:OWNER/NAME")
    refused(run("models", "add", "civitai:abc"), "civitai:abc", "digits")
    refused(run("models", "list", "--kind", "lorra"), "kind", "'lorra'", "lora")


def test_a_home_of_nobody_is_a_name_like_any_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "~nobody-is-called-that"
    refused(run("inspect", f"{name}/a.safetensors"), name, "no such file")
    monkeypatch.setenv("DANQING_FOLDERS", name)
    assert "none of yours yet" in run("models", "list").out


def test_inspect_reports_what_is_wrong(run: Run, models: Path) -> None:
    refused(run("inspect", models / "missing"), "missing", "no such file")
    for name, word in (("text", "hello world"), ("empty", "is empty"), ("picture", "PNG"), ("truncated", "cut short")):
        answer = run("inspect", models / f"{name}.safetensors")
        assert answer.code == 2
        assert answer.err == ""
        assert word in answer.out
    answer = run("inspect", models / "folder")
    assert answer.code == 2
    assert "model_index.json" in answer.out
    assert run("inspect", models / "lora.safetensors").code == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (b"device = [", ("not valid TOML",)),
        (b"devce = 'cpu'", ("'devce'", "device")),
        (b"device = 5", ("device",)),
        (b"dtype = 'int3'", ("dtype", "bfloat16")),
        (b"\xff\xfe", ("cannot be read",)),
    ],
)
def test_broken_settings(run: Run, tmp_path: Path, settings: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_bytes(settings)
    for command in (("txt2img", "x", *QUICK), ("config",)):
        refused(run(*command), "config.toml", *words)


def test_settings_that_are_wrong(run: Run) -> None:
    refused(run("config", "devce"), "'devce'", "device")
    refused(run("config", "devce", "cpu"), "'devce'", "device")
    refused(run("config", "write_metadata", "maybe"), "write_metadata", "true or false")


def test_prompt(run: Run) -> None:
    refused(run("prompt", "x", "--family", "sd9"), "family", "sd1")
    refused(run("prompt", "x", "--dialect", "foo"), "dialect", "comfyui")
    refused(run("prompt", "x", "--sampler", "foo"), "sampler", "UniPC")
    refused(run("prompt", "x", "--emphasis", "foo"), "emphasis", "original")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("paint",), "paint"),
        (("txt2img", "x", "--stepz", "3"), "--steps"),
        (("txt2img", "x", "--steps"), "--steps"),
        (("txt2img", "two", "prompts"), "prompts"),
        (("convert", "only-one"), "target"),
        (("prompt", "x", "--steps", "0"), "--steps"),
        (("inspect",), "files"),
    ],
)
def test_usage_is_short(run: Run, arguments: tuple[str, ...], word: str) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) <= 4
    assert word in answer.err.splitlines()[-1].lower()


def test_a_size_is_rounded_and_said(run: Run) -> None:
    answer = run("txt2img", "x", "--steps", 1, "--size", "100x70", "-o", "x.png")
    assert answer.code == 0
    assert "note: width 100 is no multiple of 8; painting 96" in answer.notes
    assert "note: height 70 is no multiple of 8; painting 72" in answer.notes
    assert Image.open("x.png").size == (96, 72)


@pytest.mark.parametrize("prompt", ["", "word " * 10_000, "(" * 5000, "[" * 3000 + "a:b:0.5" + "]" * 3000])
def test_prompts_that_are_no_mistake(run: Run, prompt: str) -> None:
    assert run("txt2img", prompt, "--steps", 1, "--size", "64x64", "-o", "x.png").code == 0
    assert Path("x.png").is_file()


def test_a_memory_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("danqing.pipeline.models.load", nothing_left)
    refused(run("txt2img", "x", *QUICK), "memory")


def test_an_unforeseen_error_of_the_machine_is_one_line(
    run: Run, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk.img")

    monkeypatch.setattr("danqing.pipeline.models.load", broken)
    refused(run("txt2img", "x", *QUICK), "disk.img", "Input/output error")


def test_nothing_is_left_of_a_cut_download_or_copy(run: Run, models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "truncated.safetensors", tmp_path / "work" / "here.safetensors")
    answer = run("convert", "here.safetensors", "out")
    assert answer.code == 2
    assert [path.name for path in Path().iterdir()] == ["here.safetensors"]
