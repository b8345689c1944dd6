"""The SQLite schema and its versions. A change of schema is one more entry in `MIGRATIONS`."""

from __future__ import annotations

import sqlite3

from ..core.errors import ConfigurationError

#: "lhop" in ASCII: tells our files from other programs' SQLite files.
APPLICATION_ID = 0x6C686F70

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE api_key (
            short TEXT PRIMARY KEY, name TEXT NOT NULL, secret_sha256 TEXT NOT NULL,
            created REAL NOT NULL, revoked REAL)""",
        """CREATE TABLE session (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT, status TEXT NOT NULL,
            attempt INTEGER NOT NULL, next_index INTEGER NOT NULL,
            policy_name TEXT NOT NULL, policy_digest TEXT NOT NULL, optimizer TEXT NOT NULL,
            controls TEXT NOT NULL, share REAL NOT NULL, scheduled INTEGER NOT NULL,
            metadata TEXT NOT NULL, opening TEXT NOT NULL,
            created REAL NOT NULL, updated REAL NOT NULL, outcome TEXT)""",
        "CREATE INDEX session_by_owner ON session (owner, created DESC, id DESC)",
        "CREATE INDEX session_by_status ON session (status, owner)",
        """CREATE TABLE attempt (
            session TEXT NOT NULL REFERENCES session (id), attempt INTEGER NOT NULL,
            parent INTEGER, start INTEGER NOT NULL, created REAL NOT NULL,
            PRIMARY KEY (session, attempt)) WITHOUT ROWID""",
        """CREATE TABLE decision (
            session TEXT NOT NULL REFERENCES session (id), attempt INTEGER NOT NULL,
            idx INTEGER NOT NULL, fingerprint TEXT NOT NULL, policy_digest TEXT NOT NULL,
            statistics TEXT NOT NULL, situation TEXT NOT NULL, decision TEXT NOT NULL,
            state_after BLOB NOT NULL, answer BLOB NOT NULL, at REAL NOT NULL,
            PRIMARY KEY (session, attempt, idx))""",
        """CREATE TABLE idempotency (
            owner TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL,
            status INTEGER NOT NULL, location TEXT NOT NULL, answer BLOB NOT NULL,
            at REAL NOT NULL, PRIMARY KEY (owner, key)) WITHOUT ROWID""",
        "CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL)",
    ),
)
VERSION = len(MIGRATIONS)


def check(connection: sqlite3.Connection, source: str) -> int:
    """The version of a database, which is only read.

    Raises:
        ConfigurationError: It is of a newer version, or another program's.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise ConfigurationError(
            f"{source} is another program's SQLite database. Name a new file, or one that "
            "lhopt made."
        )
    if version > VERSION:
        raise ConfigurationError(
            f"{source} has schema version {version}; this lhopt knows up to {VERSION}. "
            "Install the version that wrote it, or a newer one."
        )
    return version


def migrate(connection: sqlite3.Connection, source: str) -> None:
    """Bring a database to `VERSION`; `connection` is in autocommit mode.

    Raises:
        ConfigurationError: As `check`.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check(connection, source)
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        if version < VERSION:
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
