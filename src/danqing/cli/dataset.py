"""`danqing dataset emoji`, `danqing dataset check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from danqing.train.check import Checked, Finding

LISTED = 20
"""Files of a warning that are printed, and lines of a histogram; --json has all."""


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="Folders of training pictures.", no_args_is_help=True, rich_markup_mode=None)
    commands.command("emoji", help="Make the emoji drawings that the bundled model is trained on.")(emoji)
    commands.command("check", help="Say what would hurt a training: exit code 2 for what would stop it.")(check)
    app.add_typer(commands, name="dataset")


def emoji(
    folder: Annotated[Path, typer.Argument(help="a new folder", show_default=False)],
    size: Annotated[int, typer.Option("--size", metavar="N", help="pixels along an edge")] = 128,
    style: Annotated[
        list[str] | None,
        typer.Option(
            "--style",
            metavar="NAME",
            help="3d, flat, noto, twemoji, or openmoji, which the bundled model never saw; give it again for more "
            "[default: the first four]",
            show_default=False,
        ),
    ] = None,
    packages: Annotated[
        Path | None,
        typer.Option(
            "--packages",
            metavar="FOLDER",
            help="where npm's archives are, or are fetched to [default: FOLDER-packages]",
            show_default=False,
        ),
    ] = None,
) -> None:
    from danqing.cli.show import say
    from danqing.train.emoji import STYLES, UNSEEN, make
    from danqing.vocabulary import choose

    known = {each.name: each for each in (*STYLES, UNSEEN)}
    wanted = [known[choose("style", name, tuple(known))] for name in dict.fromkeys(style or ())]
    counts = make(folder, size=size, styles=wanted or STYLES, packages=packages, say=say)
    kinds = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(f"wrote {folder}: {sum(counts.values())} pictures ({kinds})")


def check(
    folder: Annotated[Path, typer.Argument(help="pictures with captions", show_default=False)],
    size: Annotated[int, typer.Option("--size", metavar="N", help="pixels: as a recipe's data.size")] = 128,
    bucket_step: Annotated[
        int, typer.Option("--bucket-step", metavar="N", help="as a recipe's data.bucket_step; 0 is one square")
    ] = 0,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PICTURE", help="write crops as training would see them")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="by which captions are measured; unset is CLIP's"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with all files")] = False,
) -> None:
    import json
    from dataclasses import asdict

    from danqing.errors import DanqingError
    from danqing.metadata.files import check_suffix, save
    from danqing.prompts.tokenizer import from_folder
    from danqing.train.check import check as look
    from danqing.train.check import contact_sheet

    if sheet is not None:
        check_suffix(sheet)
    words = None if tokenizer is None else from_folder(tokenizer)
    found = look(folder, size, bucket_step, words)
    typer.echo(json.dumps(asdict(found), ensure_ascii=False, indent=2) if as_json else "\n".join(_lines(found)))
    if sheet is not None:
        save(contact_sheet(folder, size, bucket_step), sheet, None, None)
        if not as_json:
            typer.echo(f"wrote {sheet}")
    if found.errors:
        raise DanqingError(f"{folder}: {'; '.join(error.text for error in found.errors)}")


def _lines(found: Checked) -> Iterator[str]:
    """The report, errors first."""
    yield f"{found.folder}: {found.pictures} pictures, {found.held_out} of them held out"
    yield from _histogram("sizes", found.sizes)
    yield from _histogram("trained at", found.buckets)
    for error in found.errors:
        yield from _finding("error", error, len(error.files))
    for warning in found.warnings:
        yield from _finding("warning", warning, LISTED)
    if not found.errors and not found.warnings:
        yield "nothing is wrong"


def _histogram(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield f"{title}:"
    most = max(counts.values(), default=1)
    for size, count in list(counts.items())[:LISTED]:
        yield f"  {size:>11} {count:>7}  {'#' * -(-40 * count // most)}"
    if len(counts) > LISTED:
        yield f"  {len(counts) - LISTED} more sizes {sum(list(counts.values())[LISTED:]):>7}"


def _finding(kind: str, finding: Finding, shown: int) -> Iterator[str]:
    yield f"{kind}: {finding.text}"
    yield from (f"  {name}" for name in finding.files[:shown])
    if len(finding.files) > shown:
        yield f"  ... and {len(finding.files) - shown} more; --json lists all"
