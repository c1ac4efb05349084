"""The journal's rows after a later merge: put right in both files, those of others untouched."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import OutcomeKind
from tests.builders import a_reflection

RED = a_reflection(
    "infra-1-a",
    outcome=OutcomeKind.CI_FAILED,
    cause=Cause.UNKNOWN,
    tail=("ERROR: first", "panic: second"),
    siblings=3,
)
MERGED = replace(RED, outcome=OutcomeKind.SHIPPED, cause=None, pull_number=413, tail=())


class Files:
    def __init__(self, folder: Path) -> None:
        self.memory, self.state = folder / "memory.db", folder / "state.db"

    def journal(self) -> SqliteJournal:
        return SqliteJournal(reflections=self.memory, routing=self.state, busy_s=0.2)

    def rows(self, path: Path, query: str) -> list[Any]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(query).fetchall()

    def told(self) -> list[Any]:
        query = "SELECT observed_outcome, outcome_class, hypothesis FROM chump_reflections"
        return self.rows(self.memory, query)

    def scores(self) -> list[Any]:
        query = "SELECT gap_id, outcome, pr_number FROM routing_outcomes ORDER BY id"
        return self.rows(self.state, query)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


RIGHT = (
    "outcome=shipped duration_s=1800 pr=413",
    "success",
    "backend=claude\nERROR: first\npanic: second",
)


@pytest.mark.parametrize("times", [1, 2])
async def test_all_rows_are_put_right_however_often_it_is_told(files: Files, times: int) -> None:
    """Behaviour P5, R2, R3, R5."""
    async with files.journal() as journal:
        await journal.record(RED)
        for _ in range(times):
            await journal.correct(MERGED)

    directive, priority = files.rows(
        files.memory, "SELECT directive, priority FROM chump_improvement_targets"
    )[0]
    assert files.told() == [RIGHT]
    assert "outcome=shipped" in directive
    assert "pr_number=413 notes=backend=claude dispatch=infra-1-a" in directive
    assert "parallel_siblings=3" in directive
    assert priority == "low"
    assert files.scores() == [("INFRA-1", "shipped", 413)]


async def test_other_attempts_and_other_peoples_rows_stay_as_they_are(files: Files) -> None:
    before = replace(RED, dispatch="infra-1-0", ended_at=RED.ended_at - timedelta(hours=1))
    after = replace(RED, dispatch="infra-1-b", duration=timedelta(seconds=1801))
    other = replace(RED, dispatch="cog-1-a", gap="COG-1")
    async with files.journal() as journal:
        for one in (before, RED, after, other):
            await journal.record(one)
        files.rows(
            files.memory,
            "INSERT INTO chump_reflections (episode_id, task_id, error_pattern, observed_outcome)"
            " VALUES ('infra-1-a', 'INFRA-1', 'another_tool', 'as I saw it')",
        )
        files.rows(
            files.memory,
            "INSERT INTO chump_improvement_targets (reflection_id, directive, actioned_as)"
            " VALUES (2, 'try harder', 'done')",
        )
        await journal.correct(MERGED)

    told = [outcome for outcome, *_ in files.told()]
    red = "outcome=ci_failed duration_s=1800 pr=412"
    assert told == [red, RIGHT[0], red.replace("1800", "1801"), red, "as I saw it"]
    assert files.scores() == [
        ("INFRA-1", "ci_failed", 412),
        ("INFRA-1", "shipped", 413),
        ("INFRA-1", "ci_failed", 412),
        ("COG-1", "ci_failed", 412),
    ]
    query = "SELECT directive, actioned_as FROM chump_improvement_targets WHERE actioned_as != ''"
    assert files.rows(files.memory, query) == [("try harder", "done")]


async def test_what_was_never_recorded_is_not_made_up(files: Files) -> None:
    async with files.journal() as journal:
        await journal.correct(MERGED)

    assert (files.told(), files.scores()) == ([], [])


async def test_notes_that_are_no_text_do_not_stand_in_the_way(files: Files) -> None:
    async with files.journal() as journal:
        await journal.record(RED)
        files.rows(files.memory, "UPDATE chump_reflections SET hypothesis = x'ff0a6f6c64'")
        await journal.correct(MERGED)

    assert files.told()[0][2] == "backend=claude\nold"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("which", ["memory", "state"])
async def test_a_database_that_is_locked_delays_it_and_the_next_try_does_the_rest(
    files: Files, which: str
) -> None:
    """Behaviour R6."""
    async with files.journal() as journal:
        await journal.record(RED)
        with locked(getattr(files, which)), pytest.raises(Unavailable, match="locked"):
            await journal.correct(MERGED)
        await journal.correct(MERGED)

    assert (files.told(), files.scores()) == ([RIGHT], [("INFRA-1", "shipped", 413)])


async def test_what_is_put_right_is_what_is_remembered(files: Files) -> None:
    """Of a ledger that was lost, a row is made anew from it."""
    async with files.journal() as journal:
        await journal.record(RED)
        await journal.correct(MERGED)

        found = (await journal.remembered(["infra-1-a"]))["infra-1-a"]
        assert (found.outcome.kind, found.pull_number) == (OutcomeKind.SHIPPED, 413)
