"""The list of jobs on the settings' tab: one that waits can be moved, and one that is not over be cancelled."""

from __future__ import annotations

import html

from danqing.errors import DanqingError
from danqing.serve.engine import Engine
from danqing.serve.page_gallery import table_of
from danqing.serve.page_studio import Studio
from danqing.serve.store import Job

_ROWS = 50
_LONGEST = 80
"""Characters of a prompt."""
_SIGNS = {"first": "⤒", "earlier": "↑", "later": "↓", "cancel": "✕"}


def jobs_table(studio: Studio) -> str:
    """Jobs as HTML, in the order of painting and then those that are over; `page.js` hears their buttons."""
    say = studio.say
    rows = "".join(
        f"<tr><td><code>{job.id[:8]}</code></td><td>{html.escape(say(f'kind_{job.kind}'))}</td>"
        f'<td class="dq-asked">{html.escape(_prompt(job)[:_LONGEST])}</td><td>{say(job.state)}</td>'
        f'<td>{html.escape(job.origin)}</td><td>{job.total}</td><td class="dq-acts">{_buttons(job, studio)}</td></tr>'
        for job in studio.engine.jobs(limit=_ROWS)
    )
    heads = (say("jobs"), say("kind"), say("prompt"), say("state"), say("origin"), say("pictures"), "")
    return table_of(heads, rows)


def ordered(studio: Studio, order: str) -> str:
    """Do what a button of the list says, such as `first:ID`. Returns what went wrong, as HTML, or nothing."""
    act, _, identity = order.partition(":")
    try:
        if act == "cancel":
            studio.engine.cancel(identity)
        else:
            _move(studio.engine, act, identity)
    except DanqingError as error:
        return studio.problem(error)
    return ""


def _move(engine: Engine, where: str, identity: str) -> None:
    """Raises DanqingError for a job that waits no more."""
    waiting = [job.id for job in engine.jobs(("queued",), limit=100_000)]
    if identity not in waiting:
        engine.move(identity)  # says why
        return
    at = waiting.index(identity)
    if where == "first":
        engine.move(identity, waiting[0])
    elif where == "earlier" and at > 0:
        engine.move(identity, waiting[at - 1])
    elif where == "later" and at + 1 < len(waiting):
        engine.move(waiting[at + 1], identity)  # whatever its priority, it is before this one then


def _prompt(job: Job) -> str:
    asked = job.request.get("request", job.request)  # a plot holds what its cells have in common
    return str(asked.get("prompt", ""))


def _buttons(job: Job, studio: Studio) -> str:
    acts = tuple(_SIGNS) if job.state == "queued" else () if job.over else ("cancel",)
    return "".join(
        f'<button type="button" class="dq-chip" data-dq-job="{act}:{job.id}" title="{studio.say(f"job_{act}")}" '
        f'aria-label="{studio.say(f"job_{act}")}">{_SIGNS[act]}</button>'
        for act in acts
    )
