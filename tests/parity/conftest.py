"""`parity(...)`: a comparison with a reference that also becomes a row of docs/parity.md.

`make parity` writes the table from a run; any other run fails if the table lacks one of its rows.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"
HEAD = """# Parity

What is held against what, and how well it agrees. Written by `make parity` from the tests in tests/parity, which build
both sides with the same random weights, seeds and noise; `make test` checks every row again. An error is relative to
the largest value of the reference unless its subject says otherwise (a picture's is of 255 levels; 0 is the same bits).

| subject | reference | largest error | bound |
|---|---|--:|--:|
"""
Rows = dict[tuple[str, str], tuple[float, float]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(subject: str, reference: str, error: float, bound: float) -> str:
    return f"| {_cell(subject)} | {_cell(reference)} | {error:.1e} | {bound:.1e} |".replace("0.0e+00", "0")


@pytest.fixture(scope="session")
def _rows() -> Iterator[Rows]:
    rows: Rows = {}
    yield rows
    lines = [_line(*key, *value) for key, value in sorted(rows.items())]
    if os.environ.get("DANQING_PARITY") == "write":
        TABLE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
        return
    known = re.findall(r"^\| (.*?) \| (.*?) \| [^|]* \| [^|]* \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    absent = sorted({(_cell(subject), _cell(reference)) for subject, reference in rows} - set(known))
    assert not absent, f"docs/parity.md lacks {absent[:3]}: run make parity"


@pytest.fixture
def parity(_rows: Rows) -> Callable[[str, str, float, float], None]:
    def check(subject: str, reference: str, error: float, bound: float) -> None:
        error = float(error)
        assert math.isfinite(error), f"{subject} against {reference}: error is {error}"
        assert error <= bound, f"{subject} against {reference}: {error:.3g} > {bound:.3g}"
        worst = max(error, _rows.get((subject, reference), (0.0, bound))[0])
        _rows[subject, reference] = (worst, bound)

    return check
