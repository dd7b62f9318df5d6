"""`danqing adapters list|inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="LoRAs, embeddings, hypernetworks, ControlNets ...: what there is, and what it is.", no_args_is_help=True
    )
    group.command("list", help="List the adapters that prompts and fields can name.")(list_adapters)
    group.command("inspect", help="Print what adapters' files are and how they were trained.")(inspect_adapters)
    app.add_typer(group, name="adapters")


def list_adapters(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    from danqing.adapters.inspect import Summary, inspect_adapter
    from danqing.cli.show import say
    from danqing.errors import DanqingError
    from danqing.library.names import known
    from danqing.library.settings import load_settings
    from danqing.pipeline.adapters import ADAPTERS

    settings = load_settings()
    rows: list[Summary] = []
    for entry in known(settings):
        if entry.kind not in ADAPTERS:
            continue
        try:
            rows.append(inspect_adapter(entry.path))
        except DanqingError as error:
            say(str(error))
    if as_json:
        typer.echo(json.dumps([{**asdict(row), "path": str(row.path)} for row in rows], ensure_ascii=False, indent=2))
        return
    for row in rows:
        alias = f" ({row.alias})" if row.alias not in ("", row.name) else ""
        ranks = "-".join(map(str, dict.fromkeys((*row.ranks[:1], *row.ranks[-1:])))) or "-"
        told = [f"rank {ranks}"] if row.unet or row.text else [f"{key} {value}" for key, value in row.facts.items()]
        words = [", ".join(row.words[:3])] if row.words and not row.facts else []
        typer.echo("  ".join([f"{row.name}{alias}", row.kind, row.family or "-", *told, *words]))
    if not rows:
        typer.echo(f"none yet; danqing models add PATH|URL|hf:OWNER/NAME|civitai:ID (settings: {settings.path})")


def inspect_adapters(
    files: Annotated[list[str], typer.Argument(metavar="PATH|NAME...", help="adapters' files", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, a line each")] = False,
) -> None:
    from danqing.adapters.inspect import inspect_adapter
    from danqing.pipeline.adapters import find_adapter

    for index, name in enumerate(files):
        summary = inspect_adapter(find_adapter(name))
        if as_json:
            typer.echo(json.dumps({**asdict(summary), "path": str(summary.path)}, ensure_ascii=False))
            continue
        layers = f"{summary.unet} of the U-Net, {summary.text} of text encoders"
        ranks = ", ".join(map(str, summary.ranks)) or "-"
        fields = {
            "file": summary.path,
            "kind": summary.kind,
            "family": summary.family or "not told",
            **({"layers": layers, "rank": ranks} if summary.unet or summary.text else summary.facts),
            "called": summary.alias,
            "trigger words": ", ".join(summary.words),
            **summary.settings,
        }
        lines = (f"{key}: {value}" for key, value in fields.items() if value != "")
        typer.echo("\n" * (index > 0) + "\n".join(lines))
