"""The program around the commands: quick to start, and without a traceback however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from danqing.__main__ import WITH_TORCH
from danqing.cli import COMMANDS, program
from danqing.version import __version__

from .conftest import Run

PROGRAM = "from danqing.__main__ import main; main()"


def python(code: str, *arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DANQING_HOME": str(home)},
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, danqing.cli; danqing.cli.program(); print(*[m for m in ('torch','numpy','PIL','safetensors') if m in sys.modules])"
    assert python(code, home=tmp_path, stdout=subprocess.PIPE).stdout == "\n"
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); " + PROGRAM
    answer = python(code, "--help", home=tmp_path, stdout=subprocess.PIPE)
    assert answer.returncode == 0
    assert answer.stderr == "False\n"
    for command in ("txt2img", "prompt", "inspect", "convert", "config", "models", "train", "dataset"):
        assert f"  {command} " in answer.stdout


def names(asked: str | None = None) -> list[str]:
    return list(get_command(program(asked)).commands)  # type: ignore[attr-defined]


def test_each_module_registers_the_commands_that_are_told() -> None:
    assert names() == names("painting")
    assert sorted(names()) == sorted(name for module in COMMANDS.values() for name in module)
    assert set(names()) > WITH_TORCH
    for module in COMMANDS.values():
        assert all(sorted(names(name)) == sorted(module) for name in module)


def test_version(run: Run) -> None:
    assert run("--version").out == f"danqing {__version__}\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such pipes here")
@pytest.mark.parametrize("arguments", [("--help",), ("prompt", "a (b:1.2)"), ("config",)])
def test_a_closed_pipe(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answer = python(PROGRAM, *arguments, home=tmp_path, stdout=writer)
    os.close(writer)
    assert answer.returncode == 1
    assert answer.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("arguments", [("--help",), ("prompt", "x"), ("config",)])
def test_a_full_device(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        answer = python(PROGRAM, *arguments, home=tmp_path, stdout=full)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "No space left" in answer.stderr


def test_a_console_that_knows_no_chinese(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.reconfigure(encoding='latin-1', errors='strict'); " + PROGRAM
    answer = python(code, "--help", home=tmp_path, stdout=subprocess.PIPE)
    assert answer.returncode == 0
    assert "\\u4e39\\u9752" in answer.stdout
    assert answer.stderr == ""


def test_a_message_is_one_line_whatever_the_name(run: Run) -> None:
    answer = run("inspect", "./two\nlines")
    assert answer.code == 2
    assert answer.err == "danqing: ./two lines: no such file or folder\n"
