"""All that a ledger has of dispatches, in brief: what a daemon keeps in mind of them."""

from __future__ import annotations

import sqlite3
from datetime import datetime

from chump_orchestrator.adapters.ledger_rows import ROUTE
from chump_orchestrator.adapters.sqlite import Corrupt
from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind

CHRONICLE = """
SELECT id, gap, json_extract(gap_snapshot, '$.effort') AS effort, route, active,
       launched_at IS NOT NULL AS had_agent, coalesce(exited_at, ended_at) AS ended_at,
       outcome, cause, cost_usd, tokens, failed, freed_at
FROM dispatches ORDER BY seq
"""
"""Every dispatch in brief, which is read once, when a daemon starts."""


def attempt_of(row: sqlite3.Row) -> Attempt:
    """Return the attempt that a row of `CHRONICLE` tells of; `Corrupt` when it tells of none."""
    try:
        outcome = OutcomeKind(row["outcome"]) if row["outcome"] is not None else None
        is_failure = outcome is not None and outcome.outcome_class == "failure"
        is_over = not row["active"] and row["ended_at"] is not None
        return Attempt(
            dispatch=row["id"],
            gap=row["gap"],
            effort=Effort(row["effort"] or Effort.UNKNOWN),
            route=ROUTE.loads(row["route"]),
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
        msg = f"the ledger's row of dispatch {row['id']!r} cannot be read: {error}"
        raise Corrupt(msg) from error
