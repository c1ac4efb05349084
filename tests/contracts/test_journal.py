"""What every journal promises: the one in SQLite and its twin (`core.ports.Journal`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort, Gap, Priority
from chump_orchestrator.core.learning import Belief, Experience
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.ports import Journal
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.testing import MemoryJournal
from tests.builders import NOW, a_gap


class TeachingJournal(Journal, Protocol):
    """The port, and the lessons of behaviour R7."""

    async def lessons(self, gap: Gap, limit: int = 5) -> tuple[str, ...]: ...


Open = Callable[[], AbstractAsyncContextManager[TeachingJournal]]


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Hand out a way to open an empty journal, of the kind that the test is run against."""

    @asynccontextmanager
    async def in_sqlite() -> AsyncIterator[TeachingJournal]:
        async with SqliteJournal(
            reflections=tmp_path / "sessions" / "memory.db", routing=tmp_path / "state.db"
        ) as journal:
            yield journal

    @asynccontextmanager
    async def in_memory() -> AsyncIterator[TeachingJournal]:
        yield MemoryJournal()

    return in_sqlite if request.param == "sqlite" else in_memory


def a_failure(gap: str, dispatch: str = "", **fields: Any) -> Reflection:
    defaults: dict[str, Any] = {
        "priority": Priority.P1,
        "effort": Effort.S,
        "task_class": "",
        "outcome": OutcomeKind.KILLED,
        "cause": Cause.DEADLINE,
        "duration": timedelta(seconds=2400),
        "pull_number": None,
        "backend": "claude",
        "model": "",
        "provider_pfx": "",
        "siblings": 0,
        "tail": (),
        "cost_usd": None,
        "ended_at": NOW,
    }
    return Reflection(dispatch=dispatch or f"{gap.lower()}-a", gap=gap, **(defaults | fields))


async def test_there_is_nothing_to_learn_from_nothing(opened: Open) -> None:
    async with opened() as journal:
        assert await journal.lessons(a_gap("INFRA-1")) == ()


async def test_failures_of_the_same_domain_are_lessons(opened: Open) -> None:
    """Behaviour R7."""
    async with opened() as journal:
        await journal.record(a_failure("INFRA-12"))
        await journal.record(a_failure("COG-1", effort=Effort.L))

        assert await journal.lessons(a_gap("INFRA-1", effort=Effort.M)) == (
            "INFRA-12 ended killed (deadline) after 2400 s",
        )


async def test_a_lesson_is_told_once_and_in_its_latest_form(opened: Open) -> None:
    async with opened() as journal:
        await journal.record(a_failure("INFRA-12", "a", duration=timedelta(seconds=1)))
        await journal.record(a_failure("INFRA-12", "b", duration=timedelta(seconds=2)))

        assert await journal.lessons(a_gap("INFRA-1")) == (
            "INFRA-12 ended killed (deadline) after 2 s",
        )


async def test_the_nearest_lessons_come_first(opened: Open) -> None:
    own = a_failure("INFRA-1", outcome=OutcomeKind.CI_FAILED, cause=Cause.NETWORK)

    async with opened() as journal:
        await journal.record(own)
        await journal.record(a_failure("INFRA-2", effort=Effort.L))
        await journal.record(a_failure("COG-3", effort=Effort.L, cause=Cause.NETWORK))
        await journal.record(a_failure("EVAL-4"))
        await journal.record(a_failure("EVAL-5", effort=Effort.L))

        assert await journal.lessons(a_gap("INFRA-1")) == (
            "INFRA-1 ended ci_failed (network) after 2400 s",
            "INFRA-2 ended killed (deadline) after 2400 s",
            "COG-3 ended killed (network) after 2400 s",
            "EVAL-4 ended killed (deadline) after 2400 s",
        )


async def test_what_is_not_known_is_nothing_in_common(opened: Open) -> None:
    async with opened() as journal:
        for gap in ("INFRA-1", "COG-3"):
            unknown = a_failure(gap, cause=Cause.UNKNOWN, effort=Effort.UNKNOWN)
            await journal.record(unknown)

        assert await journal.lessons(a_gap("INFRA-1", effort=Effort.UNKNOWN)) == (
            "INFRA-1 ended killed (unknown) after 2400 s",
        )


async def test_a_success_is_no_lesson_and_neither_is_a_cancellation(opened: Open) -> None:
    async with opened() as journal:
        for number, outcome in enumerate(OutcomeKind):
            await journal.record(a_failure("INFRA-1", f"{number}", outcome=outcome, cause=None))

        told = await journal.lessons(a_gap("INFRA-1"), limit=99)
        assert [text.split()[2] for text in told] == [
            "lost",
            "spawn_failed",
            "killed",
            "stalled",
            "ci_failed",
        ]


async def test_the_lessons_are_few(opened: Open) -> None:
    async with opened() as journal:
        for number in range(7):
            await journal.record(a_failure(f"INFRA-{number}"))

        lessons = await journal.lessons(a_gap("INFRA-9"))
        assert [text.split()[0] for text in lessons] == [f"INFRA-{n}" for n in (6, 5, 4, 3, 2)]
        assert await journal.lessons(a_gap("INFRA-9"), limit=1) == lessons[:1]


async def test_a_reflection_that_comes_twice_is_recorded_once(opened: Open) -> None:
    """Behaviour R1: a replay after a crash is harmless."""
    async with opened() as journal:
        await journal.record(a_failure("INFRA-12"))
        await journal.record(a_failure("INFRA-12", cause=Cause.AUTH))

        assert await journal.lessons(a_gap("INFRA-1")) == (
            "INFRA-12 ended killed (deadline) after 2400 s",
        )


async def test_what_was_recorded_is_what_is_learnt(opened: Open) -> None:
    """Behaviour G4."""
    async with opened() as journal:
        assert await journal.experience(NOW.date()) == Experience()
        await journal.record(a_failure("INFRA-12"))
        await journal.record(a_failure("INFRA-13", outcome=OutcomeKind.SHIPPED, cost_usd=0.5))
        await journal.record(a_failure("INFRA-14", cause=Cause.USAGE_LIMIT))

        learnt = await journal.experience(NOW.date())

    assert learnt.beliefs == {("", "s"): {("claude", "", ""): Belief(1.0, 1.0, 0.5)}}
