"""The ledger: every dispatch and its state, in SQLite, durable before a method returns.

It also holds what outlasts a restart beside them: the outbox, parked and shipped gaps, the
operator's pause and requests, the fuse.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from chump_orchestrator.adapters.ledger_chronicle import Chronicled
from chump_orchestrator.adapters.ledger_corrections import LateRows
from chump_orchestrator.adapters.ledger_marks import MarkedGaps
from chump_orchestrator.adapters.ledger_rows import (
    FUSE,
    PAUSE,
    REFLECTION,
    ask,
    columns_of,
    instant,
    park,
    record_of,
    settled_columns,
)
from chump_orchestrator.adapters.ledger_schema import for_reading, for_writing
from chump_orchestrator.adapters.sqlite import (
    Result,
    SqliteThread,
    Work,
    put_aside,
    schema_version,
    storable,
)
from chump_orchestrator.core.brakes import Fuse, History
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import DispatchState, Pause, Record, Settlement
from chump_orchestrator.core.reflection import Reflection

_RECORDS = {
    (False, False): "SELECT * FROM dispatches ORDER BY seq",
    (True, False): "SELECT * FROM dispatches WHERE active ORDER BY seq",
    (False, True): "SELECT * FROM dispatches WHERE tidied = 0 AND NOT active ORDER BY seq",
    (True, True): "SELECT * FROM dispatches WHERE active OR tidied = 0 ORDER BY seq",
}
"""Queries by whether active ones, and whether ended ones not yet tidied, are asked for."""

_HISTORY = """
SELECT count(*) FILTER (WHERE failed),
       count(*) FILTER (WHERE outcome = 'race_abandoned'),
       count(*) FILTER (WHERE launched_at IS NOT NULL AND NOT accepted_since
                        AND ifnull(outcome, '') NOT IN ('spawn_failed', 'cancelled')),
       total(coalesce(unaccepted_usd, iif(accepted_since, 0, cost_usd))) FILTER (WHERE NOT active)
FROM dispatches WHERE gap = ? AND freed_at IS NULL
"""
"""Failures, refusals, sessions and dollars of a gap, as `core.brakes.History` counts them."""

_ACCEPT = """
UPDATE dispatches SET accepted_since = 1, unaccepted_usd = iif(id = ?, unaccepted_usd, 0)
WHERE gap = ?
"""


class SqliteLedger(MarkedGaps, LateRows, Chronicled):
    """Keeps the promises of `core.ports.Ledger` in one file, with one writer and one reader.

    Made by `open`; an async context manager that closes itself. Writes are not interrupted by
    cancellation: they end within the busy time-out, and the caller knows what became of them.
    Every method raises `Unavailable` when the file cannot be used now, and `Corrupt`, which is
    one, when it never can be again.
    """

    def __init__(
        self, path: Path, clock: Clock, writer: SqliteThread | None, reader: SqliteThread
    ) -> None:
        self._path = path
        self._clock = clock
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, readonly: bool = False) -> Self:
        """Open the ledger, made or migrated where needed; its caller holds STATE/daemon.lock.

        With `readonly` nothing is made or changed, no lock is needed, a missing file reads as an
        empty ledger, and writing is `Refused`. Raises `ConfigError` when the file is of a newer
        version, `Corrupt` when it is damaged, `Unavailable` when it cannot be opened now.
        """
        writer = None if readonly else SqliteThread(path, lambda: for_writing(path))
        reader = SqliteThread(path, lambda: for_reading(path, readonly=readonly), writes=False)
        ledger = cls(path, clock, writer, reader)
        try:
            if writer is not None:
                await writer.run(schema_version)
            await reader.run(schema_version)
        except BaseException:
            await ledger.close()
            raise
        return ledger

    @staticmethod
    async def put_aside(path: Path, *, clock: Clock) -> Path:
        """Rename a damaged ledger and the files that belong to it; return its new name."""
        import anyio.to_thread  # noqa: PLC0415 - whoever only looks has no loop

        stamp = f"{clock.now().astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
        return await anyio.to_thread.run_sync(put_aside, path, stamp)

    async def close(self) -> None:
        """Finish what was asked for and close the file; safe to call twice."""
        await self._reader.close()
        if self._writer is not None:
            await self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _is_writer(self) -> bool:
        return self._writer is not None

    async def _write(self, work: Work[Result], *, changes_marks: bool = True) -> Result:
        if self._writer is None:
            msg = f"{self._path} is open for reading only"
            raise Refused(msg)
        try:
            return await self._writer.run(work, shield=True)
        finally:
            if changes_marks:
                self._forget_marks()

    async def _run(self, statement: str, *values: str | int | None) -> None:
        """Carry out one writing statement, none that is about parked, shipped or wanted gaps."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._write(work, changes_marks=False)

    async def _look(self, work: Work[Result]) -> Result:
        return await self._reader.run(work)

    async def _rows(self, query: str, *values: str | int | None) -> list[sqlite3.Row]:
        return await self._look(lambda reader: reader.execute(query, values).fetchall())

    async def add(self, dispatch: Dispatch) -> None:
        record = Record(dispatch, DispatchState.PLANNED)

        def work(connection: sqlite3.Connection) -> None:
            rival = connection.execute(
                "SELECT id FROM dispatches WHERE id = ? OR gap = ? AND active",
                (dispatch.id, dispatch.gap.id),
            ).fetchone()
            if rival is not None and rival["id"] == dispatch.id:
                msg = f"dispatch {dispatch.id} is recorded already"
                raise Refused(msg)
            if rival is not None:
                msg = f"{dispatch.gap.id} has an active dispatch already, {rival['id']}"
                raise Refused(msg)
            columns = columns_of(record)
            names, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
            connection.execute(f"INSERT INTO dispatches ({names}) VALUES ({marks})", columns)  # noqa: S608 - names of columns only
            if dispatch.resumed is not None:
                fulfilled = "DELETE FROM requested WHERE gap = ? AND resume IS NOT NULL"
                connection.execute(fulfilled, (dispatch.gap.id,))

        await self._write(work, changes_marks=dispatch.resumed is not None)

    async def update(self, dispatch_id: str, record: Record) -> None:
        """Store the changed state; `Refused` when the dispatch is not active, or would not be."""
        dispatch = record.dispatch
        if not record.state.is_active or record.outcome is not None or dispatch.id != dispatch_id:
            msg = f"dispatch {dispatch_id}: only settle and abort end a dispatch"
            if dispatch.id != dispatch_id:
                msg = f"dispatch {dispatch_id}: the record is that of {dispatch.id}"
            raise Refused(msg)
        columns = columns_of(record)
        changes = ", ".join(f"{name} = :{name}" for name in columns if name not in ("id", "gap"))

        def work(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                f"UPDATE dispatches SET {changes} WHERE id = :id AND active",  # noqa: S608 - as above
                columns,
            )
            if changed.rowcount == 0:
                raise _not_active(connection, dispatch_id)

        await self._write(work, changes_marks=False)

    async def settle(self, dispatch_id: str, settlement: Settlement) -> None:
        """Store the outcome and all its consequences in one transaction; `Refused` twice.

        Without a reflection there is nothing to deliver, and the dispatch is done at once.
        """
        outcome, reflection = settlement.outcome, settlement.reflection
        end = settled_columns(settlement)

        def work(connection: sqlite3.Connection) -> None:
            gap = _end(connection, dispatch_id, end)
            if reflection is not None:
                connection.execute(
                    "INSERT INTO outbox (dispatch, reflection) VALUES (?, ?)",
                    (dispatch_id, REFLECTION.dumps(reflection)),
                )
            if settlement.progress:
                connection.execute(_ACCEPT, (dispatch_id, gap))
            connection.execute("DELETE FROM parked WHERE gap = ?", (gap,))
            if settlement.parked is not None:
                park(connection, settlement.parked)
            if settlement.resume:
                ask(connection, gap, instant(settlement.ended_at), settlement.resume)
            if outcome.kind is OutcomeKind.SHIPPED:
                connection.execute(
                    "INSERT OR REPLACE INTO shipped (gap, day) VALUES (?, ?)",
                    (gap, settlement.ended_at.astimezone(UTC).date().isoformat()),
                )

        await self._write(work)

    async def tidied(self, dispatch_id: str) -> None:
        await self._run("UPDATE dispatches SET tidied = 1 WHERE id = ?", dispatch_id)

    async def abort(self, dispatch_id: str, reason: str, at: datetime) -> None:
        """Store that no agent was ever started; `Refused` when the dispatch is not active."""
        state = str(DispatchState.ABORTED)
        end = {"state": state, "reason": storable(reason), "ended_at": instant(at)}

        def work(connection: sqlite3.Connection) -> None:
            _end(connection, dispatch_id, end)

        await self._write(work, changes_marks=False)

    async def records(self, *, active: bool = False, untidy: bool = False) -> tuple[Record, ...]:
        """Return dispatches, oldest first; with both flags, those that fit either of them."""
        rows = await self._rows(_RECORDS[active, untidy])
        return tuple(record_of(row) for row in rows)

    async def latest(self, limit: int, gap: str = "") -> tuple[Record, ...]:
        if gap:
            query = "SELECT * FROM dispatches WHERE gap = ? ORDER BY seq DESC LIMIT ?"
            rows = await self._rows(query, gap, limit)
        else:
            rows = await self._rows("SELECT * FROM dispatches ORDER BY seq DESC LIMIT ?", limit)
        return tuple(record_of(row) for row in rows)

    async def history(self, gap: str) -> History:
        """Return the counts of a gap's attempts.

        A dispatch counts as a session once its agent was launched, as a failure or refusal once
        it is settled; one that is active while its gap is freed counts afterwards.
        """
        (row,) = await self._rows(_HISTORY, gap)
        return History(*row)

    async def attempts(self, gap: str) -> int:
        (row,) = await self._rows("SELECT count(*) FROM dispatches WHERE gap = ?", gap)
        return int(row[0])

    async def outbox(self) -> tuple[Reflection, ...]:
        rows = await self._rows("SELECT reflection FROM outbox ORDER BY seq")
        return tuple(REFLECTION.loads(row["reflection"]) for row in rows)

    async def delivered(self, dispatch_id: str) -> None:
        """Take a reflection out of the outbox; quiet when it is not there."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM outbox WHERE dispatch = ?", (dispatch_id,))
            connection.execute(
                "UPDATE dispatches SET state = ? WHERE id = ? AND state = ?",
                (DispatchState.DONE, dispatch_id, DispatchState.SETTLED),
            )

        await self._write(work, changes_marks=False)

    async def pause(self) -> Pause | None:
        text = await self._brake("pause")
        return None if text is None else PAUSE.loads(text)

    async def set_pause(self, pause: Pause | None) -> None:
        if pause is None:
            await self._run("DELETE FROM brakes WHERE name = 'pause'")
        else:
            await self._set_brake("pause", PAUSE.dumps(pause))

    async def fuse(self) -> Fuse:
        text = await self._brake("fuse")
        return Fuse() if text is None else FUSE.loads(text)

    async def set_fuse(self, fuse: Fuse) -> None:
        await self._set_brake("fuse", FUSE.dumps(fuse))

    async def _brake(self, name: str) -> str | None:
        rows = await self._rows("SELECT value FROM brakes WHERE name = ?", name)
        return rows[0]["value"] if rows else None

    async def _set_brake(self, name: str, value: str) -> None:
        await self._run("INSERT OR REPLACE INTO brakes (name, value) VALUES (?, ?)", name, value)

    async def meta(self, key: str) -> str | None:
        rows = await self._rows("SELECT value FROM meta WHERE key = ?", key)
        return rows[0]["value"] if rows else None

    async def set_meta(self, key: str, value: str) -> None:
        await self._run("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", key, value)


def _end(
    connection: sqlite3.Connection, dispatch_id: str, columns: Mapping[str, str | float | None]
) -> str:
    """Fill the columns of a dispatch that ends; return its gap, or raise when it had ended."""
    # What is not told at the end, a cost for one, stays as it was last told.
    changes = ", ".join(f"{name} = coalesce(:{name}, {name})" for name in columns)
    row = connection.execute(
        f"UPDATE dispatches SET {changes} WHERE id = :dispatch_id AND active RETURNING gap",  # noqa: S608 - as above
        {**columns, "dispatch_id": dispatch_id},
    ).fetchone()
    if row is None:
        raise _not_active(connection, dispatch_id)
    return str(row["gap"])


def _not_active(connection: sqlite3.Connection, dispatch_id: str) -> Refused:
    row = connection.execute(
        "SELECT state, gap FROM dispatches WHERE id = ?", (dispatch_id,)
    ).fetchone()
    if row is None:
        return Refused(f"the ledger has no dispatch {dispatch_id}")
    return Refused(f"dispatch {dispatch_id} of {row['gap']} is {row['state']} and cannot change")
