"""The command line in this process, a home of its own for each test, and small model files, sound and broken."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from danqing.checkpoints.save import save
from danqing.cli import main
from tiny_model import tiny_model


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("note: ")]


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("txt2img", ...)`, in the empty folder tmp_path/work, as the program itself runs."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["danqing", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Answer(int(code or 0), captured.out, captured.err)  # type: ignore[call-overload]

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint in several forms, and with what is none."""
    folder = tmp_path_factory.mktemp("models")
    tiny = tiny_model(torch.device("cpu"), torch.float32)
    save(tiny, folder / "tiny.safetensors", layout="ldm")
    save(tiny, folder / "tiny", layout="diffusers")
    whole = (folder / "tiny.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "head.safetensors").write_bytes(whole[:100])
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = [at + 4 for at in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    (folder / "lies.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {"lora_down.weight": torch.zeros(4, 320), "lora_up.weight": torch.zeros(320, 4), "alpha": torch.ones(())}
    save_file({f"{layer}.{end}": tensor for end, tensor in tensors.items()}, folder / "lora.safetensors")
    shutil.copytree(folder / "tiny" / "vae", folder / "xl-vae")
    config = json.loads((folder / "xl-vae" / "config.json").read_text())
    (folder / "xl-vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    (folder / "empty.safetensors").touch()
    (folder / "text.safetensors").write_text("hello world\n")
    Image.new("RGB", (64, 64)).save(folder / "picture.safetensors", format="PNG")
    (folder / "folder").mkdir()
    return folder
