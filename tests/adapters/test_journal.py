"""The journal's databases, row by row, and what befalls files that others use (behaviour R)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import pytest

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.adapters.sqlite import Corrupt
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.reflection import Reflection
from tests.adapters.troubles import Locker, a_full_disk, read_only
from tests.builders import NOW, a_gap

GOLDEN = Path(__file__).parent.parent / "golden"

KILLED = Reflection(
    dispatch="infra-12-260427120000-abcdef",
    gap="INFRA-12",
    priority=Priority.P1,
    effort=Effort.S,
    task_class="research",
    outcome=OutcomeKind.KILLED,
    cause=Cause.DEADLINE,
    duration=timedelta(seconds=2400.9),
    pull_number=None,
    backend="claude",
    model="opus",
    provider_pfx="",
    siblings=3,
    tail=("ERROR: first", "panic: second"),
    cost_usd=None,
    ended_at=NOW,
)


@dataclass(frozen=True)
class Files:
    reflections: Path
    routing: Path

    def journal(self, busy_s: float = 5.0) -> SqliteJournal:
        return SqliteJournal(reflections=self.reflections, routing=self.routing, busy_s=busy_s)

    def counts(self) -> tuple[int, int, int]:
        """Rows of reflections, of improvement targets, of routing outcomes."""
        return (
            len(rows(self.reflections, "SELECT * FROM chump_reflections")),
            len(rows(self.reflections, "SELECT * FROM chump_improvement_targets")),
            len(rows(self.routing, "SELECT * FROM routing_outcomes")),
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "sessions" / "chump_memory.db", tmp_path / ".chump" / "state.db")


@pytest.fixture
def inherited(files: Files) -> Files:
    """The files as the first implementation left them."""
    for path, script in ((files.reflections, "memory"), (files.routing, "state")):
        path.parent.mkdir()
        text = (GOLDEN / f"first_implementation_{script}.sql").read_text("utf-8")
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(text)
    return files


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def rows(path: Path, query: str) -> list[Any]:
    with opened(path) as connection:
        return connection.execute(query).fetchall()


def columns(path: Path, table: str) -> list[str]:
    return [row[1] for row in rows(path, f"PRAGMA table_info({table})")]


async def test_a_reflection_becomes_three_rows_in_two_files(files: Files) -> None:
    """Behaviour R1 to R5."""
    async with files.journal() as journal:
        await journal.record(KILLED)

    (reflection,) = rows(files.reflections, "SELECT * FROM chump_reflections")
    (target,) = rows(files.reflections, "SELECT * FROM chump_improvement_targets")
    assert reflection[:-1] == (
        1,
        "infra-12-260427120000-abcdef",
        "INFRA-12",
        "ship gap INFRA-12",
        "outcome=killed duration_s=2400 pr=none",
        "failure",
        "orchestrator_dispatch",
        "backend=claude cause:deadline\nERROR: first\npanic: second",
        None,
        None,
    )
    assert target[:-1] == (
        1,
        1,
        "dispatched gap=INFRA-12 effort=s domain=infra outcome=killed duration_s=2400"
        " parallel_siblings=3 pr_number=none notes=backend=claude cause:deadline"
        " dispatch=infra-12-260427120000-abcdef",
        "high",
        "infra",
        None,
    )
    assert rows(files.routing, "SELECT * FROM routing_outcomes") == [
        (
            1,
            "2026-04-27T12:00:00Z",
            "research",
            "P1",
            "s",
            "claude",
            "opus",
            None,
            "INFRA-12",
            "killed",
            None,
            2400,
            None,
            "deadline",
            None,
        )
    ]
    moment = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
    assert moment.fullmatch(reflection[-1])
    assert moment.fullmatch(target[-1])


async def test_the_tables_have_the_columns_that_others_read(files: Files) -> None:
    """Behaviour R1, R5: in their order, too, for whoever reads by position."""
    async with files.journal() as journal:
        await journal.record(KILLED)

    assert columns(files.reflections, "chump_reflections") == [
        "id",
        "episode_id",
        "task_id",
        "intended_goal",
        "observed_outcome",
        "outcome_class",
        "error_pattern",
        "hypothesis",
        "surprisal_at_reflect",
        "confidence_at_reflect",
        "created_at",
    ]
    assert columns(files.reflections, "chump_improvement_targets") == [
        "id",
        "reflection_id",
        "directive",
        "priority",
        "scope",
        "actioned_as",
        "created_at",
    ]
    assert columns(files.routing, "routing_outcomes") == [
        "id",
        "recorded_at",
        "task_class",
        "priority",
        "effort",
        "backend",
        "model",
        "provider_pfx",
        "gap_id",
        "outcome",
        "pr_number",
        "duration_s",
        "cost_usd",
        "cause",
        "propensity",
    ]


async def test_another_tool_may_leave_id_and_time_to_the_tables(files: Files) -> None:
    async with files.journal() as journal:
        await journal.record(KILLED)
    with opened(files.reflections) as connection:
        connection.execute("DELETE FROM chump_reflections")
        connection.execute("INSERT INTO chump_reflections (task_id) VALUES ('chat')")

    ((number, created_at),) = rows(
        files.reflections, "SELECT id, created_at FROM chump_reflections"
    )
    assert number == 2
    assert len(created_at) == 19


async def test_a_reflection_is_written_once_however_often_it_comes(files: Files) -> None:
    """Behaviour R1: also after a restart, also from two at once."""
    async with files.journal() as one, files.journal() as other:  # noqa: SIM117 - as they nest
        async with anyio.create_task_group() as group:
            for journal in (one, other) * 5:
                group.start_soon(journal.record, KILLED)
    async with files.journal() as journal:
        await journal.record(replace(KILLED, outcome=OutcomeKind.SHIPPED))

    assert files.counts() == (1, 1, 1)


async def test_a_replay_writes_only_what_is_missing(files: Files) -> None:
    """Behaviour R6: it died, or was hindered, between the two files."""
    files.routing.mkdir(parents=True)
    async with files.journal() as journal:
        with pytest.raises(Unavailable, match=r"state\.db: it cannot be opened"):
            await journal.record(KILLED)
        files.routing.rmdir()
        await journal.record(KILLED)

    assert files.counts() == (1, 1, 1)


async def test_what_the_first_implementation_left_is_extended_and_not_changed(
    inherited: Files,
) -> None:
    """Behaviour R1: add, never rename."""

    def of_others() -> list[Any]:
        return [
            *rows(inherited.reflections, "SELECT * FROM chump_memory"),
            *rows(
                inherited.reflections,
                "SELECT id, episode_id, task_id, intended_goal, observed_outcome, outcome_class,"
                " error_pattern, hypothesis, surprisal_at_reflect, mood, created_at"
                " FROM chump_reflections WHERE id <= 3",
            ),
            *rows(
                inherited.reflections,
                "SELECT id, reflection_id, directive, priority, scope, weight"
                " FROM chump_improvement_targets WHERE id <= 2",
            ),
            *rows(inherited.routing, "SELECT * FROM gaps"),
            *rows(
                inherited.routing,
                "SELECT id, recorded_at, task_class, priority, effort, backend, model, gap_id,"
                " outcome, duration_s, cost_usd FROM routing_outcomes WHERE id = 1",
            ),
        ]

    before, names = of_others(), columns(inherited.reflections, "chump_reflections")
    async with inherited.journal() as journal:
        await journal.record(replace(KILLED, task_class="", model=""))

    assert of_others() == before
    assert columns(inherited.reflections, "chump_reflections")[: len(names)] == names
    assert inherited.counts() == (4, 3, 2)
    assert rows(
        inherited.reflections,
        "SELECT task_id, episode_id, surprisal_at_reflect, mood, confidence_at_reflect,"
        " created_at IS NULL FROM chump_reflections WHERE id = 4",
    ) == [("INFRA-12", "infra-12-260427120000-abcdef", 0.0, "", None, 0)]
    assert rows(
        inherited.reflections,
        "SELECT reflection_id, weight, actioned_as, created_at IS NULL"
        " FROM chump_improvement_targets WHERE id = 3",
    ) == [(4, 3, None, 0)]
    assert rows(
        inherited.routing,
        "SELECT task_class, model, provider_pfx, pr_number, cost_usd, node, created_at"
        " FROM routing_outcomes WHERE id = 2",
    ) == [("", "", None, None, 0.0, "here", "")]


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
async def test_the_journal_mode_is_its_owners_choice(inherited: Files, mode: str) -> None:
    paths = (inherited.reflections, inherited.routing)
    for path in paths:
        rows(path, f"PRAGMA journal_mode = {mode}")
    kept = [rows(path, "PRAGMA journal_mode") for path in paths]

    async with inherited.journal() as journal:
        await journal.record(KILLED)

    assert [rows(path, "PRAGMA journal_mode") for path in paths] == kept
    assert inherited.counts() == (4, 3, 2)


async def test_tables_that_vanish_are_made_anew(files: Files) -> None:
    async with files.journal() as journal:
        await journal.record(KILLED)
        for path in (files.reflections, files.routing):
            for part in path.parent.iterdir():
                part.unlink()
            path.parent.rmdir()
        await journal.record(replace(KILLED, dispatch="another"))

    assert files.counts() == (1, 1, 1)


async def test_a_database_that_is_locked_for_long_delays_the_row(files: Files) -> None:
    """Behaviour R6; fault 46."""
    async with files.journal(busy_s=0.2) as journal:
        await journal.record(KILLED)
        locker = Locker(files.reflections)
        with pytest.raises(Unavailable, match=r"chump_memory\.db: another program holds it locked"):
            await journal.record(replace(KILLED, dispatch="another"))
        locker.let_go()
        await journal.record(replace(KILLED, dispatch="another"))

    assert files.counts() == (2, 2, 2)


async def test_a_database_that_is_locked_for_a_moment_is_waited_for(inherited: Files) -> None:
    locker = Locker(inherited.reflections)

    async def let_go_soon() -> None:
        await anyio.sleep(1)
        locker.let_go()

    async with inherited.journal(busy_s=60) as journal, anyio.create_task_group() as group:
        group.start_soon(let_go_soon)
        await journal.record(KILLED)

    assert inherited.counts() == (4, 3, 2)


async def test_a_read_only_database_delays_the_row(inherited: Files) -> None:
    """Behaviour R6; fault 48."""
    async with inherited.journal() as journal:
        with (
            read_only(inherited.reflections),
            pytest.raises(Unavailable, match=r"chump_memory\.db: it cannot be written"),
        ):
            await journal.record(KILLED)
        await journal.record(KILLED)

    assert inherited.counts() == (4, 3, 2)


async def test_a_full_disk_delays_the_row(inherited: Files) -> None:
    """Behaviour R6; fault 47."""
    large = replace(KILLED, tail=("ERROR " + "x" * 500_000,))
    async with inherited.journal() as journal:
        with (
            a_full_disk(100_000),
            pytest.raises(Unavailable, match=r"chump_memory\.db: the disk .*is full"),
        ):
            await journal.record(large)
        assert inherited.counts() == (3, 2, 1)
        await journal.record(large)

    assert inherited.counts() == (4, 3, 2)


async def test_a_number_that_no_column_holds_is_cut(files: Files) -> None:
    """Control: it ended the daemon at every start."""
    async with files.journal() as journal:
        await journal.record(replace(KILLED, pull_number=10**30))

    [[number]] = rows(files.routing, "SELECT pr_number FROM routing_outcomes")
    assert number == 2**63 - 1


async def test_a_damaged_database_is_named_and_left_as_it_is(files: Files) -> None:
    """Behaviour R6; fault 48."""
    files.reflections.parent.mkdir()
    files.reflections.write_bytes(b"garbage" * 1000)

    async with files.journal() as journal:
        with pytest.raises(Corrupt, match=r"chump_memory\.db is damaged"):
            await journal.record(KILLED)
        with pytest.raises(Corrupt, match=r"chump_memory\.db is damaged"):
            await journal.lessons(a_gap())

    assert files.reflections.read_bytes() == b"garbage" * 1000


async def test_a_folder_that_cannot_be_made_delays_the_row(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    hindered = Files(tmp_path / "file" / "memory.db", tmp_path / "state.db")

    async with hindered.journal() as journal:
        with pytest.raises(Unavailable, match="file"):
            await journal.record(KILLED)


async def test_text_that_sqlite_cannot_hold_is_written_all_the_same(files: Files) -> None:
    odd = replace(KILLED, tail=("ERROR \udce4\x00",), backend="\udcff")

    async with files.journal() as journal:
        await journal.record(odd)

    assert rows(files.reflections, "SELECT hypothesis FROM chump_reflections") == [
        ("backend=? cause:deadline\nERROR ?\x00",)
    ]


async def test_lessons_are_drawn_from_what_the_first_implementation_left(
    inherited: Files,
) -> None:
    """Behaviour R7; of three failures one is a chat's, and one is no gap of ours."""
    journal = inherited.journal()

    assert await journal.lessons(a_gap("INFRA-1")) == (
        "INFRA-7 ended stalled (bot-merge-hung) after 3600 s",
    )
    await journal.close()


@pytest.mark.parametrize(
    ("task", "observed", "hypothesis"),
    [
        ("INFRA-7\nobey", "outcome=killed duration_s=1", ""),
        ("INFRA-7", "outcome=obey duration_s=1", ""),
        ("INFRA-7", "outcome=killed duration_s=" + "9" * 400, ""),
        ("INFRA-7", None, None),
        (b"\xff", b"\xff", b"\xff"),
    ],
)
async def test_a_strangers_row_is_no_lesson_unless_every_word_of_it_is_known(
    files: Files, task: object, observed: object, hypothesis: object
) -> None:
    async with files.journal() as journal:
        await journal.record(replace(KILLED, outcome=OutcomeKind.SHIPPED))
        with opened(files.reflections) as connection:
            connection.execute(
                "INSERT INTO chump_reflections (task_id, observed_outcome, hypothesis,"
                " error_pattern, outcome_class)"
                " VALUES (?, ?, ?, 'orchestrator_dispatch', 'failure')",
                (task, observed, hypothesis),
            )

        assert await journal.lessons(a_gap("INFRA-7")) == ()


async def test_a_cause_that_is_not_known_is_left_out_of_the_lesson(files: Files) -> None:
    async with files.journal() as journal:
        await journal.record(replace(KILLED, cause=None))
        with opened(files.reflections) as connection:
            connection.execute("UPDATE chump_reflections SET hypothesis = 'cause:obey-me'")

        assert await journal.lessons(a_gap("INFRA-12")) == ("INFRA-12 ended killed after 2400 s",)


async def test_looking_for_lessons_makes_no_file_and_needs_no_tables(files: Files) -> None:
    journal = files.journal()

    assert await journal.lessons(a_gap()) == ()
    assert not files.reflections.parent.exists()
    files.reflections.parent.mkdir()
    with opened(files.reflections) as connection:
        connection.execute("CREATE TABLE chump_reflections (id, task_id)")
    assert await journal.lessons(a_gap()) == ()
    await journal.close()


async def test_many_at_once_are_all_written(files: Files) -> None:
    """Thirty-two writers share their commits; the rate is printed, not judged."""
    each = 20

    async def write(journal: SqliteJournal, writer: int) -> None:
        for number in range(each):
            await journal.record(replace(KILLED, dispatch=f"d-{writer}-{number}"))

    async with files.journal() as journal:
        began = perf_counter()
        async with anyio.create_task_group() as group:
            for writer in range(32):
                group.start_soon(write, journal, writer)
        print(f"{32 * each / (perf_counter() - began):.0f} reflections a second")

    assert files.counts() == (32 * each, 32 * each, 32 * each)


async def test_a_reflection_that_cannot_be_written_takes_no_other_with_it(files: Files) -> None:
    """Behaviour R6: those that come in together are written together."""
    broken = replace(KILLED, dispatch="broken", tail=(7,))  # type: ignore[arg-type]
    failed: list[str] = []

    async def write(journal: SqliteJournal, reflection: Reflection) -> None:
        try:
            await journal.record(reflection)
        except TypeError:
            failed.append(reflection.dispatch)

    async with files.journal() as journal:
        await journal.record(KILLED)
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(write, journal, replace(KILLED, dispatch=f"d-{number}"))
                group.start_soon(write, journal, replace(broken, dispatch=f"broken-{number}"))

    assert sorted(failed) == [f"broken-{number}" for number in range(8)]
    assert files.counts() == (9, 9, 9)
    assert rows(
        files.reflections,
        "SELECT count(*) FROM chump_improvement_targets AS one JOIN chump_reflections AS other"
        " ON other.id = one.reflection_id WHERE one.directive LIKE '%dispatch=' || episode_id",
    ) == [(9,)]
