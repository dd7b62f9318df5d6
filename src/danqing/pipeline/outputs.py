"""Where pictures go."""

from __future__ import annotations

import os
from pathlib import Path

from danqing.errors import DanqingError
from danqing.library.settings import Settings
from danqing.metadata.files import check_suffix, free_name
from danqing.pipeline.naming import Job, Subject, check_pattern, expand, is_pattern
from danqing.pipeline.picture import Picture
from danqing.vocabulary import quoted


def parse_size(text: str) -> dict[str, str]:
    """`1024x768` -> width and height. Raises DanqingError."""
    width, cross, height = (part.strip() for part in text.lower().replace("×", "x").replace("*", "x").partition("x"))
    if not cross or not width.isdecimal() or not height.isdecimal():
        raise DanqingError(f"size: {quoted(text)} is no size; write it as 512x768")
    return {"width": width, "height": height}


def check_output(output: Path | None, settings: Settings) -> None:
    """Whether pictures can go to `output`, or to the settings' folder where it is unset: known before hours of painting.

    Raises DanqingError, for a pattern with an unknown token too.
    """
    try:
        folder, pattern, suffix = _place(output, settings)
        check_pattern(pattern)
        check_suffix(Path(f"x{suffix}") if output is None or suffix != output.suffix else output)
        parent = folder
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise DanqingError(
                f"{output or folder}: '{parent}' is a file, not a folder; give another place by --output"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise DanqingError(
                f"{output or folder}: nothing can be written to the folder '{parent}'; give another by --output"
            )
    except OSError as error:
        raise DanqingError(
            f"{output or settings.output_folder}: {error.strerror}; give another place by --output"
        ) from None


def names_picture(output: Path) -> bool:
    """Whether `output` is a picture's name; else it is a folder's."""
    return bool(output.suffix) and not output.is_dir()


def _place(output: Path | None, settings: Settings) -> tuple[Path, str, str]:
    """(folder, pattern, suffix): where names by a pattern go. A plain name is a folder and itself."""
    suffix = f".{settings.output_format}"
    if output is None:
        return settings.output_folder, settings.output_pattern, suffix
    if is_pattern(str(output)):
        plain = next(index for index, part in enumerate(output.parts) if is_pattern(part))
        tokens = "/".join(output.parts[plain:])
        named = "." in tokens.rpartition("]")[2]  # a suffix after the last token
        return (
            Path(*output.parts[:plain]),
            tokens.removesuffix(output.suffix) if named else tokens,
            output.suffix if named else suffix,
        )
    if names_picture(output):
        return output.parent, "[none]", output.suffix
    return output, settings.output_pattern, suffix


def picture_path(picture: Picture, output: Path | None, settings: Settings, job: Job, overwrite: bool) -> Path:
    """The file of a picture.

    `output` is a picture's name (numbered when the job has several), a folder, or a pattern such as
    `cats/[date]/[seed]-[prompt_words].jpg`; in a folder, and where it is unset in the settings' one, pictures are
    named by the settings' pattern. A name that is taken becomes `name-2` unless `overwrite`.
    """
    if output is not None and names_picture(output) and not is_pattern(str(output)):
        several = job.batch_size * job.n_iter > 1
        path = output.with_name(f"{output.stem}-{job.index + 1}{output.suffix}") if several else output
    else:
        folder, pattern, suffix = _place(output, settings)
        # only this token needs the checkpoint's hash, for which it may have to wait
        resolved = picture.record if "[model_hash]" in pattern.lower() else picture.resolved
        name = expand(pattern, Subject(resolved, picture.image, job), folder)
        path = name.with_name(name.name + suffix)
    return path if overwrite else free_name(path)


def write_picture(
    picture: Picture,
    output: Path | None,
    settings: Settings,
    job: Job,
    *,
    overwrite: bool = False,
    metadata: bool | None = None,
) -> Path:
    """Save a picture where `picture_path` says, as the settings say; `metadata` goes before theirs. Returns the path.

    Raises DanqingError as `Picture.save` does.
    """
    return picture.save(
        picture_path(picture, output, settings, job, overwrite),
        metadata=settings.write_metadata if metadata is None else metadata,
        overwrite=overwrite,
        quality=settings.picture_quality,
        lossless=settings.picture_lossless,
    )


def grid_path(output: Path | None, first: Path) -> Path:
    """The file of all pictures as one: beside the first, by the name that was asked for or the first seed."""
    named = output is not None and names_picture(output) and not is_pattern(str(output))
    stem = output.stem if output is not None and named else first.stem
    return first.with_name(f"{stem}-grid{first.suffix}")
