"""What the page shows of jobs: how far they are, what has come of them, how it was made."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from danqing.serve.engine import Engine, Progress
from danqing.serve.page_errors import explained
from danqing.serve.page_texts import Language, Say, say_in
from danqing.serve.store import Job, NotFound, Stored

_PREVIEW = 384
"""Longer side of a live preview."""


@dataclass(frozen=True)
class Shown:
    """A job as the page shows it."""

    status: str
    """HTML."""
    pictures: tuple[Stored, ...]
    info: str
    """The first picture's infotext, or what went wrong."""
    over: bool


def look(engine: Engine, identity: str, language: Language, *, previews: bool = True) -> Shown:
    """One job, as it is now, with or without a picture of what there is by now."""
    say = say_in(language)
    try:
        job = engine.job(identity)
    except NotFound:
        return Shown(message(say("gone")), (), "", True)
    pictures = engine.pictures(identity)
    if job.kind == "plot":  # the sheet is the last; its cells are in the gallery
        pictures = pictures[-1:] if job.over else ()
    notes = "\n".join(explained(note, language) for note in job.notes)
    if job.over:
        error = explained(job.error or "", language)
        info = "\n\n".join(filter(None, (error, pictures[0].infotext if pictures else "", notes)))
        return Shown(_ended(job, error, say), pictures, info, True)
    before = engine.store.before(job) if job.state == "queued" else 0
    return Shown(_bar(job, engine.progress(identity, preview=previews), before, say), pictures, notes, False)


def welcome(name: str, say: Say, examples: Sequence[str] = ()) -> str:
    """What stands where pictures will be; prompts to try are taken by a click (`page.js`)."""
    chips = "".join(
        f'<button type="button" class="dq-chip" data-dq-prompt="{html.escape(each, quote=True)}">{html.escape(each)}</button>'
        for each in examples
    )
    tries = f'<div class="dq-chips">{chips}</div>' if chips else ""
    return f'<div class="dq-welcome"><p>{html.escape(say(f"welcome_{name}"))}</p>{tries}</div>'


def message(text: str, *, problem: bool = False) -> str:
    """A line of the page's own."""
    kind = "dq-problem" if problem else "dq-note"
    return f'<div class="dq-status {kind}" role="status">{html.escape(text)}</div>'


def _ended(job: Job, error: str, say: Say) -> str:
    text = f"{say(job.state)}: {error}" if error else say(job.state)
    return message(text, problem=job.state == "failed")


def _bar(job: Job, progress: Progress, before: int, say: Say) -> str:
    words = [say("paused") if progress.text == "paused" else say(job.state)]
    if before:
        words.append(f"{before} {say('before')}")
    if progress.steps:
        words.append(say("step").format(progress.step, progress.steps))
    if progress.pictures > 1:
        words.append(f"{min(progress.picture + 1, progress.pictures)}/{progress.pictures}")
    if progress.left is not None:
        words.append(f"{progress.left:.0f} {say('seconds_left')}")
    preview = "" if progress.preview is None else f'<img class="dq-preview" alt="" src="{_url(progress.preview)}">'
    return bar(round(100 * progress.share), " · ".join(words), preview)


def bar(percent: int, text: str, above: str = "") -> str:
    """How far something is, under what is to be seen of it (HTML)."""
    return (
        f'<div class="dq-status dq-busy">{above}<div class="dq-bar" role="progressbar" '
        f'aria-label="{html.escape(text, quote=True)}" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{percent}%"></div></div><div>{html.escape(text)}</div></div>'
    )


def _url(image: Image.Image) -> str:
    """A small picture as a data URL, enlarged without smoothing by the browser."""
    small = image.convert("RGB")
    small.thumbnail((_PREVIEW, _PREVIEW))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def shown_files(pictures: Sequence[Stored], base: str) -> list[tuple[str, str]]:
    """Pictures for a gallery: where their files are, and their seeds."""
    return [
        (f"{base}/api/v1/pictures/{each.id}/file", "" if each.seed is None else str(each.seed)) for each in pictures
    ]


def shown_small(pictures: Sequence[Stored], base: str) -> list[tuple[str, str]]:
    """The same with thumbnails, and the beginnings of their prompts."""
    return [
        (f"{base}/api/v1/pictures/{each.id}/thumbnail?side=384", ("★ " if each.favourite else "") + each.prompt[:60])
        for each in pictures
    ]
