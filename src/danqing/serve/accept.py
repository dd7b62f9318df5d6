"""What comes in over HTTP -> a job: checked, its seeds drawn, its pictures kept as files, its paths held inside.

Every request that becomes a job goes through `accept`, whichever API it came by.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel

from danqing.errors import DanqingError
from danqing.library.folders import hub_cache
from danqing.library.settings import Settings
from danqing.metadata.files import SUFFIXES
from danqing.pipeline.expand import expand, fix_seeds
from danqing.request_parts import REFERENCE, Reference
from danqing.requests import ImageToImage, Outpaint, Painting, TextToImage
from danqing.serve.cache import ModelCache
from danqing.serve.fetch import fetch
from danqing.serve.store import Job
from danqing.serve.work import KINDS, Comparison, Enlarge, painted_kind
from danqing.vocabulary import find_module, quoted

Asked = TypeVar("Asked", bound=Painting)

PICTURES = frozenset({"image", "mask", "subimage", "images"})
"""Fields, here and in what a request holds, that are pictures."""
FILES = frozenset(
    {
        "model",
        "vae",
        "refiner_checkpoint",
        "hr_checkpoint_name",
        "hr_upscaler",
        "upscaler",
        "upscaler_2",
        "face_restorer",
        "face_detector",
        "detector",
        "mask_model",
        "encoder",
        "faces",
        "identity_net",
        "embedding",
        "projection",
    }
)
"""Fields that name a file of the model folders."""
PROMPTS = frozenset(
    {"prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt", "subprompt", "inversion_prompt", "text"}
)
"""Fields whose text may name files: `<lora:name>`, `<hypernet:name>`, `embedding:name`."""
PLAIN = frozenset(
    {
        "background_color",
        "denoising_curve",
        "detailers",
        "dynamic",
        "hr_sampler_name",
        "hr_scheduler",
        "layers",
        "mask_text",
        "module",
        "name",
        "prompts",
        "sampler_name",
        "scheduler",
        "styles",
        "vary_seeds",
        "version",
        "x",
        "y",
        "z",
    }
)
"""Fields whose text is looked up in a table, or is shown to a network: they name no file.

`styles` and `module` could: `_check_text` looks at them for themselves. What a plot's axes and lines say is looked at in
the requests that they make (`serve.compare`).
"""
APART = frozenset({"prompt", "negative_prompt", "seed", "template"})
"""Fields in which requests may differ that share a run..."""
SHARED = frozenset(
    {
        "cfg_scale",
        "clip_skip",
        "dialect",
        "discard_penultimate",
        "emphasis",
        "eta",
        "eta_noise_seed_delta",
        "guidance_rescale",
        "height",
        "model",
        "noise_source",
        "rho",
        "s_churn",
        "s_noise",
        "s_tmax",
        "s_tmin",
        "sampler_name",
        "scheduler",
        "sigma_max",
        "sigma_min",
        "steps",
        "vae",
        "width",
    }
)
"""... and those that they have in common; with any other field set a request is painted alone."""
FORMATS = frozenset({"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JXL", "MPO"})
"""Formats of pictures that are opened, by Pillow's names: those that hold pixels and nothing else."""
_TAG = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:([^:>]*)|embedding:([^\s,)>\]]+)", re.IGNORECASE)
_STYLE_FILE = re.compile(r"\.(?:csv|json)\s*:", re.IGNORECASE)
NOT_JSON = "body: should be JSON, sent with the header Content-Type: application/json"
_NAME = 4096
"""Characters of a name or path: systems have no longer ones."""
_HALF = re.compile("[\ud800-\udfff]")
_KEPT = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")
_ENDING = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


@dataclass(frozen=True)
class Rules:
    """How much one request, and the queue, may hold."""

    picture_bytes: int = 64 << 20
    """Of one picture, compressed."""
    picture_pixels: int = 64_000_000
    pictures: int = 256
    """That one request brings."""
    paints: int = 1000
    """That one job makes."""
    painted: int = 4096 * 4096
    """Pixels of a picture that is painted in one piece; some 5 GB are needed for these."""
    enlarged: int = 64_000_000
    """Pixels of one that is made larger, tile by tile."""
    text: int = 100_000
    """Characters of one field."""
    waiting: int = 1000
    """Jobs that wait at once."""
    urls: bool = False
    """Whether pictures may be given by http(s) URL (`serve.fetch`)."""


@dataclass(frozen=True)
class Accepted:
    """A request that may be a job."""

    kind: str
    request: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...]
    total: int
    inputs: tuple[str, ...]
    """Names of the files in `inputs` that it needs."""
    share: str | None = None
    """What it has in common with jobs that may be painted in one run with it; None is painted alone."""


def accept(
    request: BaseModel, rules: Rules, folder: Path, gallery: Callable[[str], Path], models: ModelCache
) -> Accepted:
    """Check a request, draw what is left to chance, and keep its pictures in `folder`/inputs.

    `gallery` gives the file of a picture by its id. Raises DanqingError: a name or path outside the model folders, a
    picture that is none, too much of anything, a model that is not there.
    """
    kind = next((name for name, cls in KINDS.items() if type(request) is cls), None)
    if kind is None:
        raise DanqingError(f"request: should be one of {', '.join(KINDS)}, but it is a {type(request).__name__}")
    inputs: list[str] = []

    def kept(source: Any, field: str) -> str:
        if len(inputs) >= rules.pictures:
            raise DanqingError(f"{field}: a request may bring {rules.pictures} pictures")
        path = keep_picture(source, field, rules, folder, gallery)
        if path.startswith("inputs/"):
            inputs.append(path.removeprefix("inputs/"))
        return path

    held = _walked(request, rules, kept, model_roots(models.settings))
    if isinstance(held, Enlarge):
        _check_enlarged(held, rules, folder)
        fields = held.model_dump(mode="json", exclude_unset=True)
        return Accepted(kind, fields, (fields,), len(held.images), tuple(inputs))
    if isinstance(held, Comparison):
        return _compared(held, rules, folder, models, tuple(inputs))
    held = fix_seeds(_with_model(held, models.settings))
    total = held.batch_size * held.n_iter
    if total > rules.paints:
        raise DanqingError(f"n_iter: {total} pictures in one job; at most {rules.paints}")
    parts = expand(held, models.settings)
    total = sum(part.batch_size * part.n_iter for part in parts)
    if total > rules.paints:
        raise DanqingError(f"dynamic: {total} pictures come of this; at most {rules.paints}")
    _check_parts(parts, rules, folder, models)
    asked = held.model_dump(mode="json", exclude_unset=True)
    return Accepted(kind, asked, _dumped(parts), total, tuple(inputs), share_key(parts[0]) if total == 1 else None)


def _compared(asked: Comparison, rules: Rules, folder: Path, models: ModelCache, inputs: tuple[str, ...]) -> Accepted:
    """A plot's requests as parts of one job, and what its sheet is made by as the last."""
    from danqing.serve.compare import check_count, layout_of, plot_of  # torch comes with it

    base = _with_model(asked.request, models.settings)
    if asked.fixed_seeds or asked.vary_seeds or asked.iterate_seeds or asked.matrix is not None:
        base = fix_seeds(base)
    check_names(base, models.settings, rules)
    asked = asked.model_copy(update={"request": base})
    plot = plot_of(asked, models.settings)
    check_count(plot, rules.paints)
    parts = [fix_seeds(request) for cell in plot.cells for request in cell.requests]
    _check_parts(parts, rules, folder, models)
    layout = layout_of(plot, asked)
    fields = {**asked.model_dump(mode="json", exclude_unset=True), "kind": asked.kind}
    last = {"sheet": layout.model_dump(mode="json")}
    return Accepted("plot", fields, (*_dumped(parts), last), sum(layout.counts) + 1, inputs)


def _with_model(request: Asked, settings: Settings) -> Asked:
    """The request with the default checkpoint named, where it names none."""
    if request.model is None and settings.default_model is not None:
        return request.model_copy(update={"model": settings.default_model})
    return request


def _check_parts(parts: Sequence[Painting], rules: Rules, folder: Path, models: ModelCache) -> None:
    """What was written out may name files of its own, and be larger. Raises DanqingError."""
    for part in parts:
        check_names(part, models.settings, rules)
        _check_canvas(part, rules, folder)
    for name in {part.model for part in parts}:
        models.check(name)


def _dumped(parts: Sequence[Painting]) -> tuple[Mapping[str, Any], ...]:
    return tuple(part.model_dump(mode="json", exclude_unset=True) for part in parts)


def share_key(request: Painting) -> str | None:
    """The same for requests that differ in prompts and seed alone, where they are plain; None for any other."""
    fields = request.model_dump(mode="json", exclude_defaults=True)
    prompts = request.prompt + request.negative_prompt
    if not isinstance(request, TextToImage) or request.dialect not in ("danqing", "a1111"):
        return None
    if fields.keys() - SHARED - APART or "<" in prompts or "embedding:" in prompts:
        return None
    common = {name: value for name, value in fields.items() if name in SHARED}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def read_part(job: Job, number: int, folder: Path) -> BaseModel:
    """That part of a job as a request to paint: its pictures are paths below `folder`. Raises DanqingError."""
    from danqing.requests import read

    def placed(value: Any, field: str) -> Any:
        if isinstance(value, Mapping):
            return {name: placed(each, name) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [placed(each, field) for each in value]
        if field in PICTURES and isinstance(value, str):
            return str(folder / value)
        return value

    return read(KINDS[painted_kind(job)], placed(dict(job.parts[number]), ""))


def model_roots(settings: Settings) -> tuple[Path, ...]:
    """The folders that names of files may lead into."""
    return tuple(root.resolve() for root in (settings.models_dir, hub_cache(settings), *settings.folders))


def check_names(request: BaseModel, settings: Settings, rules: Rules | None = None) -> None:
    """Whether all that a request names is of the model folders, and no text too long. Raises DanqingError."""
    _walked(request, rules or Rules(), lambda source, field: str(source), model_roots(settings))


def check_name(name: str, field: str, roots: Sequence[Path]) -> None:
    """A name of the model folders, or a path into them; anything else is refused, whether or not it is there.

    Raises DanqingError.
    """
    if len(name) > _NAME:
        raise DanqingError(f"{field}: a name of {len(name)} characters; at most {_NAME}")
    pure = PurePosixPath(name.replace("\\", "/"))
    windows = PureWindowsPath(name)
    if "\0" in name or ".." in pure.parts:
        raise DanqingError(f"{field}: {quoted(name)} leads out of the model folders; give a model's name")
    looks = pure.is_absolute() or bool(windows.drive) or name.lstrip().startswith(("~", "./", ".\\"))
    path = Path(name)
    try:
        there = looks or os.path.lexists(path)
        inside = there and any(path.resolve().is_relative_to(root) for root in roots)
    except (OSError, ValueError):  # a name that is no path at all
        return
    if there and not inside:
        raise DanqingError(f"{field}: {quoted(name)} is a path outside the model folders; give a model's name")


def keep_picture(source: Any, field: str, rules: Rules, folder: Path, gallery: Callable[[str], Path]) -> str:
    """A picture's file, relative to `folder`: a data URL's bytes are written there once, by their hash.

    Raises DanqingError for anything but a data URL, `picture:ID` or `inputs/...`; a picture that is none, or too large.
    """
    if isinstance(source, Reference):
        source = source.name
    if isinstance(source, str) and source.startswith("picture:"):
        return str(gallery(source.removeprefix("picture:")).relative_to(folder.resolve()))
    if isinstance(source, str) and source.startswith("inputs/") and _KEPT.fullmatch(source.removeprefix("inputs/")):
        try:
            os.utime(folder / source)
        except OSError:
            raise DanqingError(f"{field}: {source} is not there any more; send the picture again") from None
        return source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not rules.urls:
            raise DanqingError(f"{field}: pictures by URL are switched off (--allow-urls); send the picture itself")
        data = fetch(source, field, rules.picture_bytes)
    elif isinstance(source, str) and source.startswith("data:"):
        data = decoded(source, field, rules)
    else:
        raise DanqingError(f"{field}: should be a data URL, or picture:ID of the gallery; paths are not taken")
    form = check_picture(data, field, rules)
    name = f"{hashlib.sha256(data).hexdigest()}.{_ENDING.get(form, form.lower()[:4])}"
    _write_once(folder / "inputs" / name, data)
    return f"inputs/{name}"


def decoded(url: str, field: str, rules: Rules) -> bytes:
    """The bytes of a base64 data URL. Raises DanqingError."""
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DanqingError(f"{field}: a data URL should begin with data:image/png;base64, but it is {quoted(url[:80])}")
    if len(text) * 3 // 4 > rules.picture_bytes + 3:
        raise DanqingError(f"{field}: the picture has more than {rules.picture_bytes >> 20} MB")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DanqingError(f"{field}: the data URL holds no base64") from None


def check_picture(data: bytes, field: str, rules: Rules) -> str:
    """The format of a picture that can be opened safely: its size is read before a pixel is. Raises DanqingError."""
    try:
        with _opened(io.BytesIO(data)) as image:
            form, pixels = str(image.format), image.width * image.height
            if form not in FORMATS:
                raise DanqingError(f"{field}: {form} pictures are not taken; send {', '.join(sorted(SUFFIXES))}")
            if pixels > rules.picture_pixels:
                raise DanqingError(
                    f"{field}: the picture has {pixels / 1e6:.0f} million pixels; at most {rules.picture_pixels / 1e6:.0f}"
                )
            image.load()
    except UnidentifiedImageError:
        raise DanqingError(f"{field}: is no picture that can be read") from None
    except Image.DecompressionBombError:
        raise DanqingError(f"{field}: the picture has more pixels than can be opened safely") from None
    except MemoryError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # each of pillow's readers has its own ways to meet a damaged file
        raise DanqingError(f"{field}: the picture is damaged: {str(error)[:100]}") from None
    return form


def _write_once(path: Path, data: bytes) -> None:
    """Write beside and rename, on disk when it returns."""
    with suppress(FileNotFoundError):
        os.utime(path)  # of use again, whatever becomes of the jobs that had it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DanqingError(f"{path}: cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, as its files are. Windows opens no folders, and needs none of it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walked(model: Any, rules: Rules, kept: Callable[[Any, str], str], roots: Sequence[Path]) -> Any:
    """`model` with its pictures kept, its names and texts checked, and so on in all that it holds."""
    changes: dict[str, Any] = {}
    for field in type(model).model_fields:
        value = getattr(model, field)
        if field in PICTURES and value:
            changes[field] = tuple(kept(v, field) for v in value) if isinstance(value, tuple) else kept(value, field)
        elif isinstance(value, BaseModel):
            changes[field] = _walked(value, rules, kept, roots)
        elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
            changes[field] = tuple(_walked(each, rules, kept, roots) for each in value)
        elif isinstance(value, str):
            _check_text(value, field, rules, roots)
        elif isinstance(value, tuple):
            for each in value:
                if isinstance(each, str):
                    _check_text(each, field, rules, roots)
    return model.model_copy(update=changes) if changes else model


def _check_text(value: str, field: str, rules: Rules, roots: Sequence[Path]) -> None:
    if len(value) > rules.text:
        raise DanqingError(f"{field}: has {len(value)} characters; at most {rules.text}")
    if _HALF.search(value):
        raise DanqingError(f"{field}: is no valid Unicode; half of a surrogate pair stands alone")
    if field in FILES and value != REFERENCE:
        check_name(value, field, roots)
    if field == "styles" and _STYLE_FILE.search(value):
        raise DanqingError(f"styles: {quoted(value)} names a file; give a style's name")
    if field == "module" and (file := find_module(value)[1]):  # a preprocessor's own file, or `name:FILE`
        check_name(file, field, roots)
    if field in PROMPTS:
        for match in _TAG.finditer(value):
            check_name((match[1] or match[2] or "").strip(), field, roots)


def _check_canvas(request: Painting, rules: Rules, folder: Path) -> None:
    """No picture is larger than the machine should be asked for; the sources of paintings lie in `folder`."""
    source = getattr(request, "image", None)
    width, height = _size(folder, source) if isinstance(source, str) else (1024, 1024)
    if isinstance(request, Outpaint):
        width, height = width + request.left + request.right, height + request.up + request.down
    pixels: float = (request.width or width) * (request.height or height)
    if isinstance(request, TextToImage) and request.enable_hr:
        pixels = max(pixels * request.hr_scale**2, request.hr_resize_x * request.hr_resize_y)
    most = rules.painted
    if isinstance(request, ImageToImage) and request.sd_upscale is not None:
        pixels, most = max(pixels, width * height * request.sd_upscale.scale**2), rules.enlarged
    if pixels > most:
        raise DanqingError(f"width: a picture of {pixels / 1e6:.0f} million pixels; at most {most / 1e6:.0f}")


def _check_enlarged(request: Enlarge, rules: Rules, folder: Path) -> None:
    """The same of a picture that is made larger."""
    for source in request.images:
        width, height = _size(folder, str(source))
        scale = request.scale or 2.0
        if request.width or request.height:  # one alone keeps the proportions; both may be covered
            scale = max((request.width or 0) / width, (request.height or 0) / height)
        pixels = width * height * scale**2
        if pixels > rules.enlarged:
            raise DanqingError(
                f"scale: a picture of {pixels / 1e6:.0f} million pixels would come of it; "
                f"at most {rules.enlarged / 1e6:.0f}"
            )


def _size(folder: Path, source: str) -> tuple[int, int]:
    """Width and height of a picture that was accepted. Raises DanqingError where it is gone meanwhile."""
    try:
        with _opened(folder / source) as image:
            return image.size
    except OSError:
        raise DanqingError(f"image: {source} is not there any more; send the picture again") from None


def _opened(source: Path | io.BytesIO) -> Image.Image:
    """A picture of which the header was read. JPEG XL is read by a plugin, where that is installed."""
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401
    return Image.open(source)
