"""The studio's tables, how SQLite is opened, and how text is searched."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

META = MetaData()
JOBS = Table(
    "jobs",
    META,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("request", Text, nullable=False),
    Column("parts", Text, nullable=False),
    Column("total", Integer, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("place", Float, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("error", Text),
    Column("notes", Text, nullable=False),
    Column("skipped", Text, nullable=False),
    Column("share", String(64), index=True),  # what jobs that may share a run have in common
    Column("attempts", Integer, nullable=False),  # begun so often without a picture
    sqlite_autoincrement=True,
)
ORDERS = Table(
    "orders",
    META,
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("state", String(16), nullable=False),  # that a job was told to end in while it was painted
)
INPUTS = Table(
    "inputs",
    META,
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(80), primary_key=True),
)
PICTURES = Table(
    "pictures",
    META,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("job", String(32), index=True),
    Column("index", Integer, nullable=False),
    Column("path", String(1024), nullable=False, unique=True),
    Column("record", Text),
    Column("infotext", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("negative_prompt", Text, nullable=False),
    Column("model", String(512), nullable=False),
    Column("sampler", String(64), nullable=False),
    Column("seed", String(24), index=True),  # up to 2^64 - 1, which is more than a signed integer holds
    Column("kind", String(16), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created", Float, nullable=False, index=True),
    Column("rating", Integer, nullable=False),
    Column("favourite", Boolean, nullable=False),
    Column("deleted", Float),
    UniqueConstraint("job", "index"),
    sqlite_autoincrement=True,
)
TAGS = Table(
    "tags",
    META,
    Column("picture", Integer, ForeignKey("pictures.number", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(200), primary_key=True, index=True),
)
OPTIONS = Table("options", META, Column("key", String(200), primary_key=True), Column("value", Text, nullable=False))
WORDS = Table(
    "words",
    META,
    Column("picture", Integer, ForeignKey("pictures.number", ondelete="CASCADE"), primary_key=True),
    Column("text", Text, nullable=False),
    info={"postgresql": True},
)
"""What words are searched in: PostgreSQL's `tsvector`, as text. SQLite has a table of its module FTS5 in its place."""


def spaced(words: str) -> str:
    """Text as the word index has it: lower case, letters and digits alone, each Chinese or Japanese character a word."""
    apart = re.sub(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])", r" \1 ", words)
    return " ".join(re.findall(r"[^\W_]+", apart.casefold()))


def phrases(words: str) -> list[str]:
    """What is searched for, phrase by phrase: "quoted words", single ones, and runs of Chinese characters."""
    parts = re.findall(r'"([^"]*)"|([^\s"]+)', words)
    return [phrase for quote, word in parts if (phrase := spaced(quote or word))]


def lexeme(word: str) -> str:
    """A word as PostgreSQL's index takes it, which has no longer ones."""
    return word[:500]


def vector(words: str) -> str:
    """What `spaced` gave as PostgreSQL's `tsvector`: its own reader of texts knows Chinese in some locales alone."""
    return " ".join(f"'{lexeme(word)}':{place}" for place, word in enumerate(words[:300_000].split()[:16383], 1))


def prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN is the one that counts
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}").close()


def begin(connection: Connection) -> None:
    # one that reads first and writes later could meet another one's lock, and fail without waiting
    options = connection.get_execution_options()
    if options.get("reads", False):
        connection.exec_driver_sql("BEGIN")
        return
    # NORMAL does not wait for the disk: after a power failure that change may be gone, and nothing else
    connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if options.get('lax', False) else 'FULL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
