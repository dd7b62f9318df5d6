"""Where pictures go."""

from __future__ import annotations

from pathlib import Path

from danqing.errors import DanqingError
from danqing.metadata.files import check_suffix, free_name


def parse_size(text: str) -> dict[str, str]:
    """`1024x768` -> width and height. Raises DanqingError."""
    width, cross, height = (part.strip() for part in text.lower().replace("×", "x").partition("x"))
    if not cross or not width.isdigit() or not height.isdigit():
        raise DanqingError(f"size: '{text}' is no size; write it as 512x768")
    return {"width": width, "height": height}


def check_output(output: Path | None) -> None:
    """Whether pictures can go there, known before hours of painting. Raises DanqingError."""
    if output is None:
        return
    if output.suffix and not output.is_dir():
        check_suffix(output)
    parent = output.parent if output.suffix and not output.is_dir() else output
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DanqingError(f"{output}: '{parent}' is a file, not a folder")


def picture_path(output: Path | None, folder: Path, seed: int, index: int, total: int, overwrite: bool) -> Path:
    """The file of picture `index` of `total`.

    `output` is a picture's name (numbered when there are several) or a folder; unset is `folder`, and there a
    picture is named by its seed. A name that is taken becomes `name-2` unless `overwrite`.
    """
    if output is not None and output.suffix and not output.is_dir():
        path = output if total == 1 else output.with_name(f"{output.stem}-{index + 1}{output.suffix}")
    else:
        path = (output or folder) / f"{seed}.png"
    return path if overwrite else free_name(path)
