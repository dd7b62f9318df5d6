"""`danqing config`."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("config", help="Show the settings, or set one: danqing config KEY VALUE.")(config)


def config(
    key: Annotated[str | None, typer.Argument(help="the setting", show_default=False)] = None,
    value: Annotated[str | None, typer.Argument(help="its new value; an empty one unsets it")] = None,
) -> None:
    from danqing.errors import DanqingError
    from danqing.library.settings import load_settings, set_value, show

    settings = load_settings()
    if key is not None and value is not None:
        settings = set_value(settings.path, key, value)
    rows = [row for row in show(settings) if key in (None, row[0])]
    if not rows:
        raise DanqingError(f"config: '{key}' is no setting; there are {', '.join(row[0] for row in show(settings))}")
    width = max(len(name) for name, _, _ in rows)
    typer.echo(f"# {settings.path}")
    for name, current, description in rows:
        typer.echo(f"{name:{width}} = {current or '(unset)'}    # {description}")
