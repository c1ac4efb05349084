"""Late merges in virtual time: asked about rarely, over restarts, put right once (rule P5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from chump_orchestrator import story
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.dispatch import DeadlinePolicy
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import Checks, PullRequest, PullState
from chump_orchestrator.core.records import Watch
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap
from tests.daemon.twins import MINUTE, Scene, a_scene

pytestmark = pytest.mark.looptime

HOUR = 60 * MINUTE
SOON = DeadlinePolicy(pull=10 * MINUTE)
"""Requests are given up after ten minutes: a virtual day takes real seconds."""


@asynccontextmanager
async def a_daemon(
    scene: Scene, assignment: Assignment | None = None
) -> AsyncIterator[Orchestrator]:
    daemon = Orchestrator(scene.world, scene.source, assignment or Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(1)
        yield daemon
        daemon.end(Manner.DETACH)


def a_case(backlog: Backlog) -> Scene:
    return a_scene(backlog, deadlines=SOON)


async def after(span: timedelta) -> None:
    await anyio.sleep(span.total_seconds())


def says(scene: Scene, gap: str, state: PullState, number: int | None = 7) -> None:
    scene.pulls.states[f"claude/{gap.lower()}"] = (state, number)


async def given_up(scene: Scene, *gaps: str) -> None:
    """Let requests of these gaps be open for as long as they may be, and given up."""
    for number, gap in enumerate(gaps, 7):
        says(scene, gap, PullState.OPEN, number)
        scene.executor.agents[gap].ends(0)
    await after(11 * MINUTE)


async def outcomes(scene: Scene) -> dict[str, str]:
    records = await scene.ledger.records()
    return {one.dispatch.gap.id: str(one.outcome.kind) for one in records if one.outcome}


def corrected(scene: Scene) -> list[Mapping[str, object]]:
    return [fields for event, fields in scene.events if event == "dispatch.corrected"]


def counted(scene: Scene) -> list[list[str]]:
    """Have every look's branches written down from now on."""
    asked: list[list[str]] = []
    look = scene.pulls.look

    async def counting(watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        asked.append([watch.branch for watch in watches])
        return await look(watches)

    scene.pulls.look = counting  # type: ignore[method-assign]
    return asked


async def test_a_request_that_is_merged_after_it_was_given_up_has_shipped() -> None:
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1", depends_on=("A-1",))))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        before = await outcomes(scene)
        parked = [one.gap for one in await scene.ledger.parked()]
        says(scene, "A-1", PullState.MERGED)
        await after(20 * MINUTE)

        assert (before, parked) == ({"A-1": "stalled"}, ["A-1"])
        assert await outcomes(scene) == {"A-1": "shipped"}
        assert list(await scene.ledger.shipped()) == ["A-1"]
        assert await scene.ledger.parked() == ()
        assert scene.executor.launched == ["A-1", "B-1"], "what waited for it goes on"
        (told,) = corrected(scene)
        assert story.told("dispatch.corrected", told) == (
            "A-1      SHIPPED after all (it had counted as stalled)"
        )
        assert {"was": "stalled", "outcome": "shipped", "pull": 7}.items() <= told.items()
        reflection, *_ = scene.journal.reflections
        assert (reflection.outcome, reflection.cause) == ("shipped", None)


async def test_a_closed_request_that_is_opened_again_is_not_lost() -> None:
    """Behaviour P4, P5: within the life of its dispatch, and after it."""
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1")))
    async with a_daemon(scene):
        for number, gap in enumerate(("A-1", "B-1"), 7):
            says(scene, gap, PullState.OPEN, number)
        await after(MINUTE)
        for number, gap in enumerate(("A-1", "B-1"), 7):
            says(scene, gap, PullState.CLOSED, number)
            scene.executor.agents[gap].ends(0)
        await after(timedelta(seconds=5))
        closed = await outcomes(scene)
        says(scene, "A-1", PullState.OPEN, 7)
        await after(2 * MINUTE)
        soon = await outcomes(scene)
        says(scene, "B-1", PullState.OPEN, 8)
        await after(6 * MINUTE)
        reopened = [r.pull and r.pull.state for r in await scene.ledger.records()]
        for number, gap in enumerate(("A-1", "B-1"), 7):
            says(scene, gap, PullState.MERGED, number)
        await after(20 * MINUTE)

        assert closed == {}
        assert soon == {"B-1": "ci_failed"}
        assert reopened == [PullState.OPEN, PullState.OPEN]
        assert await outcomes(scene) == {"A-1": "shipped", "B-1": "shipped"}
        assert len(corrected(scene)) == 1


async def test_a_merge_that_happened_while_no_daemon_ran_is_heard_of_at_the_start() -> None:
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1", depends_on=("A-1",))))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
    says(scene, "A-1", PullState.MERGED)
    await after(HOUR)

    async with a_daemon(scene):
        await after(MINUTE)
        assert await outcomes(scene) == {"A-1": "shipped"}
        assert scene.executor.launched == ["A-1", "B-1"]


async def test_a_single_run_hears_of_it_before_it_ends() -> None:
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1", depends_on=("A-1",))))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
    says(scene, "A-1", PullState.MERGED)
    says(scene, "B-1", PullState.MERGED, 9)
    scene.executor.on_launch = lambda _dispatch, agent: agent.ends(0)

    with anyio.fail_after(HOUR.total_seconds()):
        await Orchestrator(scene.world, scene.source, Assignment(once=True)).run()

    assert await outcomes(scene) == {"A-1": "shipped", "B-1": "shipped"}


async def test_a_single_run_does_not_wait_long_for_a_forge_that_is_silent() -> None:
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
    scene.pulls.is_silent = True

    with anyio.fail_after(30):
        await Orchestrator(scene.world, scene.source, Assignment(once=True)).run()

    assert await outcomes(scene) == {"A-1": "stalled"}


@pytest.mark.parametrize("manner", [Manner.TEARDOWN, Manner.DETACH])
async def test_a_single_run_that_is_told_to_end_does_not_wait_for_a_forge_that_hangs(
    manner: Manner,
) -> None:
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")

    async def hangs(watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        await anyio.sleep(300)
        raise Unavailable(f"too late for {len(watches)}")

    scene.pulls.look = hangs  # type: ignore[method-assign]
    daemon = Orchestrator(scene.world, scene.source, Assignment(once=True))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.run)
            await anyio.sleep(5)
            daemon.end(manner)


async def test_they_are_asked_about_ever_more_rarely_and_for_thirty_days() -> None:
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
    asked = counted(scene)
    # Nothing else of a daemon: thirty virtual days of all of it take real minutes.
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon._corrector.run)
        group.start_soon(daemon.lookout.run)
        await after(timedelta(days=1))
        first_day = len(asked)
        await after(timedelta(days=28))
        whole = len(asked)
        await after(timedelta(days=2))
        says(scene, "A-1", PullState.MERGED)
        await after(timedelta(days=2))
        group.cancel_scope.cancel()

    assert 20 <= first_day <= 45
    assert whole <= first_day + 8 * 28
    assert len(asked) <= whole + 10, "one day more was left of the thirty"
    assert await outcomes(scene) == {"A-1": "stalled"}


async def test_they_go_along_with_what_is_watched_in_one_question() -> None:
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1")))
    async with a_daemon(scene):
        says(scene, "A-1", PullState.CLOSED)
        scene.executor.agents["A-1"].ends(0)
        await after(5 * MINUTE)
        asked = counted(scene)
        await after(25 * MINUTE)

        both = [one for one in asked if len(one) == 2]
        assert all("claude/b-1" in one for one in asked)
        assert 2 <= len(both) <= 5


async def test_a_forge_without_answers_is_not_asked_more_often_for_them() -> None:
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        asked = counted(scene)
        scene.pulls.is_silent = True
        await after(4 * HOUR)
        silent = len(asked)
        scene.pulls.is_silent = False
        says(scene, "A-1", PullState.MERGED)
        await after(HOUR)

        assert silent <= 4 * 12
        assert await outcomes(scene) == {"A-1": "shipped"}


async def test_a_silent_forge_that_ended_a_dispatch_is_asked_what_it_would_have_said() -> None:
    """Behaviour P3, P5."""
    one_try = RetryPolicy(max_attempts=1)
    scene = a_scene(a_backlog(a_gap("A-1")), deadlines=SOON, retry=one_try)
    async with a_daemon(scene):
        scene.pulls.is_silent = True
        scene.executor.agents["A-1"].ends(0)
        await after(11 * MINUTE)
        (before,) = await scene.ledger.records()
        scene.pulls.is_silent = False
        scene.merge("A-1")
        await after(20 * MINUTE)

        assert before.outcome is not None
        assert (str(before.outcome.kind), before.outcome.cause) == ("stalled", "network")
        assert await outcomes(scene) == {"A-1": "shipped"}


def failing(times: int, work: Callable[..., Any]) -> Callable[..., Any]:
    left = times

    async def locked(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("the database is locked")
        return await work(*args)

    return locked


async def test_a_ledger_that_is_locked_delays_the_correction_and_loses_nothing() -> None:
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        scene.ledger.correct = failing(20, scene.ledger.correct)  # type: ignore[method-assign]
        says(scene, "A-1", PullState.MERGED)
        await after(20 * MINUTE)

        assert await outcomes(scene) == {"A-1": "shipped"}
        assert len(corrected(scene)) == 1


async def test_a_journal_that_is_locked_is_told_later_also_by_the_next_daemon() -> None:
    """Behaviour R6."""
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        scene.journal.trouble = "the database is locked"
        says(scene, "A-1", PullState.MERGED)
        await after(20 * MINUTE)
        (locked,) = scene.journal.reflections
    scene.journal.trouble = ""
    async with a_daemon(scene):
        await after(MINUTE)

        (told,) = scene.journal.reflections
        assert (locked.outcome, told.outcome) == ("stalled", "shipped")
        assert await scene.ledger.corrections() == ()


async def test_a_gap_whose_text_has_changed_is_not_done_by_what_was_merged_for_the_old_one() -> (
    None
):
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        scene.worktrees.there.add("a-1")  # on the remote, its branch is still in the way
        scene.source.replace(a_backlog(a_gap("A-1", description="and now for something else")))
        await after(MINUTE)
        says(scene, "A-1", PullState.MERGED)
        await after(20 * MINUTE)

        records = await scene.ledger.records()
        assert str(records[0].outcome and records[0].outcome.kind) == "shipped"
        assert await scene.ledger.shipped() == {}


async def test_a_branch_that_cannot_be_read_is_asked_about_on() -> None:
    """That there is no request, all at once, is no news of the one that there was."""
    scene = a_case(a_backlog(a_gap("A-1")))
    async with a_daemon(scene):
        await given_up(scene, "A-1")
        says(scene, "A-1", PullState.NONE, None)
        await after(HOUR)
        says(scene, "A-1", PullState.MERGED)
        await after(HOUR)

        assert await outcomes(scene) == {"A-1": "shipped"}


async def test_a_bug_in_correcting_costs_corrections_and_nothing_else() -> None:
    scene = a_case(a_backlog(a_gap("A-1"), a_gap("B-1", deadline=9 * HOUR)))

    async def broken(*_args: object) -> bool:
        raise ZeroDivisionError

    async with a_daemon(scene):
        await given_up(scene, "A-1")
        scene.ledger.correct = broken  # type: ignore[method-assign,assignment]
        says(scene, "A-1", PullState.MERGED)
        await after(20 * MINUTE)
        scene.merge("B-1")
        scene.executor.agents["B-1"].ends(0)
        await after(MINUTE)

        assert (await outcomes(scene))["B-1"] == "shipped"


async def test_failing_checks_are_named_in_the_outcome_and_where_one_looks() -> None:
    """Behaviour P5."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    look = scene.pulls.look

    async def red(watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        answer = await look(watches)
        return {
            branch: replace(pull, checks=Checks.FAILING, failing=("build", "test (3.11)"))
            for branch, pull in answer.items()
        }

    scene.pulls.look = red  # type: ignore[method-assign]
    async with a_daemon(scene):
        says(scene, "A-1", PullState.OPEN)
        scene.executor.agents["A-1"].ends(0)
        await after(HOUR)

        (record,) = await scene.ledger.records()
        assert record.outcome is not None
        assert record.outcome.reason == (
            "pull request 7 has had failing checks for 0:30:00: build, test (3.11)"
        )
