"""Rows of the journal put right after a later merge: only what follows from the outcome changes."""

from __future__ import annotations

import sqlite3

from chump_orchestrator.adapters.sqlite import storable
from chump_orchestrator.core.reflection import (
    PATTERN,
    Reflection,
    notes,
    reflection_row,
    routing_row,
    target_row,
)

OURS = "dispatched gap=%"
"""How a directive of ours begins; others may have added theirs to the same reflection."""


def rewrite_reflection(connection: sqlite3.Connection, reflection: Reflection) -> None:
    """Rewrite outcome, class, cause and directive; the tail below the first line of notes stays."""
    row, target = reflection_row(reflection), target_row(reflection)
    # Somebody may have put bytes there that are no text.
    found = connection.execute(
        "SELECT id, CAST(hypothesis AS BLOB) FROM chump_reflections"
        " WHERE error_pattern = ? AND episode_id = ?",
        (PATTERN, reflection.dispatch),
    ).fetchall()
    for parent, raw in found:
        tail = (raw or b"").decode("utf-8", "replace").partition("\n")[2]
        said = "\n".join(filter(None, (notes(reflection), tail)))
        connection.execute(
            "UPDATE chump_reflections SET observed_outcome = ?, outcome_class = ?, hypothesis = ?"
            " WHERE id = ?",
            (row.observed_outcome, row.outcome_class, storable(said), parent),
        )
        connection.execute(
            "UPDATE chump_improvement_targets SET directive = ?, priority = ?"
            " WHERE reflection_id = ? AND directive LIKE ?",
            (storable(target.directive), target.priority, parent, OURS),
        )


def rewrite_score(connection: sqlite3.Connection, reflection: Reflection) -> None:
    """Rewrite outcome and request of the one row that this attempt has.

    The table knows no dispatches. When an attempt ended, of which gap, and how long it took, no
    two have in common.
    """
    row = routing_row(reflection)
    connection.execute(
        "UPDATE routing_outcomes SET outcome = ?, pr_number = ?, cause = ? WHERE recorded_at = ?"
        " AND gap_id = ? AND backend = ? AND CAST(duration_s AS INTEGER) = ?",
        (
            row.outcome,
            row.pr_number,
            row.cause,
            row.recorded_at,
            row.gap_id,
            storable(row.backend),
            row.duration_s,
        ),
    )
