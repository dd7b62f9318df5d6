"""X/Y/Z plots and prompt matrices: many requests made of one, and a labelled grid of their pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.library.settings import Settings
from danqing.metadata.infotext import infotext
from danqing.pipeline.axes import NOTHING, Axis, parse_axis
from danqing.pipeline.expand import expand, fix_seeds
from danqing.pipeline.legend import Label, beside, labelled, shrunk
from danqing.pipeline.models import Say, print_note
from danqing.pipeline.paint import Progress
from danqing.pipeline.picture import Picture, grid
from danqing.pipeline.series import Load, check_files, paint_all
from danqing.prompts.lines import read_lines
from danqing.requests import MAX_SEED, Painting, read

Place = tuple[int, int, int]
"""Where a cell is: column, row, sheet."""
MOST = 10_000
"""A plot has no more cells than this."""


@dataclass(frozen=True)
class Cell:
    place: Place
    requests: tuple[Painting, ...]
    """Mostly one; more where wildcards make several of it."""


@dataclass(frozen=True)
class Plot:
    """What is to be painted, in the order of painting, and how it is laid out."""

    cells: tuple[Cell, ...]
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    sheets: tuple[str, ...] = ("",)
    script: Mapping[str, str] | None = None
    """What the grid's infotext says besides: AUTOMATIC1111's `Script`, `X Type`, `X Values` ..."""

    @property
    def count(self) -> int:
        """Requests to paint."""
        return sum(len(cell.requests) for cell in self.cells)


@dataclass(frozen=True, eq=False)
class Event:
    """A step of a cell; with its last step come the pictures, or the error that ended it."""

    cell: Cell
    index: int
    """Of the request among all, from 0."""
    count: int
    progress: Progress | None
    error: DanqingError | None = None


def xyz(
    request: Painting,
    x: str = "",
    y: str = "",
    z: str = "",
    *,
    fixed_seeds: bool = True,
    vary_seeds: str = "",
    settings: Settings | None = None,
) -> Plot:
    """The plot of up to three axes, each `TITLE=VALUES` (`axes.parse_axis`): columns, rows, and sheets side by side.

    All cells have one seed, unless an axis says otherwise, `fixed_seeds` is off, or `vary_seeds` names axes (`xy`)
    along which it counts up. The dearest axis to change is the outermost, so that checkpoints load once.
    Everything is checked now. Raises DanqingError: an unknown axis or value, a file or style that is not there.
    """
    request = fix_seeds(request) if fixed_seeds or vary_seeds else request
    axes = [parse_axis(spec, request, fix_seeds=fixed_seeds) if spec else NOTHING for spec in (x, y, z)]
    sizes = [len(axis.values) for axis in axes]
    if sizes[0] * sizes[1] * sizes[2] > MOST:
        raise DanqingError(f"plot: it would have {sizes[0] * sizes[1] * sizes[2]} cells, more than {MOST}")
    if not set(vary_seeds) <= set("xyz"):
        raise DanqingError(f"vary_seeds: should be of the letters x, y and z, but it is {vary_seeds!r}")
    outward = sorted(range(3), key=lambda n: (-axes[n].cost, -n))
    strides = [1, sizes[0], sizes[0] * sizes[1]]
    cells = []
    for indices in itertools.product(*(range(sizes[n]) for n in outward)):
        by_axis = dict(zip(outward, indices))
        place = (by_axis[0], by_axis[1], by_axis[2])
        varied = sum(place["xyz".index(letter)] * strides["xyz".index(letter)] for letter in set(vary_seeds))
        cells.append(Cell(place, expand(_at(request, axes, place, varied), settings)))
    check_files([each for cell in cells for each in cell.requests], settings)
    script = {"Script": "X/Y/Z plot"}
    for letter, axis in zip("XYZ", axes):
        if axis.title:
            script |= {f"{letter} Type": axis.title, f"{letter} Values": axis.text}
            if axis.field in ("seed", "subseed") and fixed_seeds:
                script[f"Fixed {letter} Values"] = ", ".join(map(str, axis.values))
    return Plot(tuple(cells), axes[0].labels, axes[1].labels, axes[2].labels, script)


def _at(request: Painting, axes: Sequence[Axis], place: Place, varied: int) -> Painting:
    """The request of one cell: the axes' changes one after another, x first."""
    fields = request.model_dump(exclude_unset=True)
    for axis, index in zip(axes, place):
        fields |= axis.change(fields, axis.values[index])
    if varied:
        fields["seed"] = int(fields["seed"]) + varied
        if fields["seed"] > MAX_SEED:
            raise DanqingError(f"seed: that of a later cell would be above {MAX_SEED}; lower it")
    return read(type(request), fields)


def split_matrix(prompt: str) -> list[str]:
    """The parts of a prompt matrix, apart by `|`; one within [ ] is AUTOMATIC1111's alternation and stays."""
    parts, depth = [""], 0
    for index, char in enumerate(prompt):
        escaped = prompt[index - 1 : index] == "\\"
        depth += (char == "[" and not escaped and "]" in prompt[index:]) - (char == "]" and depth > 0 and not escaped)
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def matrix(
    request: Painting,
    *,
    negative: bool = False,
    at_start: bool = False,
    delimiter: str = ", ",
    different_seeds: bool = False,
    settings: Settings | None = None,
) -> Plot:
    """AUTOMATIC1111's prompt matrix: `a | b | c` paints a with every subset of the others, 4 pictures here.

    `negative` splits the negative prompt instead; `at_start` puts what varies before the constant part; `delimiter`
    joins them; `different_seeds` counts seeds up, else all have one.
    Raises DanqingError where nothing is to be combined, or too much.
    """
    field = "negative_prompt" if negative else "prompt"
    constant, *options = split_matrix(getattr(request, field))
    if not options or 2 ** len(options) > MOST:
        raise DanqingError(f"{field}: a matrix has from 1 to 13 parts that vary, such as 'a castle | night | snow'")
    options = [option.strip().strip(",") for option in options]
    request = fix_seeds(request)
    across = (len(options) + 1) // 2
    cells = []
    for number in range(2 ** len(options)):
        chosen = [option for bit, option in enumerate(options) if number >> bit & 1]
        pieces = [*chosen, constant.strip()] if at_start else [constant.strip(), *chosen]
        fields = {**request.model_dump(exclude_unset=True), field: delimiter.join(pieces)}
        if different_seeds:
            fields["seed"] += number
        place = (number % 2**across, number >> across, 0)
        cells.append(Cell(place, expand(read(type(request), fields), settings)))
    check_files([each for cell in cells for each in cell.requests], settings)
    columns, rows = _subsets(options[:across]), _subsets(options[across:])
    return Plot(tuple(cells), columns, rows, script={"Script": "Prompt matrix"})


def from_file(
    request: Painting,
    path: Path,
    *,
    iterate_seeds: bool = False,
    say: Say = print_note,
    settings: Settings | None = None,
) -> Plot:
    """Each line of the file (`prompts.lines`) painted, with what else the request asks for; a column for each line.

    Seeds that are unset are drawn for each line; with `iterate_seeds` they count on from line to line.
    Raises DanqingError with the line's number for what is wrong in it.
    """
    rows, notes = read_lines(path, settable(type(request)))
    for note in notes:
        say(note)
    return from_rows(request, rows, iterate_seeds=iterate_seeds, settings=settings)


def settable(kind: type[Painting]) -> list[str]:
    """The fields that a line of prompts may set."""
    return [name for name in kind.model_fields if name != "template"]


def from_rows(
    request: Painting,
    rows: Sequence[Mapping[str, Any]],
    *,
    iterate_seeds: bool = False,
    settings: Settings | None = None,
) -> Plot:
    """A column for each of `rows`, which are fields that change. Raises DanqingError for one that is wrong."""
    given = (fix_seeds(request) if iterate_seeds else request).model_dump(exclude_unset=True)
    cells: list[Cell] = []
    painted = 0
    for index, row in enumerate(rows):
        counted = {"seed": given["seed"] + painted} if iterate_seeds else {}
        asked = read(type(request), {**given, **counted, **row})
        painted += asked.batch_size * asked.n_iter
        cells.append(Cell((index, 0, 0), expand(asked, settings)))
    check_files([each for cell in cells for each in cell.requests], settings)
    labels = tuple(" ".join(f"{name}: {value}" for name, value in row.items() if name != "prompt") for row in rows)
    titles = tuple(", ".join(filter(None, (row.get("prompt", ""), label))) for row, label in zip(rows, labels))
    return Plot(tuple(cells), titles, ("",), script={"Script": "Prompts from file or textbox"})


def _subsets(options: Sequence[str]) -> tuple[Label, ...]:
    """The label of each subset: all options, those that are not in it struck through."""
    numbers = range(2 ** len(options))
    return tuple(tuple((option, bool(number >> bit & 1)) for bit, option in enumerate(options)) for number in numbers)


def paint_plot(
    plot: Plot,
    model: Model | None = None,
    *,
    load: Load | None = None,
    say: Say = print_note,
    safety_checker: bool = False,
) -> Generator[Event, None, None]:
    """Paint the cells one after another; what was yielded stays good when a later one fails or the iterator closes.

    Takes what `series.paint_all` takes.
    """
    owners = [cell for cell in plot.cells for _ in cell.requests]
    requests = [request for cell in plot.cells for request in cell.requests]
    for event in paint_all(requests, model, load=load, say=say, safety_checker=safety_checker):
        yield Event(owners[event.index], event.index, event.count, event.progress, event.error)


def sheet(
    plot: Plot,
    pictures: Mapping[Place, Sequence[Image.Image]],
    *,
    legend: bool = True,
    margin: int = 0,
    note: Callable[[str], None] = print_note,
) -> Image.Image:
    """All cells as one picture: columns by x, rows by y, a sheet for each z beside the others.

    A cell of several pictures shows them as a grid of its own; one without any stays white. `note` is told what is
    not as it should be. Raises DanqingError where there is no picture at all.
    """
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            note(line)

    across, down = len(plot.columns), len(plot.rows)
    places = [(x, y, z) for z in range(len(plot.sheets)) for y in range(down) for x in range(across)]
    found = [pictures.get(place) or () for place in places]
    images = shrunk([each[0] if len(each) == 1 else grid(each) if each else None for each in found], once)
    known = next((image for image in images if image is not None), None)
    if known is None:
        raise DanqingError("plot: nothing was painted, so that there is no grid")
    sheets = []
    for index, title in enumerate(plot.sheets):
        cells = images[index * across * down : (index + 1) * across * down]
        if not any(cells):
            cells[0] = Image.new("RGB", known.size, (255, 255, 255))
        labels = (plot.columns, plot.rows) if legend else ([""] * across, [""] * down)
        sheets.append(labelled(cells, *labels, title=title if legend else "", margin=margin, note=once))
    return beside(sheets, margin)


def sheet_infotext(plot: Plot, first: Picture) -> str:
    """The grid's infotext: that of its first picture, and the axes as AUTOMATIC1111 names them."""
    return infotext(first.record, plot.script or {})
