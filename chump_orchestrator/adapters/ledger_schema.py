"""What the ledger's database looks like, from version to version, and how it is opened."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from chump_orchestrator.adapters.sqlite import (
    Corrupt,
    connect,
    for_its_owner_alone,
    migrate,
    schema_version,
    use_wal,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE dispatches (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            gap TEXT NOT NULL,
            gap_snapshot TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            route TEXT NOT NULL,
            deadlines TEXT NOT NULL,
            names TEXT NOT NULL,
            created_at TEXT NOT NULL,
            state TEXT NOT NULL,
            active INTEGER AS (state IN ('planned', 'launching', 'running', 'exited')),
            workspace TEXT,
            pid INTEGER,
            launched_at TEXT,
            exit TEXT,
            exited_at TEXT,
            pull TEXT,
            pull_since TEXT,
            pull_since_active_s REAL NOT NULL,
            checks_failed_since TEXT,
            outcome TEXT,
            cause TEXT,
            reason TEXT,
            ended_at TEXT,
            siblings INTEGER,
            cost_usd REAL,
            tokens INTEGER,
            tidied INTEGER NOT NULL,
            progress INTEGER NOT NULL DEFAULT 0,
            failed INTEGER NOT NULL DEFAULT 0,
            accepted_since INTEGER NOT NULL DEFAULT 0,
            freed_at TEXT
        )""",
        "CREATE UNIQUE INDEX one_active_dispatch_per_gap ON dispatches (gap) WHERE active",
        "CREATE INDEX dispatches_of_a_gap ON dispatches (gap, seq)",
        "CREATE INDEX untidy_dispatches ON dispatches (seq) WHERE tidied = 0",
        """CREATE TABLE outbox (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            dispatch TEXT NOT NULL UNIQUE,
            reflection TEXT NOT NULL
        )""",
        """CREATE TABLE parked (
            gap TEXT PRIMARY KEY,
            reason TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            since TEXT NOT NULL,
            until TEXT
        )""",
        """CREATE TABLE shipped (
            gap TEXT PRIMARY KEY,
            day TEXT NOT NULL,
            confirmed INTEGER NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE requested (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            gap TEXT NOT NULL UNIQUE,
            at TEXT NOT NULL
        )""",
        "CREATE TABLE brakes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    ("ALTER TABLE dispatches ADD COLUMN lessons TEXT NOT NULL DEFAULT '[]'",),
    ("ALTER TABLE dispatches ADD COLUMN report TEXT",),
    ("ALTER TABLE dispatches ADD COLUMN unaccepted_usd REAL",),
    (
        "ALTER TABLE dispatches ADD COLUMN resumed TEXT",
        # NULL asks for a new attempt, a number for the last session (see `Settlement.resume`).
        "ALTER TABLE requested ADD COLUMN resume INTEGER",
    ),
    ("ALTER TABLE dispatches ADD COLUMN shipment TEXT",),
    (
        "ALTER TABLE dispatches ADD COLUMN corrected_at TEXT",
        "ALTER TABLE dispatches ADD COLUMN corrected_from TEXT",
        """CREATE TABLE corrections (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            dispatch TEXT NOT NULL UNIQUE,
            reflection TEXT NOT NULL
        )""",
    ),
)
"""Each entry brings the schema to the next version. Entries that were released never change."""


def for_writing(path: Path) -> sqlite3.Connection:
    """Open the ledger, made or migrated where needed; `Corrupt` when it is damaged."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # what is wrong with it, SQLite tells better
        for_its_owner_alone(path)
    connection = connect(path)
    try:
        connection.row_factory = sqlite3.Row
        for row in connection.execute("PRAGMA quick_check(1)"):
            if row[0] != "ok":
                msg = f"{path} is damaged ({row[0]}); put it aside"
                raise Corrupt(msg)
        migrate(connection, path, MIGRATIONS)
        use_wal(connection)
        # SQLite opens a file that cannot be written for reading, and does not say so.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def for_reading(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """Open the ledger for reading, with `readonly` without the right to write.

    An older file, or one that is missing, is read as a migrated copy in memory.
    """
    if path.exists():
        connection = connect(path, readonly=readonly)
    else:
        connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        if schema_version(connection) < len(MIGRATIONS):
            older, connection = connection, sqlite3.connect(":memory:", isolation_level=None)
            with contextlib.closing(older):
                older.backup(connection)
        # What is migrated here is a copy already.
        migrate(connection, path, MIGRATIONS, backs_up=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection
