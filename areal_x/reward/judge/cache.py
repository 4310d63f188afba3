"""Replies on disk, so that a question asked before, also in an earlier run, is not paid for again.

One SQLite file with a write-ahead log, which several processes may share. All access is on one thread of its own:
look-ups and writes that come meanwhile are gathered and done together, so the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from areal_x.api.errors import ConfigError

__all__ = ["CachedReply", "ReplyCache"]

_logger = logging.getLogger("areal_x.reward.judge")
_FORMAT = 1
"""In the file's ``user_version``; a file of another format is refused."""
_BUSY_SECONDS = 10.0
_BATCH = 500
"""Keys in one look-up; SQLite allows 999 variables in a statement, by default."""


@dataclass(frozen=True, slots=True)
class CachedReply:
    """A reply, and what it had taken."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class ReplyCache:
    """Replies by key.

    Args:
        path: of the file; made with its folder if it does not exist.

    Raises:
        ConfigError: the file cannot be opened, or is none of these caches.
    """

    def __init__(self, path: str | Path) -> None:
        self.num_errors = 0
        """Look-ups and writes that failed since (a full disk): the judge goes on without."""
        self._path = Path(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge cache")
        self._connection = self._open()
        self._wanted: dict[bytes, asyncio.Future[CachedReply | None]] = {}
        self._new: dict[bytes, CachedReply] = {}
        self._worker: asyncio.Task[None] | None = None

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Prompts' replies are the owner's alone. SQLite gives the file's mode to those that it puts beside it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != _FORMAT and (version or num_tables):
                connection.close()
                raise ConfigError(
                    f"reward 'judge': cache={self._path} is a database of something else; name another file"
                )
            connection.execute("PRAGMA journal_mode=WAL")
            # Without a sync at each commit a power cut can lose the last replies, but never breaks the file.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT) WITHOUT ROWID")
            connection.execute(f"PRAGMA user_version={_FORMAT}")
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"reward 'judge': cache={self._path} cannot be used ({error}); delete it or name another file"
            ) from error
        return connection

    async def get(self, key: bytes) -> CachedReply | None:
        """The reply of that key, or None."""
        if key in self._new:
            return self._new[key]
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = asyncio.get_running_loop().create_future()
            self._wake()
        return await asyncio.shield(future)

    def put(self, key: bytes, reply: CachedReply) -> None:
        """Keep a reply; it is written soon, at the latest by ``close``."""
        self._new[key] = reply
        self._wake()

    async def close(self) -> None:
        """Write what is left and close the file."""
        while self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.submit(self._connection.close)
        self._thread.shutdown(wait=True)

    def _wake(self) -> None:
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work(), name="judge cache")

    async def _work(self) -> None:
        """Serve what is asked for until nothing is."""
        loop = asyncio.get_running_loop()
        wanted: dict[bytes, asyncio.Future[CachedReply | None]] = {}
        try:
            while self._wanted or self._new:
                wanted, self._wanted = self._wanted, {}
                new = dict(itertools.islice(self._new.items(), _BATCH))
                found, error = await loop.run_in_executor(self._thread, self._access, list(wanted), new)
                if error is not None:
                    self._report(error)
                for key in new:
                    if self._new.get(key) is new[key]:
                        del self._new[key]
                for key, future in wanted.items():
                    future.set_result(found.get(key))
                wanted = {}
        finally:
            self._worker = None
            # Whatever ended this task, nobody may wait for it for ever: what was not found is asked for.
            for future in (*wanted.values(), *self._wanted.values()):
                if not future.done():
                    future.set_result(None)
            self._wanted = {}

    def _access(
        self, keys: list[bytes], new: dict[bytes, CachedReply]
    ) -> tuple[dict[bytes, CachedReply], Exception | None]:
        """On the thread: read and write in few statements. What fails is told, and counts as not found."""
        found: dict[bytes, CachedReply] = {}
        try:
            for start in range(0, len(keys), _BATCH):
                batch = keys[start : start + _BATCH]
                marks = ",".join("?" * len(batch))
                rows = self._connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", batch)
                found.update((key, _decode(reply)) for key, reply in rows)
            if new:
                rows_in = [(k, json.dumps([r.text, r.prompt_tokens, r.completion_tokens])) for k, r in new.items()]
                self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows_in)
                self._connection.execute("COMMIT")
        except (sqlite3.Error, ValueError, RecursionError) as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            return found, error
        return found, None

    def _report(self, error: Exception) -> None:
        if not self.num_errors:
            _logger.warning(
                "the judge's cache %s cannot be used now (%s); replies are asked for anew", self._path, error
            )
        self.num_errors += 1


def _decode(reply: object) -> CachedReply:
    """A row of the file.

    Raises:
        ValueError: it is none that this class wrote.
    """
    values = json.loads(reply) if isinstance(reply, str) else None
    if not isinstance(values, list) or [type(value) for value in values] != [str, int, int]:
        raise ValueError(f"a row holds {str(reply)[:80]!r}")
    return CachedReply(*values)
