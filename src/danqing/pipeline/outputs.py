"""Where pictures go."""

from __future__ import annotations

import os
from pathlib import Path

from danqing.errors import DanqingError
from danqing.metadata.files import check_suffix, free_name
from danqing.vocabulary import quoted


def parse_size(text: str) -> dict[str, str]:
    """`1024x768` -> width and height. Raises DanqingError."""
    width, cross, height = (part.strip() for part in text.lower().replace("×", "x").replace("*", "x").partition("x"))
    if not cross or not width.isdecimal() or not height.isdecimal():
        raise DanqingError(f"size: {quoted(text)} is no size; write it as 512x768")
    return {"width": width, "height": height}


def check_output(output: Path | None, folder: Path) -> None:
    """Whether pictures can go to `output`, or to `folder` where it is unset: known before hours of painting.

    Raises DanqingError.
    """
    output, named = (folder, False) if output is None else (output, None)
    try:
        if named is None and names_picture(output):
            check_suffix(output)
            named = True
        parent = output.parent if named else output
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise DanqingError(f"{output}: '{parent}' is a file, not a folder; give another place by --output")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise DanqingError(f"{output}: nothing can be written to the folder '{parent}'; give another by --output")
    except OSError as error:
        raise DanqingError(f"{output}: {error.strerror}; give another place by --output") from None


def names_picture(output: Path) -> bool:
    """Whether `output` is a picture's name; else it is a folder's."""
    return bool(output.suffix) and not output.is_dir()


def picture_path(output: Path | None, folder: Path, seed: int, index: int, total: int, overwrite: bool) -> Path:
    """The file of picture `index` of `total`.

    `output` is a picture's name (numbered when there are several) or a folder; unset is `folder`, and there a
    picture is named by its seed. A name that is taken becomes `name-2` unless `overwrite`.
    """
    if output is not None and names_picture(output):
        path = output if total == 1 else output.with_name(f"{output.stem}-{index + 1}{output.suffix}")
    else:
        path = (output or folder) / f"{seed}.png"
    return path if overwrite else free_name(path)


def grid_path(output: Path | None, first: Path) -> Path:
    """The file of all pictures as one: beside the first, by the name that was asked for or the first seed."""
    stem = output.stem if output is not None and names_picture(output) else first.stem
    return first.with_name(f"{stem}-grid{first.suffix}")
