"""`parity(...)`: a comparison with a reference that also becomes a row of docs/parity.md."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"


@pytest.fixture(scope="session")
def _rows(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], tuple[float, float]]]:
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    yield rows
    store = request.config.cache.mkdir("parity")
    for (subject, reference), (error, bound) in rows.items():
        name = "".join(c if c.isalnum() else "_" for c in f"{subject} {reference}")[:150]
        (store / f"{name}.json").write_text(json.dumps([subject, reference, error, bound]))


@pytest.fixture
def parity(_rows: dict) -> Callable[[str, str, float, float], None]:
    def check(subject: str, reference: str, error: float, bound: float) -> None:
        error = float(error)
        assert math.isfinite(error), f"{subject} against {reference}: error is {error}"
        assert error <= bound, f"{subject} against {reference}: {error:.3g} > {bound:.3g}"
        worst = max(error, _rows.get((subject, reference), (0.0, bound))[0])
        _rows[subject, reference] = (worst, bound)

    return check
