"""The command line. Commands hold no logic, and import what is heavy only when they run."""

from __future__ import annotations

import sys

import typer

from danqing.cli import config, files, paint, prompt
from danqing.errors import DanqingError

app = typer.Typer(
    name="danqing",
    help="Danqing 丹青: paint, edit, train, merge and serve with Stable Diffusion models.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
paint.register(app)
prompt.register(app)
files.register(app)
config.register(app)


def _version(show: bool) -> None:
    if show:
        from danqing.version import __version__

        typer.echo(f"danqing {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="print the version"),
) -> None:
    pass


def main() -> None:
    """Run the command line. A person's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except DanqingError as error:
        print(f"danqing: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("danqing: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
