"""What this version is called, and whether its arithmetic is still the same."""

__version__ = "0.1.0"

NUMERICS = 1
"""Raised whenever the arithmetic changes, so that a picture of an older version can be told from a wrong one."""
