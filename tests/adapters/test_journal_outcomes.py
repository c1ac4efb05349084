"""What is read of routing outcomes, whoever wrote them (behaviour G4, R5)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.adapters.journal_outcomes import read
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.learning import Belief, Experience
from chump_orchestrator.core.outcome import OutcomeKind
from tests.adapters.troubles import Locker
from tests.builders import NOW, a_reflection

TODAY = NOW.date()
CLAUDE = ("claude", "", "")
FIRST_IMPLEMENTATIONS = """
CREATE TABLE routing_outcomes (id INTEGER PRIMARY KEY AUTOINCREMENT, recorded_at TEXT NOT NULL,
task_class TEXT, priority TEXT, effort TEXT, backend TEXT NOT NULL, model TEXT, provider_pfx TEXT,
gap_id TEXT NOT NULL, outcome TEXT NOT NULL, pr_number INTEGER, duration_s INTEGER, cost_usd REAL)
"""


def a_table(path: Path, *rows: tuple[object, ...]) -> None:
    """Make the first implementation's table, each row with its first nine columns and outcome."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(FIRST_IMPLEMENTATIONS)
        connection.executemany(
            "INSERT INTO routing_outcomes (recorded_at, task_class, effort, backend, outcome,"
            " cost_usd, gap_id) VALUES (?, ?, ?, ?, ?, ?, 'A-1')",
            rows,
        )


async def test_what_the_journal_wrote_is_what_is_learnt(tmp_path: Path) -> None:
    routing = tmp_path / "state.db"
    async with SqliteJournal(reflections=tmp_path / "memory.db", routing=routing) as journal:
        for number in range(3):
            await journal.record(a_reflection(f"a-{number}", cost_usd=2.0, odds=0.75))
        await journal.record(
            a_reflection("b", outcome=OutcomeKind.KILLED, cause=Cause.USAGE_LIMIT, odds=0.25)
        )
        await journal.record(
            a_reflection("c", outcome=OutcomeKind.STALLED, effort=Effort.L, task_class="research")
        )
        learnt = await journal.experience(TODAY)

    assert learnt.beliefs == {
        ("", "s"): {CLAUDE: Belief(3.0, 0.0, 2.0)},
        ("research", "l"): {CLAUDE: Belief(0.0, 1.0)},
    }
    with closing(sqlite3.connect(routing)) as connection:
        kept = connection.execute("SELECT cause, propensity FROM routing_outcomes").fetchall()
    assert kept == [(None, 0.75)] * 3 + [("usage-limit", 0.25), (None, None)]


async def test_a_late_merge_turns_a_failure_into_a_success(tmp_path: Path) -> None:
    """Behaviour P5."""
    failed = a_reflection(outcome=OutcomeKind.STALLED, cause=Cause.NO_PULL, pull_number=None)
    journal = SqliteJournal(reflections=tmp_path / "memory.db", routing=tmp_path / "state.db")
    async with journal:
        await journal.record(failed)
        before = await journal.experience(TODAY)
        await journal.correct(a_reflection())
        after = await journal.experience(TODAY)

    assert before.of(("", "s"), CLAUDE) == Belief(0.0, 1.0)
    assert after.of(("", "s"), CLAUDE) == Belief(1.0, 0.0)


async def test_rows_of_the_first_implementation_count_but_its_costs_do_not(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_table(
        path,
        ("2026-04-27T12:00:00Z", None, "S", "claude", "shipped", 0.5),
        ("2026-04-27T12:00:00Z", "", "s", "chump_local", "killed", 0.5),
    )

    learnt = await read(path, TODAY)

    assert learnt.beliefs == {
        ("", "s"): {CLAUDE: Belief(1.0, 0.0), ("chump-local", "", ""): Belief(0.0, 1.0)}
    }


async def test_rows_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_table(
        path,
        ("2026-04-27T12:00:00Z", None, "s", "claude", "shipped", None),
        ("2026-04-27T12:00:00Z", None, "s", "claude", "splendid", None),
        ("2026-04-27T12:00:00Z", None, "huge", "claude", "shipped", None),
        ("yesterday", None, "s", "claude", "shipped", None),
        ("9999-99-99", None, "s", "claude", "shipped", None),
        (b"\xff\xfe", None, b"\xff", b"\xff", "shipped", "much"),
    )

    learnt = await read(path, TODAY)

    assert learnt.beliefs == {("", "s"): {CLAUDE: Belief(1.0, 0.0)}}


async def test_there_is_nothing_to_learn_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"

    assert await read(path, TODAY) == Experience()
    assert not path.exists()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE routing_outcomes (id INTEGER)")
    assert await read(path, TODAY) == Experience()


async def test_a_database_that_cannot_be_read_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"no database at all, and long enough to be sure of that" * 40)

    with pytest.raises(Unavailable, match=str(path)):
        await read(path, TODAY)


async def test_a_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_table(path, ("2026-04-27T12:00:00Z", None, "s", "claude", "shipped", None))

    locker = Locker(path)
    try:
        with pytest.raises(Unavailable, match="another program holds it locked"):
            await read(path, TODAY, busy_s=0.05)
    finally:
        locker.let_go()
