"""All that a ledger has of dispatches, in brief: what a daemon keeps in mind of them.

A history grows for years, and none of it is ever held whole: a row at a time becomes what is asked
for, in the thread that reads it.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from chump_orchestrator.adapters.ledger_rows import ROUTE
from chump_orchestrator.adapters.sqlite import Corrupt, Result, Work
from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Route

_CHRONICLE = """
SELECT id, gap, json_extract(gap_snapshot, '$.effort') AS effort, route, active,
       launched_at IS NOT NULL AS had_agent, coalesce(exited_at, ended_at) AS ended_at,
       outcome, cause, cost_usd, tokens, failed, freed_at
FROM dispatches ORDER BY seq
"""
"""Every dispatch in brief, which is read once, when a daemon starts."""

_ENDS = """
SELECT id, iif(active, NULL, ended_at) AS ended_at FROM dispatches
WHERE id IN (SELECT value FROM json_each(?))
"""

_ROUTES = 256
"""So many different routes are told apart; most attempts share theirs with thousands."""


class Chronicled(ABC):
    """Reads what is known of many dispatches at once; a part of the ledger."""

    @abstractmethod
    async def _look(self, work: Work[Result]) -> Result:
        """Carry out `work`, which only reads, on one snapshot."""

    async def chronicle(self) -> tuple[Attempt, ...]:
        def work(connection: sqlite3.Connection) -> tuple[Attempt, ...]:
            route_of = lru_cache(_ROUTES)(ROUTE.loads)
            return tuple(_attempt_of(row, route_of) for row in connection.execute(_CHRONICLE))

        return await self._look(work)

    async def ends(self, dispatch_ids: Sequence[str]) -> Mapping[str, datetime | None]:
        asked = json.dumps(list(dispatch_ids))

        def work(connection: sqlite3.Connection) -> dict[str, datetime | None]:
            return {row["id"]: _end_of(row) for row in connection.execute(_ENDS, (asked,))}

        return await self._look(work)


def _end_of(row: sqlite3.Row) -> datetime | None:
    try:
        return None if row["ended_at"] is None else datetime.fromisoformat(row["ended_at"])
    except (TypeError, ValueError) as error:
        raise _unreadable(row, error) from error


def _attempt_of(row: sqlite3.Row, route_of: Callable[[str], Route]) -> Attempt:
    """Return the attempt that a row tells of; `Corrupt` when it tells of none."""
    try:
        outcome = OutcomeKind(row["outcome"]) if row["outcome"] is not None else None
        is_failure = outcome is not None and outcome.outcome_class == "failure"
        is_over = not row["active"] and row["ended_at"] is not None
        return Attempt(
            dispatch=row["id"],
            gap=row["gap"],
            effort=Effort(row["effort"] or Effort.UNKNOWN),
            route=route_of(row["route"]),
            had_agent=bool(row["had_agent"]),
            ended_at=datetime.fromisoformat(row["ended_at"]) if is_over else None,
            kind=outcome,
            cause=Cause(row["cause"]) if row["cause"] is not None else None,
            cost_usd=row["cost_usd"],
            tokens=row["tokens"],
            is_excused=is_failure and not row["failed"],
            is_freed=row["freed_at"] is not None,
        )
    except (TypeError, ValueError) as error:
        raise _unreadable(row, error) from error


def _unreadable(row: sqlite3.Row, error: Exception) -> Corrupt:
    return Corrupt(f"the ledger's row of dispatch {row['id']!r} cannot be read: {error}")
