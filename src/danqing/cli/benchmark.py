"""`danqing benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Time painting and training on this machine, beside other programs.

WORK is step, decode, picture or train, alone or with a model: step:sdxl. step and decode are of a full-size model with
random weights (sd1 unless named), picture and train of the bundled one. Each program runs in a process of its own, in
turns; medians, ratios and the share of what the machine does at its best are printed.
"""


def register(app: typer.Typer) -> None:
    app.command("benchmark", help=HELP)(benchmark)


def benchmark(
    works: Annotated[
        list[str] | None, typer.Argument(metavar="[WORK]...", help="unset is step decode picture train")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", metavar="NAME", help="diffusers, diffusers-compile, openvino, sdcpp or comfy; repeatable"
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", metavar="NAME", help="Danqing's own besides eager: compile, openvino, openvino:int8; repeatable"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", help="pixels along each side; unset is the model's")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", metavar="N", min=1, help="pictures at once; repeatable; unset is 1, in training 16"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="of a whole picture; unset is the model's")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="NAME", help="as in painting; repeatable [default: auto]")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu or cuda")] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="of which the median is told")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="three rounds with the bundled model: a minute, to see that all works")
    ] = False,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the figures there")] = None,
) -> None:
    from danqing.measure.contenders import find_peers, own_engines
    from danqing.measure.works import DEFAULT, ON_CUDA, QUICK, read_works

    contenders = [*own_engines(engine or []), *find_peers(peer or [])]
    from danqing.cli.show import say
    from danqing.families import FAMILIES
    from danqing.measure.report import Result, Setting, planned, told, write_json
    from danqing.measure.report import benchmark as measured
    from danqing.runtime.devices import pick_device

    cuda = pick_device(device).type == "cuda"
    asked = read_works(works or (QUICK if quick else ON_CUDA if cuda else DEFAULT), list(FAMILIES))
    setting = Setting(device, tuple(dtype or ["auto"]), size, tuple(batch or ([1, 8] if cuda else [])), steps)
    times = 3 if quick else rounds
    results: list[Result] = []
    for result in measured(planned(asked, setting), contenders, times, typer.echo, say):
        typer.echo(told(result))
        results.append(result)
    if as_json is not None:
        write_json(results, times, as_json)
        typer.echo(f"wrote {as_json}")
