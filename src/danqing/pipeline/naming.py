"""Names of pictures by a pattern, `[seed]-[prompt_words]`: AUTOMATIC1111's tokens (its FilenameGenerator)."""

from __future__ import annotations

import hashlib
import re
import string
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from PIL import Image

from danqing.errors import DanqingError
from danqing.requests import Painting, ResolvedRequest
from danqing.vocabulary import nearest

MAX_PART = 128
"""Characters that a token may give, as in AUTOMATIC1111."""
MAX_NAME = 200
"""Bytes of a name; file systems allow 255, and a number, a suffix and `.part` have to fit."""
MAX_WORDS = 8
"""Words of `[prompt_words]`, as in AUTOMATIC1111."""
_TOKEN = re.compile(r"\[([A-Za-z_]+)((?:<[^<>]*>)*)\]")
_FORBIDDEN = re.compile(r'[#<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)
"""Names that Windows keeps for devices, with any suffix."""


@dataclass(frozen=True)
class Job:
    """Which picture it is, of how many."""

    index: int = 0
    """From 0, over all batches."""
    batch_size: int = 1
    n_iter: int = 1
    first_seed: int | None = None
    """Of the whole job; unset is the picture's own."""
    begun: datetime = field(default_factory=datetime.now)
    basename: str = ""
    """Of the picture that was painted over, without its suffix."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What a name may tell of."""

    resolved: ResolvedRequest
    image: Image.Image
    job: Job

    @property
    def request(self) -> Painting:
        return self.resolved.request


def sanitized(text: str, *, spaces: bool = True) -> str:
    """`text` as a part of a name on any system, at most 128 characters; `spaces` False makes them `_`."""
    text = _FORBIDDEN.sub("_", text if spaces else text.replace(" ", "_"))
    return text.lstrip(" ")[:MAX_PART].rstrip(" .")


def _words(subject: Subject) -> str:
    separators = r"[\s" + re.escape(string.punctuation) + "]+"
    words = [word for word in re.split(separators, subject.request.prompt) if word]
    return " ".join(words[:MAX_WORDS]) or "empty"


def _styles(subject: Subject) -> str:
    template = subject.request.template
    return ", ".join(template.styles if template else subject.request.styles) or "None"


def _plain_prompt(subject: Subject) -> str:
    template = subject.request.template
    return template.prompt if template else subject.request.prompt


def _first_seed(subject: Subject) -> int | None:
    """Of the job where pictures are painted together, as in AUTOMATIC1111; else the picture's own."""
    job = subject.job
    return subject.request.seed if job.first_seed is None or job.batch_size == 1 else job.first_seed


def _last_seed(subject: Subject) -> int | None:
    job = subject.job
    return (_first_seed(subject) or 0) + job.batch_size * job.n_iter - 1 if job.batch_size > 1 else None


def _scheduler(subject: Subject) -> str:
    """`Sgm uniform`: AUTOMATIC1111 capitalises the first letter alone."""
    return (subject.request.scheduler or "").capitalize()


def _time(subject: Subject, layout: str = "", zone: str = "") -> str:
    """`[datetime<%H-%M><Asia/Tokyo>]`; a layout or a zone that is none is passed over."""
    try:
        now = datetime.now().astimezone(zoneinfo.ZoneInfo(zone) if zone else None)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        now = datetime.now()
    try:
        return now.strftime(layout or "%Y%m%d%H%M%S")
    except ValueError:
        return now.strftime("%Y%m%d%H%M%S")


def _digits(text: bytes, length: str, default: int | None) -> str:
    digest = hashlib.sha256(text).hexdigest()
    return digest[: int(length)] if length.isdecimal() else digest[:default]


def _has_prompt(subject: Subject, *wanted: str) -> str:
    """`[hasprompt<girl><boy|no boy>]`: each word that the prompt holds; else what stands after the bar."""
    prompt, parts = subject.request.prompt.lower(), []
    for each in wanted:
        word, _, otherwise = each.partition("|")
        parts.append(word.lower() if word.lower() in prompt else otherwise)
    return "".join(parts)


Value = Callable[..., object]
TOKENS: dict[str, Value] = {
    "seed": lambda s: s.request.seed,
    "seed_first": _first_seed,
    "seed_last": _last_seed,
    "steps": lambda s: s.request.steps,
    "cfg": lambda s: s.request.cfg_scale,
    "width": lambda s: s.image.width,
    "height": lambda s: s.image.height,
    "styles": _styles,
    "sampler": lambda s: s.request.sampler_name,
    "sampler_scheduler": lambda s: f"{s.request.sampler_name} {_scheduler(s)}",
    "scheduler": _scheduler,
    "model_hash": lambda s: (s.resolved.checkpoint.sha256 or "")[:10],
    "model_name": lambda s: s.resolved.checkpoint.name,
    "vae_filename": lambda s: s.resolved.vae.name.lstrip(".").partition(".")[0] if s.resolved.vae else "NoneType",
    "date": lambda s: datetime.now().strftime("%Y-%m-%d"),
    "datetime": _time,
    "job_timestamp": lambda s: s.job.begun.strftime("%Y%m%d%H%M%S"),
    "prompt": lambda s: s.request.prompt.replace(" ", "_"),
    "prompt_spaces": lambda s: s.request.prompt,
    "prompt_no_styles": _plain_prompt,
    "prompt_words": _words,
    "prompt_hash": lambda s, length="": _digits(s.request.prompt.encode(), length, 8),
    "negative_prompt_hash": lambda s, length="": _digits(s.request.negative_prompt.encode(), length, 8),
    "full_prompt_hash": lambda s, length="": _digits(
        f"{s.request.prompt} {s.request.negative_prompt}".encode(), length, 8
    ),
    "image_hash": lambda s, length="": _digits(s.image.tobytes(), length, None),
    "batch_size": lambda s: s.job.batch_size,
    "batch_number": lambda s: s.job.index % s.job.batch_size + 1 if s.job.batch_size > 1 else None,
    "generation_number": lambda s: s.job.index + 1 if s.job.batch_size * s.job.n_iter > 1 else None,
    "hasprompt": _has_prompt,
    "clip_skip": lambda s: s.request.clip_skip,
    "denoising": lambda s: getattr(s.request, "denoising_strength", None) or None,
    "basename": lambda s: s.job.basename or "img",
    "none": lambda s: "",
    "number": lambda s: _NUMBER,
}
"""What each token stands for; None also takes away the text before it, from the last token on."""
_NUMBER = "\0"
"""Stands for `[number]` until the folder is known."""


def is_pattern(text: str) -> bool:
    """Whether `text` holds a token; else brackets in it are a name's own."""
    return any(match[1].lower() in TOKENS for match in _TOKEN.finditer(text))


def check_pattern(pattern: str) -> None:
    """Raises DanqingError where a token is unknown, the pattern names no file, or leads out of its folder."""
    for match in _TOKEN.finditer(pattern):
        if match[1].lower() not in TOKENS:
            like = nearest(match[1], TOKENS)
            hint = f"did you mean [{'] or ['.join(like)}]?" if like else f"there are {', '.join(TOKENS)}"
            raise DanqingError(f"output_pattern: no such token '{match[0]}'; {hint}")
    parts = re.split(r"[/\\]", _TOKEN.sub("x", pattern))
    if not parts[-1].strip(" .") or ".." in parts:
        raise DanqingError(f"output_pattern: '{pattern}' names no picture in the output folder")


def expand(pattern: str, subject: Subject, folder: Path) -> Path:
    """The name that `pattern` gives the picture in `folder`, without a suffix; `/` in it makes folders.

    Every part is a valid name on Windows, macOS and Linux, at most 200 bytes. `[number]` counts the folder's pictures
    of that name from 00001. Raises DanqingError as `check_pattern` does.
    """
    check_pattern(pattern)
    text, last = "", 0
    for match in _TOKEN.finditer(pattern):
        before, last = pattern[last : match.start()], match.end()
        value = TOKENS[match[1].lower()](subject, *re.findall(r"<([^<>]*)>", match[2]))
        if value is not None:
            plain = f"{value:g}" if isinstance(value, float) else str(value)
            text += before + (plain if plain == _NUMBER else sanitized(plain))
    path = folder
    *folders, name = re.split(r"[/\\]", text + pattern[last:])
    for part in folders:
        if part:
            path = path / _whole(part.replace(_NUMBER, ""))
    return path / _whole(_numbered(path, name))


def _numbered(folder: Path, name: str) -> str:
    before, mark, after = name.partition(_NUMBER)
    if not mark:
        return name
    numbered = re.compile(re.escape(_safe(before)) + r"(\d{5,})")
    names = (found.name for found in folder.iterdir()) if folder.is_dir() else ()
    taken = [int(match[1]) for each in names if (match := numbered.match(each))]
    return f"{before}{max(taken, default=0) + 1:05}{after.replace(_NUMBER, '')}"


def _safe(text: str) -> str:
    return _FORBIDDEN.sub("_", text)


def _whole(text: str) -> str:
    """A folder's or file's whole name, made valid: no device's, not too long, not empty."""
    text = _safe(text).strip(" ").rstrip(" .")
    text = text.encode()[:MAX_NAME].decode(errors="ignore").rstrip(" .")
    return f"_{text}" if _RESERVED.match(text) or not text else text
