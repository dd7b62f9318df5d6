"""SHA-256 of whole files, computed beside the work and remembered by path, size, time and inode.

Nothing waits for a hash but who asks for its result. The memory is an SQLite file in the data folder, which several
processes may share; what AUTOMATIC1111 has already written in its cache.json is used too.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from danqing.checkpoints.hashes import sha256
from danqing.errors import DanqingError

log = logging.getLogger(__name__)

FILE_NAME = "hashes.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS hashes (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, sha256 TEXT NOT NULL
)"""


@dataclass(frozen=True)
class HashCache:
    """Hashes of files, remembered in `data_dir`. Holds no open file; copies and processes agree."""

    data_dir: Path

    def known(self, path: Path) -> str | None:
        """The SHA-256 (64 hex digits) of the file as it is now, if it is remembered; never reads the file."""
        path = path.absolute()
        try:
            status = path.stat()
        except OSError:
            return None
        with self._database() as database:
            row = database.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                (str(path), *_stamp(status)),
            ).fetchone()
        return str(row[0]) if row else _from_automatic1111(path, status)

    def later(self, path: Path) -> Future[str]:
        """A future of the file's SHA-256: done at once where remembered, else computed in a thread of its own.

        The thread never keeps the program from ending. The result raises DanqingError where the file cannot be read.
        """
        future: Future[str] = Future()
        known = self.known(path)
        if known is not None:
            future.set_result(known)
        else:
            threading.Thread(target=self._compute, args=(path, future), name="danqing-hash", daemon=True).start()
        return future

    def remember(self, path: Path, digest: str) -> None:
        """Note the hash of a file that was just computed by other means, a download's for one."""
        self._store(path.absolute(), path.stat(), digest)

    def paths(self, prefix: str) -> list[Path]:
        """Files, unchanged since they were hashed, whose SHA-256 begins with `prefix` (hex digits)."""
        prefix = prefix.lower()
        with self._database() as database:
            rows = database.execute(
                "SELECT path FROM hashes WHERE substr(sha256, 1, ?) = ? ORDER BY path", (len(prefix), prefix)
            ).fetchall()
        return [path for (name,) in rows if (self.known(path := Path(name)) or "").startswith(prefix)]

    def _compute(self, path: Path, future: Future[str]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own: painting goes first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            before = path.stat()
            digest = sha256(path)
            if _stamp(path.stat()) == _stamp(before):
                self._store(path.absolute(), before, digest)
            future.set_result(digest)
        except OSError as error:
            future.set_exception(DanqingError(f"{path}: cannot be read: {error.strerror or error}"))
        except Exception as error:
            future.set_exception(error)

    def _store(self, path: Path, status: os.stat_result, digest: str) -> None:
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (str(path), *_stamp(status), digest)
            )
            database.commit()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The open database; where it cannot be opened, an empty one in memory, so that hashing still works."""
        file = self.data_dir / FILE_NAME
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(file, timeout=30)
            try:
                database.execute(_TABLE)
            except sqlite3.Error:
                database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            log.warning("%s: hashes are not remembered: %s", file, error)
            database = sqlite3.connect(":memory:")
            database.execute(_TABLE)
        with closing(database):
            yield database


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    # Inodes of some network disks pass SQLite's 63 bits.
    return status.st_size, status.st_mtime_ns, status.st_ino & (2**63 - 1)


def _from_automatic1111(path: Path, status: os.stat_result) -> str | None:
    """A checkpoint's hash from the cache.json of the installation that it lies in (modules/hashes.py, modules/cache.py).

    Its keys are `checkpoint/` and the path below models/Stable-diffusion; a hash holds until the file is younger.
    """
    for folder in path.parents:
        if folder.name.lower() == "stable-diffusion" and folder.parent.name == "models":
            try:
                stored = json.loads((folder.parent.parent / "cache.json").read_text(encoding="utf-8"))
                row = stored["hashes"]["checkpoint/" + path.relative_to(folder).as_posix()]
                digest, mtime = str(row["sha256"]), float(row["mtime"])
            except (OSError, ValueError, KeyError, TypeError):
                return None
            return digest if len(digest) == 64 and status.st_mtime <= mtime else None
    return None
