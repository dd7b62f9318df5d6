"""Names of files and folders as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def path_of(text: str | Path) -> Path:
    """The path, with the person's home in place of `~`; a `~name` that is no user's is a name like any other."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises for such a name
