"""The journal: reflections and routing outcomes, in two databases that other tools read, too.

Theirs come first: what they made is never renamed, altered or taken away, only added to; locks
are held for one short transaction (behaviour R1 to R6).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio.to_thread

from chump_orchestrator.adapters import journal_outcomes
from chump_orchestrator.adapters.journal_corrections import rewrite_reflection, rewrite_score
from chump_orchestrator.adapters.journal_reading import (
    REFLECTIONS,
    TARGETS,
    bearing_on,
    columns_of,
    failures_in,
    names_in,
    remembered_in,
)
from chump_orchestrator.adapters.sqlite import (
    BUSY_S,
    Request,
    Share,
    SqliteThread,
    connect,
    storable,
    translate,
    use_wal,
)
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.learning import Experience
from chump_orchestrator.core.records import Remembered
from chump_orchestrator.core.reflection import (
    Reflection,
    ReflectionRow,
    RoutingRow,
    TargetRow,
    reflection_row,
    routing_row,
    target_row,
)

ROUTING = "routing_outcomes"
DELIVERED = "chump_orchestrator_delivered"
"""The table of ids that are written already: ours, in either database."""

Columns = Mapping[str, str]
Value = str | int | float | None
_LARGEST = 2**63 - 1

_NUMBER = re.compile("INT|REAL|FLOA|DOUB|NUM|DEC|BOOL", re.IGNORECASE)
"""In the declared type of a column that holds numbers."""

_ID = "INTEGER PRIMARY KEY AUTOINCREMENT"
_CREATED_AT = "TEXT NOT NULL DEFAULT (datetime('now'))"

_MEMORY: Mapping[str, Columns] = {
    REFLECTIONS: {
        "id": _ID,
        **dict.fromkeys(ReflectionRow._fields, "TEXT"),
        "surprisal_at_reflect": "REAL",
        "confidence_at_reflect": "REAL",
        "created_at": _CREATED_AT,
    },
    TARGETS: {
        "id": _ID,
        "reflection_id": f"INTEGER REFERENCES {REFLECTIONS} (id)",
        **dict.fromkeys(TargetRow._fields, "TEXT"),
        "actioned_as": "TEXT",
        "created_at": _CREATED_AT,
    },
}
_STATE: Mapping[str, Columns] = {
    ROUTING: {
        "id": _ID,
        **dict.fromkeys(RoutingRow._fields, "TEXT"),
        "pr_number": "INTEGER",
        "duration_s": "INTEGER",
        "cost_usd": "REAL",
        "propensity": "REAL",
    },
}
"""The tables of behaviour R1 and R5, with the types of their columns."""

_TABLES = {**_MEMORY, **_STATE}
_GIVEN = {
    REFLECTIONS: ReflectionRow._fields,
    TARGETS: ("reflection_id", *TargetRow._fields),
    ROUTING: RoutingRow._fields,
}
"""The columns that we fill, in the order of the values."""


class _Book:
    """One database of the journal: its tables, made fit for our rows, and its writing thread."""

    def __init__(self, path: Path, tables: Mapping[str, Columns], busy_s: float) -> None:
        self.path = path
        self._tables = tables
        self._busy_s = busy_s
        self._statements: dict[str, str] = {}
        self.thread = SqliteThread(path, self._connect)

    def statement(self, table: str) -> str:
        """Return the statement that adds a row with the values of our columns, in order."""
        return self._statements[table]

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = connect(self.path, busy_s=self._busy_s)
        try:
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                # Nobody's yet. An existing one keeps the mode that its owner has chosen.
                use_wal(connection, busy_s=self._busy_s)
            if self._is_wanting(connection):
                self._complete(connection)
            self._statements = {table: _insertion(connection, table) for table in self._tables}
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_wanting(self, connection: sqlite3.Connection) -> bool:
        return not columns_of(connection, DELIVERED) or any(
            columns.keys() - names_in(connection, table) for table, columns in self._tables.items()
        )

    def _complete(self, connection: sqlite3.Connection) -> None:
        """Make the tables that are missing, and add the columns that are."""
        connection.execute("BEGIN IMMEDIATE")
        for table, columns in self._tables.items():
            made = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({made})")
            present = names_in(connection, table)
            for name, kind in columns.items():
                if name not in present:
                    # A column that is added can have neither key nor a default that changes.
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind.split()[0]}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {DELIVERED} (dispatch_id TEXT PRIMARY KEY)")
        connection.execute("COMMIT")


class SqliteJournal:
    """Writes each reflection once to `reflections` and `routing`, two SQLite files.

    Files and folders are made when they are first needed. `busy_s` is how many seconds another
    program's lock is waited for. An async context manager that closes itself.
    """

    def __init__(self, *, reflections: Path, routing: Path, busy_s: float = BUSY_S) -> None:
        self._memory = _Book(reflections, _MEMORY, busy_s)
        self._state = _Book(routing, _STATE, busy_s)
        self._busy_s = busy_s

    async def record(self, reflection: Reflection) -> None:
        """Write the rows of one reflection, at most once however often it is called.

        `Unavailable`, naming the file, when a database cannot be written now. Safe to cancel:
        each database then has its rows or not, and another call writes what is missing.
        """
        self._state.thread.start()
        await self._memory.thread.run(Share(self._remember, reflection, self._remembered))

    def _remember(self, connection: sqlite3.Connection, reflections: Sequence[Reflection]) -> None:
        cursor = connection.cursor()
        statement = self._memory.statement(REFLECTIONS)
        targets = []
        for reflection in _firsts(connection, reflections):
            row = _storable(reflection_row(reflection))
            parent = cursor.execute(statement, row).lastrowid or 0
            targets.append((parent, *_storable(target_row(reflection))))
        cursor.executemany(self._memory.statement(TARGETS), targets)

    def _remembered(self, request: Request, reflection: Reflection) -> None:
        """Go on with the other file: a turn of the loop less than if it were asked for that."""
        score = Share(self._keep_score, reflection)
        self._state.thread.take_over(request._replace(work=score))

    def _keep_score(
        self, connection: sqlite3.Connection, reflections: Sequence[Reflection]
    ) -> None:
        scores = [
            _storable(routing_row(reflection)) for reflection in _firsts(connection, reflections)
        ]
        connection.executemany(self._state.statement(ROUTING), scores)

    async def correct(self, reflection: Reflection) -> None:
        """Rewrite the rows of a reflection as a later merge has it; quiet where there are none.

        Only what follows from the outcome changes; what others have added to the rows stays.
        `Unavailable` and cancellation are as with `record`.
        """

        def remember(connection: sqlite3.Connection) -> None:
            rewrite_reflection(connection, reflection)

        def keep_score(connection: sqlite3.Connection) -> None:
            rewrite_score(connection, reflection)

        await self._memory.thread.run(remember)
        await self._state.thread.run(keep_score)

    async def lessons(self, gap: Gap, limit: int = 5) -> tuple[str, ...]:
        """Return at most `limit` sentences on failures that bear on `gap` (behaviour R7).

        The gap's own come first, then those of its domain, those with the cause of one of its
        own, and those of its effort; within each the latest. `Unavailable` when the database
        cannot be read now. Safe to cancel.
        """
        path = self._memory.path
        try:
            failures = await anyio.to_thread.run_sync(
                failures_in, path, self._busy_s, abandon_on_cancel=True
            )
        except (sqlite3.Error, OSError) as error:
            raise translate(error, path) from error
        return bearing_on(gap, failures, limit)

    async def remembered(self, dispatch_ids: Sequence[str]) -> Mapping[str, Remembered]:
        """Return how dispatches ended, of those that there are reflections of.

        `Unavailable` when the database cannot be read now. Safe to cancel.
        """
        path = self._memory.path
        try:
            return await anyio.to_thread.run_sync(
                remembered_in, path, tuple(dispatch_ids), self._busy_s, abandon_on_cancel=True
            )
        except (sqlite3.Error, OSError) as error:
            raise translate(error, path) from error

    async def experience(self, today: date) -> Experience:
        """Return what routing outcomes of the last year teach of candidates, as of `today`.

        `Unavailable` when the database cannot be read now. Safe to cancel.
        """
        return await journal_outcomes.read(self._state.path, today, self._busy_s)

    async def close(self) -> None:
        """Finish what was asked for and close both files; safe to call twice."""
        # In this order: the first thread hands on to the second.
        await self._memory.thread.close()
        await self._state.thread.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _storable(values: Iterable[Value]) -> list[Value]:
    """Return values as SQLite can hold them, numbers cut to 64 bits: some are strangers' words."""
    return [
        value
        if value is None or (type(value) is str and value.isascii())
        else _made_storable(value)
        for value in values
    ]


def _made_storable(value: Value) -> Value:
    if isinstance(value, str):
        # A member of an enumeration would be asked each time how it wants to be stored.
        return storable(str(value))
    return max(-_LARGEST, min(value, _LARGEST)) if isinstance(value, int) else value


def _firsts(
    connection: sqlite3.Connection, reflections: Iterable[Reflection]
) -> Iterable[Reflection]:
    """Return those whose rows are not written yet, and take note that they are."""
    told: dict[str, Reflection] = {}
    for reflection in reflections:
        told.setdefault(reflection.dispatch, reflection)
    for (written,) in connection.execute(
        f"SELECT dispatch_id FROM {DELIVERED}"  # noqa: S608 - a name of ours
        " WHERE dispatch_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(told)),),
    ).fetchall():
        del told[written]
    noted = f"INSERT INTO {DELIVERED} VALUES (?)"  # noqa: S608 - as above
    connection.executemany(noted, [(one,) for one in told])
    return told.values()


def _insertion(connection: sqlite3.Connection, table: str) -> str:
    """Return the statement that adds a row of ours, as this very table can take it.

    Where it demands a value and we have none, the row gets the table's default or an empty one:
    a row that lacks something is better than a row that never comes.
    """
    told = dict.fromkeys(_GIVEN[table], "?")
    if "created_at" in _TABLES[table]:
        told["created_at"] = "datetime('now')"
    for _, name, kind, is_demanded, default, key in columns_of(connection, table):
        empty = "0" if _NUMBER.search(kind) else "''"
        if not is_demanded or key:
            continue
        if told.get(name.lower()) == "?":
            told[name.lower()] = f"coalesce(?, {default or empty})"
        elif default is None:
            told.setdefault(name.lower(), empty)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in told)
    values = ", ".join(told.values())
    return f"INSERT INTO {table} ({names}) VALUES ({values})"  # noqa: S608 - names and defaults
