"""The store in one SQLite file: WAL, one writing connection, one reading connection.

`synchronous=NORMAL` survives the death of the process (the write-ahead log is in the system's
page cache); FULL flushes it to the disk at each commit, which is what a loss of power asks for.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from . import schema
from .settings import Durability
from .sqlite_rows import DECISION, SESSION, dump, keep, marks, to_decision, to_session
from .store import (
    AttemptRecord,
    DecisionRecord,
    IdempotencyRecord,
    KeyRecord,
    SessionRecord,
    Status,
    StoreError,
)


class SqliteStore:
    """`Store` on a SQLite file; safe for several threads, one call at a time per connection.

    Args:
        path: The file; made with its schema if it is not there.
        durability: See `Settings`.
        timeout: Seconds to wait for another process's lock.

    Raises:
        ConfigurationError: The file cannot be opened, is newer, or is not ours.
    """

    def __init__(
        self, path: Path, *, durability: Durability = "process", timeout: float = 5.0
    ) -> None:
        level = "FULL" if durability == "power" else "NORMAL"
        try:
            self._writer = _connect(path, timeout)
            try:
                # before anything that is written to the file: it may be another program's
                schema.check(self._writer, str(path))
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute(f"PRAGMA synchronous = {level}")
                self._writer.execute("PRAGMA foreign_keys = ON")
                schema.migrate(self._writer, str(path))
                self._reader = _connect(path, timeout)
                self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"The database {path} cannot be opened: {error}. Its folder must exist and be "
                "writable; it must be an lhopt database or a new file."
            ) from error
        # a commit holds one lock and a list the other, so that history reads delay no decision
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                try:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                except sqlite3.Error:
                    pass  # the first error is the one to report
                if isinstance(error, sqlite3.Error):
                    raise StoreError(str(error)) from error
                raise

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._read_lock:
            try:
                return self._reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError(str(error)) from error

    def add_session(self, session: SessionRecord, answer: IdempotencyRecord | None) -> None:
        """See `Store`."""
        s = session
        row = (
            s.id, s.owner, s.name, s.status, s.attempt, s.next_index, s.policy_name,
            s.policy_digest, s.optimizer, dump(s.controls), s.share, s.scheduled,
            dump(s.metadata), dump(s.opening), s.created, s.updated, None,
        )  # fmt: skip
        with self._writing() as db:
            db.execute(f"INSERT INTO session ({SESSION}) VALUES ({marks(row)})", row)
            db.execute("INSERT INTO attempt VALUES (?, 0, NULL, 0, ?)", (s.id, s.created))
            keep(db, answer)

    def session(self, session_id: str) -> SessionRecord | None:
        """See `Store`."""
        rows = self._read(f"SELECT {SESSION} FROM session WHERE id = ?", session_id)
        return to_session(rows[0]) if rows else None

    def sessions(
        self, owner: str, status: Status | None, limit: int, after: tuple[float, str] | None
    ) -> list[SessionRecord]:
        """See `Store`."""
        created, last = after or (1e300, "")
        rows = self._read(
            f"SELECT {SESSION} FROM session WHERE owner = ? AND (created, id) < (?, ?) "
            "AND (? IS NULL OR status = ?) ORDER BY created DESC, id DESC LIMIT ?",
            owner, created, last, status, status, limit,
        )  # fmt: skip
        return [to_session(row) for row in rows]

    def count_open(self, owner: str, since: float = 0.0) -> int:
        """See `Store`."""
        query = "SELECT count(*) FROM session WHERE status = 'open' AND owner = ? AND updated > ?"
        return int(self._read(query, owner, since)[0][0])

    def counts(self) -> dict[Status, int]:
        """See `Store`."""
        rows = self._read("SELECT status, count(*) FROM session GROUP BY status")
        return {"open": 0, "closed": 0, **dict(rows)}

    def attempts(self, session_id: str) -> list[AttemptRecord]:
        """See `Store`."""
        query = "SELECT * FROM attempt WHERE session = ? ORDER BY attempt"
        return [AttemptRecord(*row) for row in self._read(query, session_id)]

    def head(self, session_id: str, attempt: int) -> int:
        """See `Store`."""
        rows = self._read(
            "SELECT max(start, coalesce((SELECT max(idx) + 1 FROM decision WHERE session = ? "
            "AND attempt = ?), 0)) FROM attempt WHERE session = ? AND attempt = ?",
            session_id, attempt, session_id, attempt,
        )  # fmt: skip
        return int(rows[0][0])

    def decision(self, session_id: str, attempt: int, index: int) -> DecisionRecord | None:
        """See `Store`."""
        rows = self.decisions(session_id, attempt, index, index + 1)
        return rows[0] if rows else None

    def decisions(
        self, session_id: str, attempt: int, start: int, stop: int
    ) -> list[DecisionRecord]:
        """See `Store`."""
        rows = self._read(
            f"SELECT {DECISION} FROM decision WHERE session = ? AND attempt = ? "
            "AND idx >= ? AND idx < ? ORDER BY idx",
            session_id, attempt, start, stop,
        )  # fmt: skip
        return [to_decision(row) for row in rows]

    def commit(self, decisions: Sequence[DecisionRecord]) -> list[bool]:
        """See `Store`."""
        kept = []
        with self._writing() as db:
            for d in decisions:
                moved = db.execute(
                    "UPDATE session SET next_index = ?, updated = ? "
                    "WHERE id = ? AND attempt = ? AND next_index = ? AND status = 'open'",
                    (d.index + 1, d.at, d.session, d.attempt, d.index),
                )
                kept.append(moved.rowcount == 1)
                if kept[-1]:
                    row = (
                        d.session, d.attempt, d.index, d.fingerprint, d.policy_digest,
                        dump(d.statistics), dump(d.situation), dump(d.decision),
                        d.state_after, d.answer, d.at,
                    )  # fmt: skip
                    db.execute(f"INSERT INTO decision ({DECISION}) VALUES ({marks(row)})", row)
        return kept

    def fork(self, attempt: AttemptRecord, answer: IdempotencyRecord | None) -> bool:
        """See `Store`."""
        a = attempt
        with self._writing() as db:
            moved = db.execute(
                "UPDATE session SET attempt = ?, next_index = ?, updated = ? "
                "WHERE id = ? AND attempt = ? AND status = 'open'",
                (a.attempt, a.start, a.created, a.session, a.attempt - 1),
            )
            if moved.rowcount != 1:
                return False
            row = (a.session, a.attempt, a.parent, a.start, a.created)
            db.execute("INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", row)
            keep(db, answer)
        return True

    def close_session(
        self, session_id: str, outcome: dict[str, Any], at: float, attempt: int | None = None
    ) -> bool:
        """See `Store`."""
        with self._writing() as db:
            moved = db.execute(
                "UPDATE session SET status = 'closed', outcome = ?, updated = ? "
                "WHERE id = ? AND status = 'open' AND attempt = coalesce(?, attempt)",
                (dump(outcome), at, session_id, attempt),
            )
            return moved.rowcount == 1

    def idempotent(self, owner: str, key: str) -> IdempotencyRecord | None:
        """See `Store`."""
        rows = self._read("SELECT * FROM idempotency WHERE owner = ? AND key = ?", owner, key)
        return IdempotencyRecord(*rows[0]) if rows else None

    def add_key(self, key: KeyRecord) -> None:
        """See `Store`."""
        row = (key.short, key.name, key.secret_sha256, key.created, key.revoked)
        with self._writing() as db:
            db.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, ?)", row)

    def list_keys(self) -> list[KeyRecord]:
        """See `Store`."""
        return [
            KeyRecord(*row) for row in self._read("SELECT * FROM api_key ORDER BY created, short")
        ]

    def revoke_key(self, short: str, at: float) -> bool:
        """See `Store`."""
        query = "UPDATE api_key SET revoked = ? WHERE short = ? AND revoked IS NULL"
        with self._writing() as db:
            return db.execute(query, (at, short)).rowcount == 1

    def probe(self) -> None:
        """See `Store`."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (time.time(),))

    def close(self) -> None:
        """See `Store`."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    # autocommit: transactions are written out, none is opened behind our back
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
