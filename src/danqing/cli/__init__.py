"""The command line. Commands hold no logic, and import what is heavy only when they run."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper

import typer

from danqing.errors import DanqingError
from danqing.runtime.start import gc_paused

COMMANDS: dict[str, tuple[str, ...]] = {
    "paint": ("txt2img", "img2img", "inpaint", "outpaint"),
    "plot": ("plot", "styles"),
    "upscale": ("upscale",),
    "prompt": ("prompt",),
    "files": ("inspect", "convert", "models"),
    "metadata": ("pnginfo", "replay"),
    "adapters": ("adapters",),
    "train": ("train",),
    "dataset": ("dataset",),
    "evaluate": ("evaluate",),
    "benchmark": ("benchmark",),
    "serve": ("serve",),
    "config": ("config",),
}
"""This package's modules, in the order of the help, and the commands that each registers."""


def program(asked: str | None = None) -> typer.Typer:
    """All commands; where `asked` is one of them, only its module's, as hundreds of options take a while to make."""
    app = typer.Typer(
        name="danqing",
        help="Danqing 丹青: pictures from Stable Diffusion models.",
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    for module in [module for module, names in COMMANDS.items() if asked in names] or COMMANDS:
        import_module(f"danqing.cli.{module}").register(app)
    return app


def _version(show: bool) -> None:
    if show:
        from danqing.version import __version__

        typer.echo(f"danqing {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="print the version"),
) -> None:
    pass


def main() -> None:
    """Run the command line. A person's mistake is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names need not be Unicode, nor consoles know Chinese
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with gc_paused():
                commands = program(*sys.argv[1:2])
            commands()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written is told here, not at the interpreter's end
    except DanqingError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except MemoryError:
        _fail("memory: there is too little of it; ask for smaller or fewer pictures", 2)
    except BrokenPipeError:
        _fail(None, 1)
    except OSError as error:
        # a full disk, a folder that cannot be read: the machine's state, told by whoever met it first
        where = f"{error.filename}: " if error.filename else "what was read or written: "
        _fail(f"{where}{error.strerror or error}", 2)


def _fail(line: str | None, code: int) -> None:
    if line is not None and sys.stderr is not None:
        print(f"danqing: {' '.join(line.splitlines())}", file=sys.stderr)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        # what cannot be written now would be tried again at the interpreter's end, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
