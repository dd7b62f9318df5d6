"""`danqing adapters list|inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="LoRAs and their kin: what there is, and what it is.", no_args_is_help=True)
    group.command("list", help="List the LoRAs that prompts can name.")(list_adapters)
    group.command("inspect", help="Print what LoRA files are and how they were trained.")(inspect_adapters)
    app.add_typer(group, name="adapters")


def list_adapters(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    from danqing.adapters.inspect import Summary, inspect_adapter
    from danqing.cli.show import say
    from danqing.errors import DanqingError
    from danqing.library.names import known
    from danqing.library.settings import load_settings

    settings = load_settings()
    rows: list[Summary] = []
    for entry in known(settings):
        if entry.kind != "lora":
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
        words = f"  {', '.join(row.words[:3])}" if row.words else ""
        typer.echo(f"{row.name}{alias}  {row.kind}  {row.family or '-'}  rank {ranks}{words}")
    if not rows:
        typer.echo(f"none yet; danqing models add PATH|URL|hf:OWNER/NAME|civitai:ID (settings: {settings.path})")


def inspect_adapters(
    files: Annotated[list[str], typer.Argument(metavar="PATH|NAME...", help="LoRA files", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, a line each")] = False,
) -> None:
    from danqing.adapters.inspect import inspect_adapter
    from danqing.pipeline.adapters import find_lora

    for index, name in enumerate(files):
        summary = inspect_adapter(find_lora(name))
        if as_json:
            typer.echo(json.dumps({**asdict(summary), "path": str(summary.path)}, ensure_ascii=False))
            continue
        fields = {
            "file": summary.path,
            "kind": summary.kind,
            "family": summary.family or "not told",
            "layers": f"{summary.unet} of the U-Net, {summary.text} of text encoders",
            "rank": ", ".join(map(str, summary.ranks)) or "-",
            "called": summary.alias,
            "trigger words": ", ".join(summary.words),
            **summary.settings,
        }
        lines = (f"{key}: {value}" for key, value in fields.items() if value != "")
        typer.echo("\n" * (index > 0) + "\n".join(lines))
