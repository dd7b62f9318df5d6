"""Plots as jobs: one request painted many times over, and last a labelled sheet of it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict

from danqing.errors import DanqingError
from danqing.library.settings import Settings
from danqing.metadata.files import read_picture
from danqing.metadata.infotext import infotext
from danqing.metadata.read import read_record
from danqing.pipeline.axes import parse_axis
from danqing.pipeline.legend import MOST_PIXELS, Label
from danqing.pipeline.plot import Place, Plot, from_rows, matrix, settable, sheet, xyz
from danqing.prompts.lines import parse_lines
from danqing.requests import Painting, read
from danqing.serve.accept import check_names
from danqing.serve.store import Job
from danqing.serve.work import Comparison, Finished, picture_path


class Layout(BaseModel):
    """Where a plot's pictures stand on its sheet, as the last part of its job holds it."""

    model_config = ConfigDict(frozen=True)

    places: tuple[Place, ...]
    """Of each part, in order."""
    counts: tuple[int, ...]
    """Pictures of each part."""
    columns: tuple[str | tuple[tuple[str, bool], ...], ...]
    rows: tuple[str | tuple[tuple[str, bool], ...], ...]
    sheets: tuple[str, ...]
    script: dict[str, str] = {}
    legend: bool = True
    margin: int = 0


def plot_of(asked: Comparison, settings: Settings) -> Plot:
    """What is to be painted. Raises DanqingError: an unknown axis or value, a name outside the model folders."""
    request = asked.request
    if asked.matrix is not None:
        return matrix(
            request, negative=asked.matrix == "negative_prompt", different_seeds=asked.iterate_seeds, settings=settings
        )
    if asked.prompts:
        rows, _ = parse_lines("\n".join(asked.prompts), settable(type(request)), "prompts")
        check_rows(rows, request, settings)
        return from_rows(request, rows, iterate_seeds=asked.iterate_seeds, settings=settings)
    axes = (asked.x, asked.y, asked.z)
    check_axes(axes, request, settings)
    return xyz(request, *axes, fixed_seeds=asked.fixed_seeds, vary_seeds=asked.vary_seeds, settings=settings)


def check_axes(specs: Iterable[str], request: Painting, settings: Settings) -> None:
    """Raises DanqingError where a value of an axis names a file outside the model folders, or makes no sense."""
    fields = request.model_dump(exclude_unset=True)
    for spec in filter(None, specs):
        axis = parse_axis(spec, request)
        for value in axis.values:
            check_names(read(type(request), {**fields, **axis.change(fields, value)}), settings)


def check_rows(rows: Iterable[Mapping[str, Any]], request: Painting, settings: Settings) -> None:
    """The same of the fields that lines of prompts set."""
    fields = request.model_dump(exclude_unset=True)
    for row in rows:
        check_names(read(type(request), {**fields, **row}), settings)


def layout_of(plot: Plot, asked: Comparison) -> Layout:
    """What the sheet needs to be told."""
    flat = [(cell.place, request.batch_size * request.n_iter) for cell in plot.cells for request in cell.requests]
    return Layout(
        places=tuple(place for place, _ in flat),
        counts=tuple(count for _, count in flat),
        columns=_plain(plot.columns),
        rows=_plain(plot.rows),
        sheets=plot.sheets,
        script=dict(plot.script or {}),
        legend=asked.legend,
        margin=asked.margin,
    )


def sheet_of(job: Job, layout: Layout, folder: Path, note: Callable[[str], None]) -> Finished:
    """The sheet of a job's pictures, which lie in `folder`. Raises DanqingError where there is none of them."""
    files: list[tuple[Place, Path]] = []
    index = 0
    for place, count in zip(layout.places, layout.counts):
        for number in range(index, index + count):
            path = folder / picture_path(job, number)
            if path.is_file():
                files.append((place, path))
        index += count
    pictures: dict[Place, list[Image.Image]] = {}
    scale = _scale([path for _, path in files])
    if scale < 1:
        note(f"the sheet of {len(files)} pictures would be too large; it shows them at {scale:.0%}")
    for place, path in files:
        with Image.open(path) as image:
            size = max(int(image.width * scale), 1), max(int(image.height * scale), 1)
            pictures.setdefault(place, []).append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    plot = Plot((), layout.columns, layout.rows, layout.sheets, layout.script)
    drawn = sheet(plot, pictures, legend=layout.legend, margin=layout.margin, note=note)
    record = read_picture(files[0][1]).texts.get("danqing")
    text = infotext(read_record(record), layout.script) if record else ""
    return Finished(index, drawn, infotext=text)


def _scale(paths: Sequence[Path]) -> float:
    """By how much pictures are to be smaller for all of them to be in memory at once."""
    pixels = 0
    for path in paths:
        with Image.open(path) as image:
            pixels += image.width * image.height
    return min(math.sqrt(MOST_PIXELS / max(pixels, 1)), 1.0)


def _plain(labels: Sequence[Label]) -> tuple[str | tuple[tuple[str, bool], ...], ...]:
    return tuple(label if isinstance(label, str) else tuple((text, on) for text, on in label) for label in labels)


def check_count(plot: Plot, most: int) -> None:
    """Raises DanqingError for a plot that no job may have."""
    pictures = sum(request.batch_size * request.n_iter for cell in plot.cells for request in cell.requests)
    if pictures >= most:
        raise DanqingError(f"plot: {pictures} pictures in one job; fewer than {most} are painted")
