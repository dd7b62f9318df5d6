"""`danqing prompt`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("prompt", help="Show what a prompt does: tokens, weights, schedule.")(prompt)


def prompt(
    text: Annotated[str, typer.Argument(help="the prompt", show_default=False)],
    steps: Annotated[int, typer.Option("--steps", min=1, help="sampling steps that schedules are laid over")] = 20,
    dialect: Annotated[
        str | None, typer.Option("--dialect", metavar="danqing|a1111|comfyui|diffusers", help="unset shows all")
    ] = None,
    family: Annotated[str, typer.Option("--family", help="whose tokenizer: sd1, sd2, sdxl ...")] = "sd1",
    sampler: Annotated[str, typer.Option("--sampler", help="second-order samplers count steps twice")] = "Euler",
    emphasis: Annotated[str | None, typer.Option("--emphasis", metavar="original|no norm|ignore|none|comfyui")] = None,
    negative: Annotated[bool, typer.Option("--negative", help="read it as a negative prompt")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    from dataclasses import asdict

    from danqing.cli.show import say
    from danqing.families import find_family
    from danqing.pipeline.embeddings import find_embeddings, load_embeddings
    from danqing.prompts.explain import explain, render
    from danqing.prompts.grammar import understand
    from danqing.prompts.tokenizer import clip
    from danqing.vocabulary import DIALECT_EMPHASIS, DIALECTS, EMPHASES, Dialect, choose

    chosen = DIALECTS if dialect is None else (choose("dialect", dialect, DIALECTS),)
    mode = None if emphasis is None else choose("emphasis", emphasis, EMPHASES)
    row = find_family(family)
    told: list[str] = []

    def note(line: str) -> None:
        if line not in told:
            told.append(line)
            say(line)

    def words(name: Dialect) -> dict[str, int]:
        found = find_embeddings([understand(text, steps, dialect=name)], clip, name, mode)
        for problem in found.problems:
            note(problem)
        return {embedding.name: embedding.count for embedding in load_embeddings(found.files, row, note)}

    explanations = [
        explain(
            text,
            row,
            steps,
            name,
            sampler,
            emphasis=mode or DIALECT_EMPHASIS[name],
            negative=negative,
            words=words(name),
        )
        for name in chosen
    ]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in explanations], ensure_ascii=False, indent=2))
        return
    shown: dict[str, list[str]] = {}
    for name, explanation in zip(chosen, explanations):
        body = render(explanation).partition("\n")[2]
        shown.setdefault(body, []).append(name)
    for body, names in shown.items():
        typer.echo(f"{row.title}, {steps} steps, dialect {', '.join(names)}\n{body}\n")
