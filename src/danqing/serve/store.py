"""Jobs and pictures in a database: SQLite in WAL mode, or PostgreSQL by its URL.

Every change of state is one short transaction, so that a process that is killed leaves the state before it or after it.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import (
    Connection,
    Row,
    case,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.sql import ColumnElement, Select

from danqing.errors import DanqingError
from danqing.serve.tables import (
    INPUTS,
    JOBS,
    META,
    OPTIONS,
    ORDERS,
    PICTURES,
    TAGS,
    WORDS,
    begin,
    lexeme,
    phrases,
    prepare_sqlite,
    spaced,
    vector,
)
from danqing.vocabulary import quoted

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
OPEN: tuple[State, ...] = ("queued", "running")
ATTEMPTS = 10
"""So often a job is begun without a picture before it is given up."""
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")
_STUDIO = 0x64616E71
"""PostgreSQL's number for the lock that one studio has on a database, or on one schema of it."""
_WORD_INDEX = "CREATE INDEX IF NOT EXISTS words_index ON words USING gin (CAST(text AS tsvector))"


class NotFound(DanqingError):
    """There is no job or picture of that id."""


@dataclass(frozen=True, kw_only=True)
class JobTold:
    """What callers are told of a job."""

    id: str
    """32 hexadecimal digits."""
    kind: str
    """`txt2img`, `img2img`, `inpaint`, `outpaint`, `upscale` or `plot`."""
    request: Mapping[str, Any]
    """What was asked for, with its seeds drawn; pictures in it are files of the data folder's `inputs`."""
    total: int
    """Pictures in all."""
    origin: str
    """Who asked: `api`, `sdapi`, `openai` or `page`."""
    state: State
    priority: int
    """The higher, the sooner."""
    created: float
    """Seconds since 1970; so are `started` and `ended`."""
    started: float | None
    ended: float | None
    error: str | None
    notes: tuple[str, ...]
    skipped: tuple[int, ...]
    """Pictures, by their index, that a person had skipped."""


@dataclass(frozen=True, kw_only=True)
class Job(JobTold):
    """Something to paint, as the queue holds it."""

    parts: tuple[Mapping[str, Any], ...]
    """What is painted, one after another: the same, or what styles and wildcards made of it."""
    place: float
    """Order among those of one priority."""

    @property
    def over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ENDED


@dataclass(frozen=True)
class NewPicture:
    """A picture whose file is written, for the gallery."""

    index: int
    """In its job, from 0."""
    path: str
    """Relative to the data folder."""
    width: int
    height: int
    record: str | None = None
    """`ResolvedRequest` as JSON."""
    infotext: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    model: str = ""
    sampler: str = ""
    seed: int | None = None
    kind: str = "txt2img"
    created: float | None = None
    """Seconds since 1970; unset is now."""


@dataclass(frozen=True, kw_only=True)
class PictureTold:
    """What callers are told of a picture of the gallery."""

    id: str
    """32 hexadecimal digits."""
    job: str | None
    """None of one that was imported."""
    index: int
    """In its job, from 0."""
    infotext: str
    prompt: str
    negative_prompt: str
    model: str
    sampler: str
    seed: int | None
    kind: str
    width: int
    height: int
    created: float
    rating: int
    """0 is none, else 1 to 5."""
    favourite: bool
    tags: tuple[str, ...]
    deleted: float | None
    """When it was deleted, in seconds since 1970; until it is purged that can be undone."""


@dataclass(frozen=True, kw_only=True)
class Stored(PictureTold):
    """A picture of the gallery."""

    path: str
    """Relative to the data folder."""
    record: str | None
    """`ResolvedRequest` as JSON; None of another tool's picture."""


@dataclass(frozen=True)
class Query:
    """Which pictures; what is unset does not matter."""

    words: str = ""
    """All of these stand in prompt, model or tags; the last may be a beginning. "Quoted" ones in that order."""
    model: str | None = None
    """A part of its name, in any case."""
    seed: int | None = None
    since: float | None = None
    until: float | None = None
    rating: int | None = None
    """At least."""
    favourite: bool | None = None
    tag: str | None = None
    kind: str | None = None
    job: str | None = None
    deleted: bool = False
    """Those in the bin, in place of the others."""


class Store:
    """The database of one studio. Its methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        """Open, and make what is not there. `url` is SQLAlchemy's: `sqlite:////folder/studio.db`, `postgresql://...`.

        Raises DanqingError where the database cannot be opened or is of another program.
        """
        try:
            self.engine = create_engine(url)
            self._reader = self.engine.execution_options(reads=True)
            self._lax = self.engine.execution_options(lax=True)
            self._lite = self.engine.dialect.name == "sqlite"
            # SQLite has one writer at a time, and whoever meets another sleeps up to a tenth of a second
            self._turn: AbstractContextManager[Any] = threading.Lock() if self._lite else nullcontext()
            self._hold: Connection | None = None
            if self._lite:
                event.listen(self.engine, "connect", prepare_sqlite)
                event.listen(self.engine, "begin", begin)
            with self.engine.begin() as connection:
                tables = [table for table in META.sorted_tables if table is not WORDS or not self._lite]
                META.create_all(connection, tables=tables)
                if self._lite:
                    connection.execute(text("CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text)"))
                else:
                    connection.execute(text(_WORD_INDEX))
        except (SQLAlchemyError, ModuleNotFoundError) as error:
            raise DanqingError(
                f"{_without_password(url)}: the database cannot be opened: {_first_line(error)}"
            ) from None

    def close(self) -> None:
        """Let go of the connections."""
        if self._hold is not None:
            self._hold.close()
        self.engine.dispose()

    def hold(self) -> None:
        """Keep other studios from this database until it is closed. Raises DanqingError where one has it.

        A SQLite database is in its studio's folder, which is locked already.
        """
        if self._lite:
            return
        self._hold = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not self._hold.scalar(
            text("SELECT pg_try_advisory_lock(:key, hashtext(current_schema()))"), {"key": _STUDIO}
        ):
            self._hold.close()
            raise DanqingError("database: another studio works on it; end that one, or give another --database")

    @contextmanager
    def _changing(self, lasting: bool = True) -> Iterator[Connection]:
        """A transaction that writes. One that is not `lasting` may be undone where the power fails, and only there."""
        with self._turn, (self.engine if lasting else self._lax).begin() as connection:
            yield connection

    # jobs

    def add_job(
        self,
        kind: str,
        request: Mapping[str, Any],
        parts: Sequence[Mapping[str, Any]],
        total: int,
        *,
        origin: str,
        priority: int = 0,
        inputs: Iterable[str] = (),
        share: str | None = None,
    ) -> Job:
        """Put a job at its priority's end of the queue; it is on disk when this returns. `inputs` are its pictures' files.

        Jobs of one `share` may be painted in one run.
        """
        identity = secrets.token_hex(16)
        with self._changing() as connection:
            last = connection.scalar(select(func.max(JOBS.c.place)))
            connection.execute(
                insert(JOBS).values(
                    id=identity,
                    kind=kind,
                    request=_dumped(request),
                    parts=_dumped(list(parts)),
                    total=total,
                    origin=origin,
                    state="queued",
                    priority=priority,
                    place=(last or 0.0) + 1.0,
                    created=time.time(),
                    notes="[]",
                    skipped="[]",
                    share=share,
                    attempts=0,
                )
            )
            for name in sorted(set(inputs)):
                connection.execute(insert(INPUTS).values(job=identity, name=name))
            return _job(connection, identity)

    def job(self, identity: str) -> Job:
        """Raises NotFound where there is none."""
        with self._reader.begin() as connection:
            return _job(connection, identity)

    def jobs(self, states: Sequence[State] | None = None, limit: int = 100, offset: int = 0) -> tuple[Job, ...]:
        """Those that wait and run in the order of painting; any that are over come after them, the latest first."""
        waits = JOBS.c.state.in_(OPEN)
        first = case((waits, -JOBS.c.priority), else_=-JOBS.c.ended)
        order = ((JOBS.c.state == "running").desc(), waits.desc(), first, JOBS.c.place, JOBS.c.number)
        query = select(JOBS).order_by(*order).limit(limit).offset(offset)
        if states is not None:
            query = query.where(JOBS.c.state.in_(states))
        with self._reader.begin() as connection:
            return tuple(_as_job(row) for row in connection.execute(query))

    def counts(self) -> dict[State, int]:
        """How many jobs there are of each state."""
        query = select(JOBS.c.state, func.count()).group_by(JOBS.c.state)
        with self._reader.begin() as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in get_args(State)}

    def waiting(self) -> int:
        """How many jobs wait."""
        query = select(func.count()).select_from(JOBS).where(JOBS.c.state == "queued")
        with self._reader.begin() as connection:
            return connection.scalar(query) or 0

    def before(self, job: Job) -> int:
        """How many jobs are painted before that one, which waits."""
        sooner = (JOBS.c.priority > job.priority) | ((JOBS.c.priority == job.priority) & (JOBS.c.place < job.place))
        query = select(func.count()).select_from(JOBS)
        running, waits = JOBS.c.state == "running", (JOBS.c.state == "queued") & sooner
        with self._reader.begin() as connection:
            return connection.scalar(query.where(running | waits)) or 0

    def start_next(self) -> Job | None:
        """Take the first job of the queue: it is running from now on."""
        with self._changing(lasting=False) as connection:
            first = select(JOBS.c.id).where(JOBS.c.state == "queued").order_by(*_queue_order()).limit(1)
            identity = connection.scalar(first)
            if identity is None:
                return None
            _start(connection, identity)
            return _job(connection, identity)

    def start_alike(self, first: Job, most: int) -> tuple[Job, ...]:
        """Take at most so many more jobs of its priority that may share a run with `first`: they are running, too."""
        with self._changing(lasting=False) as connection:
            share = select(JOBS.c.share).where(JOBS.c.id == first.id).scalar_subquery()
            alike = select(JOBS.c.id).where(
                JOBS.c.state == "queued", JOBS.c.share == share, JOBS.c.priority == first.priority
            )
            ids = connection.scalars(alike.order_by(*_queue_order()).limit(most)).all()
            for identity in ids:
                _start(connection, identity)
            return tuple(_job(connection, identity) for identity in ids)

    def record(
        self,
        identity: str,
        pictures: Sequence[NewPicture] = (),
        *,
        notes: Sequence[str] | None = None,
        skipped: Sequence[int] | None = None,
        state: State | None = None,
        error: str | None = None,
    ) -> tuple[Stored, ...]:
        """One commit: pictures of a job enter the gallery, and its state changes. One that is in already stays as it is."""
        with self._changing() as connection:
            here = select(PICTURES.c.index).where(PICTURES.c.job == identity)
            have = set(connection.scalars(here)) if pictures else set()
            new = [_add_picture(connection, identity, each, self._lite) for each in pictures if each.index not in have]
            changes: dict[str, Any] = {}
            if notes is not None:
                changes["notes"] = _dumped(list(notes))
            if skipped is not None:
                changes["skipped"] = _dumped(sorted(skipped))
            if state is not None:
                changes |= {"state": state, "error": _plain(error), "ended": time.time() if state in ENDED else None}
            if pictures or state == "queued":
                changes["attempts"] = 0
            if changes:
                _change(connection, identity, **changes)
            return _stored(connection, select(PICTURES).where(PICTURES.c.number.in_(new)).order_by(PICTURES.c.index))

    def end(self, identity: str, state: State) -> Job:
        """End a job that has not begun. Of one that has, `requeue_running` will know; one that is over stays as it is."""
        with self._changing() as connection:
            ours = update(JOBS).where(JOBS.c.id == identity, JOBS.c.state == "queued")
            connection.execute(ours.values(state=state, ended=time.time()))
            job = _job(connection, identity)
            if job.state == "running":
                connection.execute(delete(ORDERS).where(ORDERS.c.job == identity))
                connection.execute(insert(ORDERS).values(job=identity, state=state))
            return job

    def put_back(self, identities: Sequence[str], *, alone: bool) -> None:
        """Jobs that were taken wait again at their old places; `alone` never again shares a run."""
        values: dict[str, Any] = {"state": "queued", "attempts": 0, **({"share": None} if alone else {})}
        with self._changing() as connection:
            taken = update(JOBS).where(JOBS.c.id.in_(identities), JOBS.c.state == "running")
            connection.execute(taken.values(**values))

    def requeue_running(self) -> tuple[Job, ...]:
        """What was running when the last process ended waits again, at its old place, unless it had been told to end.

        A job that was begun `ATTEMPTS` times without a picture is what ends the process: it fails.
        """
        with self._changing() as connection:
            for order in connection.execute(select(ORDERS)).all():
                ours = update(JOBS).where(JOBS.c.id == order.job, JOBS.c.state.in_(("queued", "running")))
                connection.execute(ours.values(state=order.state, ended=time.time()))
            connection.execute(delete(ORDERS))
            rows = connection.execute(select(JOBS.c.id, JOBS.c.attempts).where(JOBS.c.state == "running")).all()
            for row in rows:
                if row.attempts < ATTEMPTS:
                    _change(connection, row.id, state="queued")
                else:
                    error = f"the server ended {row.attempts} times while this was painted; ask again to try again"
                    _change(connection, row.id, state="failed", ended=time.time(), error=error)
            return tuple(_job(connection, row.id) for row in rows)

    def set_priority(self, identity: str, priority: int) -> Job:
        """Raises NotFound where there is no such job."""
        with self._changing() as connection:
            _change(connection, identity, priority=priority)
            return _job(connection, identity)

    def move(self, identity: str, before: str | None) -> Job:
        """Put a waiting job right before another one, whose priority it takes; or at its own priority's end.

        Raises NotFound, and DanqingError where one of them waits no more.
        """
        with self._changing() as connection:
            moved, target = _job(connection, identity), None if before is None else _job(connection, before)
            for each in (moved, target):
                if each is not None and each.state != "queued":
                    raise DanqingError(f"job: {each.id} is {each.state}; only what waits has a place in the queue")
            if before == identity:
                return moved
            priority = moved.priority if target is None else target.priority
            waiting = select(JOBS.c.id, JOBS.c.place).where(JOBS.c.state == "queued", JOBS.c.priority == priority)
            rows = connection.execute(waiting.order_by(JOBS.c.place)).all()
            ids = [row.id for row in rows if row.id != identity]
            places = sorted({row.place for row in rows} | {moved.place})
            ids.insert(len(ids) if target is None or target.id not in ids else ids.index(target.id), identity)
            for each, place in zip(ids, places, strict=False):
                _change(connection, each, place=place)
            _change(connection, identity, priority=priority)
            return _job(connection, identity)

    def forget_jobs(self, before: float) -> int:
        """Take out jobs that were over by that time, and return how many; their pictures stay in the gallery."""
        old = JOBS.c.state.in_(ENDED) & (JOBS.c.ended < before)
        with self._changing() as connection:
            connection.execute(delete(INPUTS).where(INPUTS.c.job.in_(select(JOBS.c.id).where(old))))
            return connection.execute(delete(JOBS).where(old)).rowcount

    def inputs(self) -> set[str]:
        """The names of all files that jobs have for their pictures."""
        with self._reader.begin() as connection:
            return set(connection.scalars(select(INPUTS.c.name).distinct()))

    # pictures

    def pictures(self, job: str) -> tuple[Stored, ...]:
        """A job's pictures by their index, deleted ones too."""
        with self._reader.begin() as connection:
            return _stored(connection, select(PICTURES).where(PICTURES.c.job == job).order_by(PICTURES.c.index))

    def picture(self, identity: str) -> Stored:
        """Raises NotFound where there is none."""
        with self._reader.begin() as connection:
            return _picture(connection, identity)

    def search(self, query: Query, limit: int = 50, offset: int = 0) -> tuple[Stored, ...]:
        """The pictures that are meant, the latest first."""
        found = select(PICTURES).where(*self._conditions(query))
        order = found.order_by(PICTURES.c.created.desc(), PICTURES.c.number.desc())
        with self._reader.begin() as connection:
            return _stored(connection, order.limit(limit).offset(offset))

    def count(self, query: Query) -> int:
        """How many pictures are meant."""
        with self._reader.begin() as connection:
            return connection.scalar(select(func.count()).select_from(PICTURES).where(*self._conditions(query))) or 0

    def add_pictures(self, pictures: Sequence[NewPicture]) -> tuple[Stored, ...]:
        """Pictures that no job made; one whose path is in the gallery already is left out."""
        with self._changing() as connection:
            known = select(PICTURES.c.path).where(PICTURES.c.path.in_([each.path for each in pictures]))
            have = set(connection.scalars(known))
            new = [_add_picture(connection, None, each, self._lite) for each in pictures if each.path not in have]
            return _stored(connection, select(PICTURES).where(PICTURES.c.number.in_(new)))

    def set_picture(
        self,
        identity: str,
        *,
        rating: int | None = None,
        favourite: bool | None = None,
        tags: Sequence[str] | None = None,
        deleted: bool | None = None,
    ) -> Stored:
        """Change what is given. `deleted` False takes it out of the bin. Raises DanqingError for a wrong value."""
        if rating is not None and not 0 <= rating <= 5:
            raise DanqingError(f"rating: should be 0 to 5, but it is {rating}")
        clean = None if tags is None else sorted({_plain(tag.strip()) for tag in tags if tag.strip()})
        if clean is not None and (len(clean) > 100 or any(len(tag) > 200 for tag in clean)):
            raise DanqingError("tags: at most 100, of at most 200 characters each")
        with self._changing() as connection:
            number = _number(connection, identity)
            values: dict[str, Any] = {"rating": rating, "favourite": favourite}
            values = {name: value for name, value in values.items() if value is not None}
            if deleted is not None:
                values["deleted"] = time.time() if deleted else None
            if values:
                connection.execute(update(PICTURES).where(PICTURES.c.number == number).values(**values))
            if clean is not None:
                connection.execute(delete(TAGS).where(TAGS.c.picture == number))
                for tag in clean:
                    connection.execute(insert(TAGS).values(picture=number, tag=tag))
                _index_words(connection, number, self._lite)
            return _picture(connection, identity)

    def tags(self) -> dict[str, int]:
        """All tags, and how many pictures have each."""
        query = select(TAGS.c.tag, func.count()).group_by(TAGS.c.tag).order_by(TAGS.c.tag)
        with self._reader.begin() as connection:
            return {str(tag): int(count) for tag, count in connection.execute(query)}

    def bin(self, before: float, limit: int) -> tuple[Stored, ...]:
        """Some of what was deleted before that time."""
        with self._reader.begin() as connection:
            return _stored(connection, select(PICTURES).where(PICTURES.c.deleted < before).limit(limit))

    def forget(self, identity: str) -> None:
        """Take a picture's row out; its file is the caller's."""
        with self._changing() as connection:
            number = _number(connection, identity)
            words = "DELETE FROM words WHERE rowid = :n" if self._lite else "DELETE FROM words WHERE picture = :n"
            connection.execute(text(words), {"n": number})
            connection.execute(delete(TAGS).where(TAGS.c.picture == number))
            connection.execute(delete(PICTURES).where(PICTURES.c.number == number))

    # options

    def options(self) -> dict[str, Any]:
        """What `set_options` was told."""
        with self._reader.begin() as connection:
            return {row.key: json.loads(row.value) for row in connection.execute(select(OPTIONS))}

    def set_options(self, values: Mapping[str, Any]) -> None:
        """Keep these values, of JSON's types; others stay. None takes one out."""
        with self._changing() as connection:
            connection.execute(delete(OPTIONS).where(OPTIONS.c.key.in_(values)))
            for key, value in values.items():
                if value is not None:
                    connection.execute(insert(OPTIONS).values(key=key, value=_dumped(value)))

    def _conditions(self, query: Query) -> list[ColumnElement[bool]]:
        c = PICTURES.c
        conditions: list[ColumnElement[bool]] = [c.deleted.is_not(None) if query.deleted else c.deleted.is_(None)]
        if words := phrases(query.words):
            conditions.append(c.number.in_(self._with_words(words)))
        if query.model:
            conditions.append(func.lower(c.model).contains(_plain(query.model).lower(), autoescape=True))
        if query.seed is not None:
            conditions.append(c.seed == str(query.seed))
        if query.since is not None:
            conditions.append(c.created >= query.since)
        if query.until is not None:
            conditions.append(c.created < query.until)
        if query.rating is not None:
            conditions.append(c.rating >= query.rating)
        if query.favourite is not None:
            conditions.append(c.favourite == query.favourite)
        if query.tag:
            conditions.append(c.number.in_(select(TAGS.c.picture).where(TAGS.c.tag == _plain(query.tag))))
        if query.kind:
            conditions.append(c.kind == _plain(query.kind))
        if query.job:
            conditions.append(c.job == query.job)
        return conditions

    def _with_words(self, words: Sequence[str]) -> Any:
        if self._lite:
            match = " AND ".join(f'"{phrase}"' for phrase in words) + ("*" if words else "")
            return text("SELECT rowid FROM words WHERE words MATCH :words").bindparams(words=match)
        match = " & ".join(" <-> ".join(f"'{lexeme(word)}'" for word in phrase.split()) for phrase in words) + ":*"
        found = text("SELECT picture FROM words WHERE CAST(text AS tsvector) @@ CAST(:words AS tsquery)")
        return found.bindparams(words=match)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Text as every database takes it: PostgreSQL has no NUL, and none has halves of surrogate pairs."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:...@", url)


def _queue_order() -> tuple[ColumnElement[Any], ...]:
    return JOBS.c.priority.desc(), JOBS.c.place, JOBS.c.number


def _change(connection: Connection, identity: str, **values: Any) -> None:
    if not connection.execute(update(JOBS).where(JOBS.c.id == identity).values(**values)).rowcount:
        raise NotFound(f"job: there is none with the id {quoted(identity)}")


def _start(connection: Connection, identity: str) -> None:
    started = func.coalesce(JOBS.c.started, time.time())
    _change(connection, identity, state="running", started=started, attempts=JOBS.c.attempts + 1)


def _job(connection: Connection, identity: str) -> Job:
    row = connection.execute(select(JOBS).where(JOBS.c.id == identity)).first()
    if row is None:
        raise NotFound(f"job: there is none with the id {quoted(identity)}")
    return _as_job(row)


def _as_job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    for name in ("number", "share", "attempts"):
        values.pop(name)
    values["request"] = json.loads(values["request"])
    for name in ("parts", "notes", "skipped"):
        values[name] = tuple(json.loads(values[name]))
    return Job(**values)


def _number(connection: Connection, identity: str) -> int:
    number = connection.scalar(select(PICTURES.c.number).where(PICTURES.c.id == identity))
    if number is None:
        raise NotFound(f"picture: there is none with the id {quoted(identity)}")
    return int(number)


def _picture(connection: Connection, identity: str) -> Stored:
    found = _stored(connection, select(PICTURES).where(PICTURES.c.id == identity))
    if not found:
        raise NotFound(f"picture: there is none with the id {quoted(identity)}")
    return found[0]


def _stored(connection: Connection, query: Select[Any]) -> tuple[Stored, ...]:
    rows = connection.execute(query).all()
    tags: dict[int, list[str]] = {row.number: [] for row in rows}
    if rows:
        named = select(TAGS).where(TAGS.c.picture.in_(tags)).order_by(TAGS.c.tag)
        for row in connection.execute(named):
            tags[row.picture].append(row.tag)
    return tuple(_as_stored(row, tags[row.number]) for row in rows)


def _as_stored(row: Row[Any], tags: Sequence[str]) -> Stored:
    values = dict(row._mapping)
    values.pop("number")
    values["seed"] = None if values["seed"] is None else int(values["seed"])
    return Stored(**values, tags=tuple(tags))


def _add_picture(connection: Connection, job: str | None, new: NewPicture, lite: bool) -> int:
    values = {name: _plain(getattr(new, name)) for name in NewPicture.__dataclass_fields__}
    values |= {
        "id": secrets.token_hex(16),
        "job": job,
        "seed": None if new.seed is None else str(new.seed),
        "created": time.time() if new.created is None else new.created,
        "rating": 0,
        "favourite": False,
    }
    try:
        key = connection.execute(insert(PICTURES).values(**values)).inserted_primary_key
    except IntegrityError as error:
        raise DanqingError(f"{new.path}: cannot enter the gallery: {_first_line(error)}") from None
    assert key is not None
    _add_words(connection, key[0], f"{new.prompt} {new.model}", lite)
    return int(key[0])


def _index_words(connection: Connection, number: int, lite: bool) -> None:
    row = connection.execute(select(PICTURES).where(PICTURES.c.number == number)).one()
    tags = connection.scalars(select(TAGS.c.tag).where(TAGS.c.picture == number)).all()
    key = "rowid" if lite else "picture"
    connection.execute(text(f"DELETE FROM words WHERE {key} = :n"), {"n": number})
    _add_words(connection, number, " ".join([row.prompt, row.model, *tags]), lite)


def _add_words(connection: Connection, number: int, words: str, lite: bool) -> None:
    plain = spaced(words)
    values = {"n": number, "text": plain if lite else vector(plain)}
    connection.execute(text(f"INSERT INTO words ({'rowid' if lite else 'picture'}, text) VALUES (:n, :text)"), values)
