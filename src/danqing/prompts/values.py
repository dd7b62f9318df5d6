"""Lists of values in AUTOMATIC1111's notation (its scripts/xyz_grid.py): `1-5`, `1-5 (+2)`, `1-10 [5]`, CSV."""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal
from itertools import chain

from danqing.errors import DanqingError
from danqing.vocabulary import quoted

MOST = 10_000
"""A range may stand for no more values than this."""

_NUMBER = r"[+-]?\s*(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\])?")


def split_csv(text: str) -> list[str]:
    """The values of a line of CSV, without the spaces around them; `"a, b"` is one value, `""` within it a quote.

    Raises DanqingError for what is no CSV: a NUL, a value of 128 KiB.
    """
    try:
        rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        return [value.strip() for value in chain.from_iterable(rows)]
    except csv.Error as error:
        raise DanqingError(f"values {quoted(text)}: they are not understood: {error}") from None


def join_csv(values: list[str]) -> str:
    """The line of CSV that `split_csv` reads as these values."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def spread(text: str, whole: bool) -> list[float] | list[int] | None:
    """The numbers that a range stands for, or None where `text` is none.

    `1-5` goes by ones; `1-5 (+2)` by steps: 1, 3, 5; `10-5 (-3)` down: 10, 7; `1-10 [5]` is five numbers from end to
    end, which `whole` cuts to integers: 1, 3, 5, 7, 10. Both ends are taken where the steps meet them.
    Raises DanqingError for a range of no values or too many, and for a fraction where numbers are `whole`.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return None
    first, last = (Decimal(re.sub(r"\s", "", match[group])) for group in (1, 2))
    if match[4] is not None:
        count = int(match[4])
        step = (last - first) / (count - 1) if count > 1 else Decimal(0)
    else:
        step = Decimal(re.sub(r"\s", "", match[3])) if match[3] else Decimal(1)
        count = 0 if step == 0 else int((last - first) / step) + 1 if (last - first) / step >= 0 else 0
    if not 0 < count <= MOST:
        what = f"more than {MOST} values" if count else "no values; the step goes from the first number to the last"
        raise DanqingError(f"range {quoted(text)}: it stands for {what}, as in 1-9 (+2) or 9-1 (-2)")
    numbers = [first + index * step for index in range(count)]
    if match[4] is not None and count > 1:
        numbers[-1] = last
    if not whole:
        return [float(number) for number in numbers]
    if match[4] is None and any(number != int(number) for number in (first, last, step)):
        raise DanqingError(f"range {quoted(text)}: whole numbers are needed here")
    return [int(number) for number in numbers]
