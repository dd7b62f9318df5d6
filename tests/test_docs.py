"""The documentation keeps up: the tables name what there is, every option is explained, no link leads nowhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from danqing.checkpoints.save import save
from danqing.cli import program
from danqing.cli.a1111_flags import FLAGS
from danqing.families import Model
from danqing.pipeline.models import load
from danqing.sampling.samplers import options_of
from danqing.vocabulary import MODULES, SAMPLERS, SCHEDULERS, Module, Sampler, Scheduler

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("README*.md")), ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text_of(name), re.MULTILINE | re.DOTALL)
    assert found, f"docs/{name} has no section '{heading}'"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """First cell of each row of the tables in `text` -> all its cells."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row for row in cells}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_sampler_has_its_row(sampler: Sampler) -> None:
    assert rows(section("sampling.md", "Samplers"))[sampler.name] == [
        sampler.name,
        ", ".join(sampler.aliases),
        sampler.scheduler,
        ", ".join(sorted(options_of(sampler.name))) or "-",
        "2" if sampler.second_order else "1",
    ]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.name)
def test_every_scheduler_has_its_row(scheduler: Scheduler) -> None:
    row = rows(section("sampling.md", "Schedules"))[scheduler.name]
    assert row[1] == ", ".join(scheduler.aliases)
    assert row[2]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_preprocessor_is_named_with_its_files(module: Module) -> None:
    text = section("adapters.md", "ControlNets")
    for name in (module.name, *(file for file in module.files if "." in file)):
        assert f"`{name}`" in text


def options(*path: str) -> list[str]:
    """Every spelling of every option of a command."""
    command = typer.main.get_command(program())
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    return [flag for param in command.params for flag in param.opts if flag.startswith("--")]


def commands() -> Iterator[tuple[str, ...]]:
    """The paths of all commands."""
    for name, command in typer.main.get_command(program()).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from ((name, inner) for inner in command.commands)
        else:
            yield (name,)


@pytest.mark.parametrize("command", ["txt2img", "img2img", "inpaint", "outpaint", "upscale", "plot", "replay"])
def test_every_option_of_painting_is_explained(command: str) -> None:
    flags = options(command)
    assert {"--model", "--output"} & set(flags)
    pages = ("guide.md", "sampling.md", "prompts.md", "fast.md", "adapters.md")
    written = set(re.findall(r"--[a-z0-9-]+", "".join(map(text_of, pages))))
    assert [flag for flag in flags if flag not in written | {"--legend"}] == []


def test_every_option_of_the_studio_is_explained() -> None:
    written = set(re.findall(r"--[a-z0-9-]+", text_of("serve.md")))
    assert [flag for flag in options("serve") if flag not in written | {"--page"}] == []


def test_no_option_is_written_that_is_not_there() -> None:
    known = {flag for path in commands() for flag in options(*path)} | {
        "--help",
        "--no-metadata",
        "--no-legend",
        "--no-page",
        "--logdir",
    }
    known.add("--prompt")  # in the lines of a file of prompts
    known |= set(FLAGS)
    written = {
        (page.name, flag) for page in PAGES for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text())
    }
    assert {(page, flag) for page, flag in written if flag not in known} == set()


@pytest.fixture
def tiny() -> Model:
    return load(device="cpu", dtype="float32")


@pytest.mark.usefixtures("one_thread")
def test_the_examples_in_python_run(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    save(tiny, tmp_path / "model.safetensors")
    blocks = re.findall(r"^```python\n(.*?)^```$", text_of("python.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    exec(compile("\n".join(blocks), "docs/python.md", "exec"), {})
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == {"castle.png", "7.png", "a.png", "a-2.png", "grid.png", "plot.png", "resumed.png"}


def anchors(page: Path) -> set[str]:
    """What a link to a heading of `page` may say after #, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    (page, target)
    for page in PAGES
    for target in dict.fromkeys(LINK.findall(page.read_text(encoding="utf-8")))
    if "://" not in target
]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.name}:{target}" for page, target in LINKS])
def test_no_link_leads_nowhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), f"{page.name} links to {target}"
    if anchor:
        assert anchor in anchors(file), f"{page.name} links to {target}"
