"""AUTOMATIC1111's flags, as `danqing serve` understands them, and the command itself up to the port."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from danqing.cli import program
from danqing.cli.a1111_flags import FLAGS, understand
from danqing.errors import DanqingError
from danqing.library.settings import add_folder, load_settings
from danqing.serve import run
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings


def test_flags_with_an_effect() -> None:
    told = understand(
        ["--ckpt", "a.safetensors", "--lora-dir=/loras", "--gradio-auth", "a:b,c:d", "--nowebui", "--medvram", "--api"],
        [],
    )
    assert dict(told.values) == {"model": "a.safetensors", "page": False, "memory": "6GB"}
    assert told.folders == ("/loras",)
    assert told.auth == ("a:b", "c:d")
    assert told.notes == ("--api has no effect: the APIs are always there",)
    assert understand(["--device-id", "1"], []).values["device"] == "cuda:1"
    assert understand(["--use-cpu", "all", "--no-half"], []).values == {"device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lissten"], "did you mean --listen"),
        (["--xformer"], "did you mean --xformers"),
        (["--ckpt"], "needs a value"),
        (["--ckpt", "--api"], "needs a value"),
        (["--share"], "no tunnel"),
        (["--disable-safe-unpickle"], "never unpickled"),
        (["--enable-insecure-extension-access"], "nothing is installed"),
        (["stray"], "no such option"),
    ],
)
def test_flags_that_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(DanqingError, match=words):
        understand(arguments, ["--listen"])


def test_every_flag_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert [name for name in FLAGS if f"`{name}`" not in text] == []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Engine, ServeSettings]]:
    """What would be served."""
    found: list[tuple[Engine, ServeSettings]] = []

    def serve(engine: Engine, settings: ServeSettings, ready: Any) -> None:
        found.append((engine, settings))
        engine.close()

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    monkeypatch.setenv("DANQING_FOLDERS", "")
    monkeypatch.delenv("DANQING_TOKENS", raising=False)
    return found


def start(*arguments: str) -> Any:
    return CliRunner().invoke(program(), ["serve", *arguments])


def test_the_command_takes_its_own_options_and_automatic1111s(
    served: list[tuple[Engine, ServeSettings]], tmp_path: Path
) -> None:
    (tmp_path / "loras").mkdir()
    result = start("--listen", "--auth", "anna:secret words", "--lora-dir", str(tmp_path / "loras"), "--memory", "6GB")
    assert result.exception is None, result.output
    ((engine, settings),) = served
    assert settings.host == "0.0.0.0"
    assert settings.users is not None
    assert settings.users.read_text().startswith("anna:$argon2id$")
    assert engine.models.budget == 6_000_000_000
    assert tmp_path / "loras" in engine.models.settings.folders
    assert engine.folder == tmp_path / "studio"


def test_listening_needs_a_password(served: list[tuple[Engine, ServeSettings]]) -> None:
    result = start("--listen")
    assert isinstance(result.exception, DanqingError)
    assert "--auth" in str(result.exception)
    assert served == []
    assert isinstance(start("--host", "192.168.1.5").exception, DanqingError)
    assert start("--host", "192.168.1.5", "--token", "0123456789abcdef").exception is None
    assert start().exception is None
    assert served[-1][1].host == "127.0.0.1"


def test_what_is_wrong_is_told_before_anything_is_opened(served: list[tuple[Engine, ServeSettings]]) -> None:
    for arguments, words in (
        (["--memory", "lots"], "memory"),
        (["--token", "short"], "16 characters"),
        (["--auth", "anna"], "USER:PASSWORD"),
        (["--tls-certfile", "/nowhere.pem"], "no such file"),
        (["--tls-keyfile", __file__], "--tls-certfile"),
        (["--model", "nothing-of-this-name"], "nothing-of-this-name"),
        (["--frobnicate"], "no such option"),
    ):
        error = start(*arguments).exception
        assert isinstance(error, DanqingError), arguments
        assert words in str(error)
    assert served == []


def test_the_unit_and_the_image_start_it(
    served: list[tuple[Engine, ServeSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy = Path(__file__).parents[2] / "deploy"
    unit = re.search(r"^ExecStart=(.*)$", (deploy / "danqing.service").read_text(), re.MULTILINE)
    assert unit is not None
    program, command, *options = shlex.split(unit[1])
    assert (Path(program).name, command) == ("danqing", "serve")
    assert start(*options).exception is None
    image = (deploy / "Dockerfile").read_text()
    entry = re.search(r"^ENTRYPOINT (.*)$", image, re.MULTILINE)
    assert entry is not None
    program, command, *options = json.loads(entry[1])
    assert (program, command) == ("danqing", "serve")
    assert "--auth" in str(start(*options).exception)  # it listens to all, and so to nobody without a token
    monkeypatch.setenv("DANQING_TOKENS", "a-token-of-16-characters-or-more")
    assert start(*options).exception is None
    assert served[-1][1].host == "0.0.0.0"
    for line in re.findall(r"^COPY (.*)$", image, re.MULTILINE):
        assert all((deploy.parent / name).exists() for name in line.split()[:-1]), line


def test_folders_of_the_environment_are_no_part_of_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANQING_FOLDERS", str(tmp_path / "more"))
    settings = load_settings(data_dir=tmp_path)
    assert settings.folders == (tmp_path / "more",)
    changed = add_folder(settings, tmp_path / "mine")
    assert set(changed.folders) == {tmp_path / "more", tmp_path / "mine"}
    assert "more" not in changed.path.read_text()
