"""Rows of the ledger that a later merge puts right, and the outbox of what the journal is told."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime

from chump_orchestrator.adapters.ledger_rows import PULL, REFLECTION, instant, record_of
from chump_orchestrator.adapters.sqlite import Result, Work, storable
from chump_orchestrator.core.corrections import MOST, Correction
from chump_orchestrator.core.pull import PullRequest
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.reflection import Reflection

_CORRECTABLE = """NOT active AND corrected_at IS NULL
    AND outcome IN ('ci_failed', 'stalled', 'killed', 'cancelled') AND id NOT IN (
        SELECT json_extract(resumed, '$.dispatch') FROM dispatches
        WHERE resumed IS NOT NULL AND (active OR launched_at IS NOT NULL)
    )"""
"""One whose session another dispatch has gone on with is not: its request is that one's."""

_LATE = f"""
SELECT * FROM dispatches WHERE seq IN (
    SELECT seq FROM dispatches WHERE {_CORRECTABLE} AND ended_at >= ?
    ORDER BY seq DESC LIMIT {MOST}
) ORDER BY seq
"""  # noqa: S608 - constants

_CORRECT = f"""
UPDATE dispatches SET corrected_from = outcome, corrected_at = :at, outcome = :outcome,
    cause = NULL, reason = :reason, pull = :pull, failed = 0, progress = 1
WHERE id = :dispatch AND {_CORRECTABLE} RETURNING gap
"""  # noqa: S608 - constants


class LateRows(ABC):
    """Keeps the promises of `core.corrections.CorrectedLedger`; a part of the ledger."""

    @abstractmethod
    async def _write(self, work: Work[Result]) -> Result:
        """Carry out `work` in one transaction."""

    @abstractmethod
    async def _rows(self, query: str, *values: str | int | None) -> list[sqlite3.Row]:
        """Return what a query finds."""

    async def late(self, since: datetime) -> tuple[Record, ...]:
        rows = await self._rows(_LATE, instant(since))
        return tuple(record_of(row) for row in rows)

    async def sighted(self, dispatch_id: str, pull: PullRequest) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"UPDATE dispatches SET pull = ? WHERE id = ? AND {_CORRECTABLE}",  # noqa: S608 - a constant
                (PULL.dumps(pull), dispatch_id),
            )

        await self._write(work)

    async def correct(self, dispatch_id: str, correction: Correction) -> bool:
        reflection = correction.reflection
        values = {
            "dispatch": dispatch_id,
            "at": instant(correction.at),
            "outcome": str(correction.outcome.kind),
            "reason": storable(correction.outcome.reason),
            "pull": PULL.dumps(correction.pull),
        }

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(_CORRECT, values).fetchone()
            if row is None:
                return False
            _put_right(connection, reflection)
            connection.execute(
                "INSERT OR REPLACE INTO corrections (dispatch, reflection) VALUES (?, ?)",
                (dispatch_id, REFLECTION.dumps(reflection)),
            )
            gap = row["gap"]
            accepted = "UPDATE dispatches SET accepted_since = 1, unaccepted_usd = 0 WHERE gap = ?"
            connection.execute(accepted, (gap,))
            if correction.ships:
                connection.execute("DELETE FROM parked WHERE gap = ?", (gap,))
                # What a later attempt has shipped keeps its day, and the backlog's word on it.
                connection.execute(
                    "INSERT OR IGNORE INTO shipped (gap, day) VALUES (?, ?)",
                    (gap, correction.at.astimezone(UTC).date().isoformat()),
                )
            return True

        return await self._write(work)

    async def corrections(self) -> tuple[Reflection, ...]:
        rows = await self._rows("SELECT reflection FROM corrections ORDER BY seq")
        return tuple(REFLECTION.loads(row["reflection"]) for row in rows)

    async def correction_delivered(self, dispatch_id: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM corrections WHERE dispatch = ?", (dispatch_id,))

        await self._write(work)


def _put_right(connection: sqlite3.Connection, corrected: Reflection) -> None:
    """Let a reflection that is not delivered yet be delivered as it is now."""
    query = "SELECT reflection FROM outbox WHERE dispatch = ?"
    row = connection.execute(query, (corrected.dispatch,)).fetchone()
    if row is not None:
        told = replace(
            REFLECTION.loads(row["reflection"]),
            outcome=corrected.outcome,
            cause=corrected.cause,
            pull_number=corrected.pull_number,
        )
        connection.execute(
            "UPDATE outbox SET reflection = ? WHERE dispatch = ?",
            (REFLECTION.dumps(told), corrected.dispatch),
        )
