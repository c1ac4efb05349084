"""What is read back from the journal: lessons for the next brief, and how dispatches ended.

Rows may be anybody's, so they are read as strictly as text of strangers.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from chump_orchestrator.adapters.sqlite import connect
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort, Gap, domain_of, is_gap_id
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import Remembered
from chump_orchestrator.core.reflection import PATTERN

REFLECTIONS = "chump_reflections"
TARGETS = "chump_improvement_targets"

LOOKED_THROUGH = 500
"""So many of the latest failures are looked through for lessons."""


def columns_of(connection: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """Return what SQLite tells of the columns of a table; nothing when it is not there."""
    return connection.execute(f"PRAGMA table_info({table})").fetchall()


def names_in(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of the columns of a table, in lower case."""
    return {column[1].lower() for column in columns_of(connection, table)}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a row tells of a dispatch that failed, read as strictly as text of strangers."""

    gap: str
    outcome: OutcomeKind
    duration_s: int
    cause: Cause | None
    effort: str

    @property
    def in_words(self) -> str:
        because = f" ({self.cause})" if self.cause is not None else ""
        return f"{self.gap} ended {self.outcome}{because} after {self.duration_s} s"


_NEEDED = {"task_id", "observed_outcome", "hypothesis", "error_pattern", "outcome_class"} | {
    "reflection_id",
    "directive",
}
_LATEST_FAILURES = """
SELECT task_id, observed_outcome, hypothesis, directive
FROM (SELECT * FROM chump_reflections
      WHERE error_pattern = ? AND outcome_class = 'failure' ORDER BY id DESC LIMIT ?) AS latest
LEFT JOIN chump_improvement_targets AS target ON target.reflection_id = latest.id
ORDER BY latest.id DESC
"""
_OBSERVED = re.compile(r"outcome=(\w+) duration_s=(\d{1,9})\b", re.ASCII)
_CAUSE = re.compile(r"\bcause:([\w-]+)", re.ASCII)
_EFFORT = re.compile(r"\beffort=(\w+)", re.ASCII)


def failures_in(path: Path, busy_s: float) -> list[Failure]:
    """Return the latest failures of dispatches, latest first. Blocks."""
    if not path.exists():
        return []
    with closing(connect(path, readonly=True, busy_s=busy_s)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        present = names_in(connection, REFLECTIONS) | names_in(connection, TARGETS)
        if not present.issuperset(_NEEDED):
            return []
        rows = connection.execute(
            _LATEST_FAILURES,
            (PATTERN, LOOKED_THROUGH),
        ).fetchall()
    return [failure for row in rows if (failure := _failure(*map(str, row))) is not None]


def _failure(task: str, observed: str, hypothesis: str, directive: str) -> Failure | None:
    seen, cause, effort = (
        _OBSERVED.search(observed),
        _CAUSE.search(hypothesis),
        _EFFORT.search(directive),
    )
    if seen is None or seen[1] not in tuple(OutcomeKind) or not is_gap_id(task):
        return None
    return Failure(
        gap=task,
        outcome=OutcomeKind(seen[1]),
        duration_s=int(seen[2]),
        cause=Cause(cause[1]) if cause and cause[1] in tuple(Cause) else None,
        effort=effort[1] if effort else Effort.UNKNOWN,
    )


_OF_DISPATCHES = """
SELECT episode_id, observed_outcome, hypothesis FROM chump_reflections
WHERE error_pattern = ? AND episode_id IN (SELECT value FROM json_each(?)) ORDER BY id
"""
_PULL = re.compile(r"\bpr=(\d{1,18})\b", re.ASCII)


def remembered_in(path: Path, ids: Sequence[str], busy_s: float) -> dict[str, Remembered]:
    """Return how dispatches ended, by their ids. Blocks."""
    if not path.exists():
        return {}
    with closing(connect(path, readonly=True, busy_s=busy_s)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        if not names_in(connection, REFLECTIONS).issuperset(
            {"episode_id", "observed_outcome", "hypothesis", "error_pattern"}
        ):
            return {}
        rows = connection.execute(_OF_DISPATCHES, (PATTERN, json.dumps(ids))).fetchall()
    told = {row[0]: _remembered(str(row[1]), str(row[2])) for row in rows}
    return {dispatch: each for dispatch, each in told.items() if each is not None}


def _remembered(observed: str, hypothesis: str) -> Remembered | None:
    seen, cause, pull = (
        _OBSERVED.search(observed),
        _CAUSE.search(hypothesis),
        _PULL.search(observed),
    )
    if seen is None or seen[1] not in tuple(OutcomeKind):
        return None
    known = Cause(cause[1]) if cause and cause[1] in tuple(Cause) else None
    return Remembered(
        Outcome(OutcomeKind(seen[1]), "as its reflection tells", known),
        timedelta(seconds=int(seen[2])),
        int(pull[1]) if pull else None,
    )


def bearing_on(gap: Gap, failures: Sequence[Failure], limit: int) -> tuple[str, ...]:
    """Return at most `limit` sentences on those of `failures` that bear on `gap`, nearest first."""
    causes = {failure.cause for failure in failures if failure.gap == gap.id}
    telling = causes - {None, Cause.UNKNOWN}
    by_rank: tuple[list[Failure], ...] = ([], [], [], [])
    for failure in failures:
        if failure.gap == gap.id:
            by_rank[0].append(failure)
        elif domain_of(failure.gap) == gap.domain:
            by_rank[1].append(failure)
        elif failure.cause in telling:
            by_rank[2].append(failure)
        elif failure.effort == gap.effort != Effort.UNKNOWN:
            by_rank[3].append(failure)
    told: dict[tuple[str, OutcomeKind, Cause | None], str] = {}
    for failure in chain(*by_rank):
        told.setdefault((failure.gap, failure.outcome, failure.cause), failure.in_words)
    return tuple(told.values())[: max(limit, 0)]
