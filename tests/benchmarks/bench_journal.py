"""Durable reflections: 32 writers at the journal, beside the plainest way to write one.

On a disk, for in memory nothing is durable and all of it is fast.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.reflection import Reflection
from tests.benchmarks.measuring import Room, Row, Target

WRITERS = 32
RUST_A_SECOND = 707
"""What the first implementation did on two cores: shown, and not what is compared with."""

ONE = Reflection(
    dispatch="bench-1",
    gap="BENCH-1",
    priority=Priority.P1,
    effort=Effort.S,
    task_class="infra",
    outcome=OutcomeKind.SHIPPED,
    cause=None,
    duration=timedelta(minutes=20),
    pull_number=7,
    backend="claude",
    model="",
    provider_pfx="",
    siblings=7,
    tail=("WARN: this took longer than it should",),
    cost_usd=1.5,
    ended_at=datetime(2026, 4, 27, tzinfo=UTC),
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS chump_reflections (id INTEGER PRIMARY KEY AUTOINCREMENT,
 task_id TEXT, observed_outcome TEXT, hypothesis TEXT, error_pattern TEXT);
CREATE TABLE IF NOT EXISTS chump_improvement_targets (id INTEGER PRIMARY KEY AUTOINCREMENT,
 reflection_id INTEGER, directive TEXT);
"""


def rows(room: Room) -> list[Row]:
    folder = room.folder("journal", on_disk=True)
    count = room.rounds(4096, quick=512)
    ours, plain = [], []
    for number in range(room.rounds(5, quick=2)):
        ours.append(anyio.run(_ours, folder / f"ours-{number}", count))
        plain.append(_plain(folder / f"plain-{number}.db", room.rounds(300, quick=40)))
    return [
        Row(
            "journal.rate",
            f"durable reflections, {WRITERS} writers",
            "a second",
            tuple(ours),
            Target(20, of="ratio", at_least=True),
            "open, schema, two commits",
            tuple(plain),
            note=f"the first implementation wrote {RUST_A_SECOND} a second on its machine",
        )
    ]


async def _ours(folder: Path, count: int) -> float:
    """Return how many a second, both databases and all."""
    async with SqliteJournal(
        reflections=folder / "memory.db", routing=folder / "state.db"
    ) as journal:
        await journal.record(ONE)

        async def write(first: int) -> None:
            for number in range(first, count, WRITERS):
                await journal.record(replace(ONE, dispatch=f"bench-{number}-of-{first}"))

        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for first in range(WRITERS):
                group.start_soon(write, first)
        return count / (time.perf_counter() - began)


def _plain(path: Path, count: int) -> float:
    """Return how many a second by one who opens, makes the tables and commits twice each time."""
    began = time.perf_counter()
    for number in range(count):
        connection = sqlite3.connect(path)
        connection.executescript(SCHEMA)
        told = (f"BENCH-{number}", "outcome=shipped", "none", "dispatch")
        row = connection.execute(
            "INSERT INTO chump_reflections"
            " (task_id, observed_outcome, hypothesis, error_pattern) VALUES (?, ?, ?, ?)",
            told,
        ).lastrowid
        connection.commit()
        connection.execute(
            "INSERT INTO chump_improvement_targets (reflection_id, directive) VALUES (?, ?)",
            (row, "go on"),
        )
        connection.commit()
        connection.close()
    return count / (time.perf_counter() - began)
