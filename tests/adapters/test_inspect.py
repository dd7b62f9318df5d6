"""What a LoRA file says of itself, and the command that prints it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danqing.adapters.inspect import inspect_adapter, trigger_words
from danqing.cli import main
from danqing.errors import DanqingError
from danqing.families import SD1
from ip_adapter_files import save_ip_adapter
from lora_files import CONV, NORM, QUERY, TEXT, keyed, lora, random, write
from tiny_model import TINY

TAGS = {"1_cat": {"cat": 9, "sitting": 3, "": 4}, "2_dog": {"dog": 5, "cat": 1}}
METADATA = {
    "ss_output_name": "fluffy",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_steps": "1200",
    "ss_optimizer": "None",
    "ss_tag_frequency": json.dumps(TAGS),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    layers = {
        QUERY: lora((64, 64), rank=4),
        CONV: lora((64, 32, 3, 3), rank=8) | {"dora_scale": torch.ones(64, 1, 1, 1)},
        TEXT: lora((64, 64), rank=4),
        NORM: {"w_norm": random(32), "b_norm": random(32)},
    }
    return write(tmp_path / "cats.safetensors", keyed(layers), METADATA)


def test_a_file_tells_its_kind_and_how_it_was_trained(file: Path) -> None:
    summary = inspect_adapter(file)
    assert (summary.name, summary.alias, summary.family) == ("cats", "fluffy", "Stable Diffusion XL")
    assert set(summary.kind.split(", ")) == {"LoRA", "LoCon with DoRA", "norm layers"}
    assert (summary.unet, summary.text, summary.ranks) == (3, 1, (4, 8))
    assert summary.words == ("cat", "dog", "sitting")
    assert summary.settings == {"base version": "sdxl_base_v1-0", "steps": "1200"}


def test_the_family_is_told_by_widths_where_metadata_do_not(tmp_path: Path) -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, title in ((768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "Stable Diffusion XL")):
        path = write(tmp_path / f"{width}.safetensors", keyed({name: lora((64, width))}))
        assert inspect_adapter(path).family == title


def test_a_lora_of_few_steps_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "sdxl_lightning_4step_lora.safetensors", keyed({QUERY: lora((64, 64))}))
    assert inspect_adapter(path).settings == {"few steps": "SDXL Lightning, by its file's name"}


def test_trigger_words_of_a_card_go_first(file: Path) -> None:
    assert trigger_words(file, {"modelspec.trigger_phrase": "a, b"}) == ("a", "b")
    file.with_suffix(".json").write_text(json.dumps({"activation text": "fluffy cat, fur"}))
    assert inspect_adapter(file).words == ("fluffy cat", "fur")
    file.with_suffix(".json").write_text("{")
    assert trigger_words(file, {"ss_tag_frequency": "[3]"}) == ()


def test_what_is_no_lora_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="holds no layer of a LoRA"):
        inspect_adapter(write(tmp_path / "a.safetensors", {"weight": random(3)}))


def test_the_command(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "home" / "models" / "loras"
    folder.mkdir(parents=True)
    (tmp_path / "home" / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path / 'home'))}\n")

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["danqing", "adapters", *arguments])
        with suppress(SystemExit):
            main()
        answer = capsys.readouterr()
        assert not answer.err
        return answer.out

    assert run("list").startswith("none yet")
    file.rename(folder / "cats.safetensors")
    (line,) = run("list").splitlines()
    assert line.startswith("cats (fluffy)  ")
    assert line.endswith("Stable Diffusion XL  rank 4-8  cat, dog, sitting")
    shown = run("inspect", "fluffy")
    assert "layers: 3 of the U-Net, 1 of text encoders\n" in shown
    assert "steps: 1200\n" in shown
    (row,) = json.loads(run("list", "--json"))
    assert row == json.loads(run("inspect", "cats", "--json"))


def test_other_kinds(tmp_path: Path) -> None:
    table = {"string_to_token": {"*": 265}, "name": "toy", "step": 500, "sd_checkpoint_name": "model"}
    torch.save({**table, "string_to_param": {"*": random(3, 768)}}, tmp_path / "ti.pt")
    found = inspect_adapter(tmp_path / "ti.pt")
    assert (found.kind, found.family, found.alias) == ("textual inversion embedding", "Stable Diffusion 1.x", "toy")
    assert found.facts == {"vectors": "3", "width": "768"}
    assert found.settings == {"steps": "500", "base model": "model"}
    large = {"clip_l": random(2, 768), "clip_g": random(2, 1280)}
    found = inspect_adapter(write(tmp_path / "xl.safetensors", large))
    assert (found.family, found.facts["width"], found.words) == ("Stable Diffusion XL", "768 and 1280", ("xl",))
    half = {"linear.0.weight": random(1536, 768), "linear.0.bias": random(1536)}
    half |= {"linear.2.weight": random(768, 1536), "linear.2.bias": random(768)}
    torch.save({768: (half, half), "name": "ink", "activation_func": "relu"}, tmp_path / "hn.pt")
    found = inspect_adapter(tmp_path / "hn.pt")
    assert (found.kind, found.family) == ("hypernetwork", "Stable Diffusion 1.x")
    assert found.facts == {"sizes": "768", "layers": "1, 2, 1", "activation": "relu"}
    control = {"control_model.zero_convs.0.0.weight": random(4, 4), "a.attn2.to_k.weight": random(4, 1024)}
    found = inspect_adapter(write(tmp_path / "control.safetensors", control))
    assert (found.kind, found.family) == ("ControlNet", "Stable Diffusion 2.x")


def test_the_command_knows_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "models" / "embeddings").mkdir(parents=True)
    (tmp_path / "config.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    write(tmp_path / "models" / "embeddings" / "toy.safetensors", {"emb_params": random(3, 768)})
    for arguments in (["list"], ["inspect", "toy"]):
        monkeypatch.setattr("sys.argv", ["danqing", "adapters", *arguments])
        with suppress(SystemExit):
            main()
    out = capsys.readouterr().out
    assert "toy  textual inversion embedding  Stable Diffusion 1.x  vectors 3  width 768\n" in out
    assert "kind: textual inversion embedding\nfamily: Stable Diffusion 1.x\nvectors: 3\nwidth: 768\n" in out


def test_an_ip_adapter_tells_what_it_looks_at(tmp_path: Path) -> None:
    told = {
        kind: inspect_adapter(
            save_ip_adapter(tmp_path / f"{kind}.bin", kind, replace(TINY.denoiser, context_width=768))
        )
        for kind in ("plain", "plus", "full", "face", "face plus", "instant")
    }
    assert {summary.family for summary in told.values()} == {SD1.title}
    assert [summary.kind for summary in told.values()] == [
        "IP-Adapter", "IP-Adapter plus", "IP-Adapter full", "IP-Adapter FaceID", "IP-Adapter FaceID plus",
        "InstantID's IP-Adapter",
    ]  # fmt: skip
    assert told["plus"].facts == {"looks at": "pictures", "through": "64 numbers", "tokens": "6"}
    assert told["instant"].facts == {"looks at": "face", "tokens": "5"}
    assert told["face plus"].facts["looks at"] == "face and patches"
