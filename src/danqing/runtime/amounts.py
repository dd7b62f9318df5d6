"""Amounts of memory as people write them. No torch here."""

from __future__ import annotations

from danqing.errors import DanqingError


def parse_memory(text: str) -> int:
    """`6GB`, `800 MB`, `2.5GiB` or bytes -> bytes; a GB is 10^9. Raises DanqingError."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    units |= {"k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    plain = text.strip().casefold()
    number = plain.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = plain[len(number) :].strip()
    try:
        value = float(number) * units[unit]
        if not 0 < value < 1 << 62:
            raise ValueError
    except (ValueError, KeyError):
        raise DanqingError(f"memory: {text!r} is no amount of memory; write it as 6GB") from None
    return int(value)
