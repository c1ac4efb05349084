"""Requests that fail after their agent has ended, and the sessions that put them right (P10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.complaints import Complaint, ComplaintKind
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.outcome import Checks, OutcomeKind, PullState
from chump_orchestrator.core.pull import Review
from chump_orchestrator.core.records import DispatchState, Record, Removal
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import ResumingBackend, Scene, a_scene

pytestmark = pytest.mark.looptime

LOG = Complaint(ComplaintKind.CHECK, "unit tests", "E  assert 1 == 2")
OLD, NEW, NEWER = "a" * 40, "b" * 40, "c" * 40


@asynccontextmanager
async def daemon(scene: Scene, assignment: Assignment | None = None) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, assignment or Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


def a_failing_scene(
    *more: str, resumes: bool = True, **policies: object
) -> tuple[Scene, ResumingBackend]:
    gaps = (a_gap("A-1"), *(a_gap(one) for one in more))
    scene = a_scene(a_backlog(*gaps), resumes_failed=resumes, **policies)
    backend = ResumingBackend()
    scene.world.backend = lambda _name: backend
    scene.pulls.complaints = (LOG,)
    opened(scene, OLD, Checks.PENDING)
    return scene, backend


def opened(scene: Scene, head: str, checks: Checks, *, wants_changes: bool = False) -> None:
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 412)
    scene.pulls.more["claude/a-1"] = {
        "head": head,
        "checks": checks,
        "review": Review.CHANGES_REQUESTED if wants_changes else Review.NONE,
    }


async def rows(scene: Scene, gap: str = "A-1") -> list[Record]:
    """Return the gap's dispatches, oldest first."""
    return list(reversed(await scene.ledger.latest(100, gap)))


def ends(scene: Scene, code: int = 0) -> None:
    scene.executor.agents["A-1"].ends(code)


async def test_a_fix_that_was_pushed_just_before_the_end_needs_no_session() -> None:
    """What was seen before the agent ended was of another head."""
    scene, _ = a_failing_scene()

    async with daemon(scene):
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(120)
        opened(scene, NEW, Checks.PENDING)
        ends(scene)
        await anyio.sleep(10)
        (waiting,) = await rows(scene)

    assert waiting.outcome is None
    assert scene.executor.launched == ["A-1"]


async def test_failed_checks_are_put_right_by_the_same_session_and_ship() -> None:
    scene, backend = a_failing_scene()

    async with daemon(scene) as running:
        ends(scene)
        await anyio.sleep(60)
        waiting = len(scene.executor.launched)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(180)
        first, second = await rows(scene)
        during = list(scene.executor.launched)
        opened(scene, NEW, Checks.PASSING)
        ends(scene)
        scene.merge("A-1", 412)
        await anyio.sleep(180)
        _, shipped = await rows(scene)
        why = await Operator(running).why("A-1")

    assert (waiting, during) == (1, ["A-1", "A-1"])
    assert first.outcome is not None
    assert shipped.outcome is not None
    assert (first.outcome.kind, first.outcome.reason) == (
        OutcomeKind.CI_FAILED,
        "pull request 412 has failing checks; another session goes on with it",
    )
    assert shipped.outcome.kind is OutcomeKind.SHIPPED
    assert second.dispatch.resumed is not None
    assert (second.dispatch.resumed.dispatch, second.dispatch.resumed.times) == (
        first.dispatch.id,
        1,
    )
    ((session, brief),) = backend.resumed
    assert session == first.dispatch.session
    assert "pull request 412 is open" in brief
    assert "failed check unit tests:\nE  assert 1 == 2" in brief
    assert [one.outcome for one in scene.journal.reflections] == ["ci_failed", "shipped"]
    assert scene.ledger is not None
    assert set(await scene.ledger.shipped()) == {"A-1"}
    assert (scene.worktrees.there, scene.leases.ours) == (set(), {})
    assert "parked" not in why


async def test_nothing_follows_unless_the_operator_wants_it() -> None:
    scene, _ = a_failing_scene(resumes=False)

    async with daemon(scene) as running:
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(3600)

        assert scene.executor.launched == ["A-1"]
        assert "failing checks for 0:30:00" in await Operator(running).why("A-1")
        assert "`retry A-1 --resume` goes on with it" in await Operator(running).why("A-1")


async def test_an_agent_at_work_is_left_alone_whatever_its_checks_say() -> None:
    scene, _ = a_failing_scene()

    async with daemon(scene):
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(600)

        assert scene.executor.launched == ["A-1"]


async def test_a_head_gets_one_session_and_then_the_clock_of_its_checks_runs_out() -> None:
    """Behaviour P5: the time goes on where it was before the session, as nothing was pushed."""
    scene, _ = a_failing_scene("B-1", max_parallel=1)

    async with daemon(scene) as running:
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(20 * 60)
        scene.executor.agents["B-1"].ends(0)
        await anyio.sleep(180)
        ends(scene)
        await anyio.sleep(180)
        _, second = await rows(scene)
        before = second.state
        await anyio.sleep(8 * 60)

        assert scene.executor.launched == ["A-1", "B-1", "A-1"]
        assert before is DispatchState.EXITED
        assert "failing checks for 0:30:00" in await Operator(running).why("A-1")


async def test_checks_of_a_new_head_have_the_whole_grace_again() -> None:
    scene, _ = a_failing_scene(retry=RetryPolicy(sessions=2))

    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(180)
        await anyio.sleep(25 * 60)
        opened(scene, NEW, Checks.FAILING)
        ends(scene)
        await anyio.sleep(25 * 60)
        _, second = await rows(scene)
        during = second.state
        await anyio.sleep(10 * 60)
        _, second = await rows(scene)

        assert during is DispatchState.EXITED
        assert second.outcome is not None
        assert second.outcome.kind is OutcomeKind.CI_FAILED


async def test_a_request_has_no_more_sessions_than_the_brake_allows() -> None:
    """Behaviour X2: three, the one that opened it included; then a person decides."""
    scene, backend = a_failing_scene()

    async with daemon(scene):
        for head in (OLD, NEW, NEWER, "d" * 40):
            ends(scene)
            opened(scene, head, Checks.FAILING)
            await anyio.sleep(180)
        times = [r.dispatch.resumed.times for r in await rows(scene) if r.dispatch.resumed]

        assert scene.executor.launched == ["A-1"] * 3
        assert times == [1, 2]
        assert len(backend.resumed) == 2


async def test_a_session_waits_for_a_slot_and_its_request_is_watched_meanwhile() -> None:
    """Behaviour K4."""
    scene, _ = a_failing_scene("B-1", max_parallel=1)

    async with daemon(scene):
        ends(scene)
        await anyio.sleep(10)
        launched = list(scene.executor.launched)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(300)
        during = [(r.state, r.outcome) for r in await rows(scene)]
        scene.executor.agents["B-1"].ends(0)
        await anyio.sleep(300)

        assert launched == ["A-1", "B-1"]
        assert during == [(DispatchState.EXITED, None)]
        assert scene.executor.launched == ["A-1", "B-1", "A-1"]


async def test_one_that_is_merged_while_it_waits_has_shipped_and_needs_no_session() -> None:
    scene, _ = a_failing_scene("B-1", max_parallel=1)

    async with daemon(scene):
        ends(scene)
        await anyio.sleep(10)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(120)
        scene.merge("A-1", 412)
        await anyio.sleep(120)
        scene.executor.agents["B-1"].ends(0)
        await anyio.sleep(120)

        (only,) = await rows(scene)
        assert only.outcome is not None
        assert only.outcome.kind is OutcomeKind.SHIPPED
        assert await scene.ledger.requested() == ()


async def test_a_session_takes_no_turn_of_a_new_request() -> None:
    """Behaviour K4: its request is open already."""
    scene, _ = a_failing_scene("B-1", max_parallel=1, max_open_pulls=1)

    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(180)

        assert scene.executor.launched == ["A-1", "A-1"]


async def test_the_slot_is_kept_for_the_session_while_its_place_is_tidied_up() -> None:
    scene, _ = a_failing_scene(max_parallel=1)
    keep = scene.worktrees.keep

    async def slowly(workspace: Workspace, dispatch_id: str) -> Removal:
        scene.source.replace(a_backlog(a_gap("B-1"), a_gap("A-1")))
        await anyio.sleep(300)
        return await keep(workspace, dispatch_id)

    scene.worktrees.keep = slowly  # type: ignore[method-assign]
    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(600)

        assert scene.executor.launched == ["A-1", "A-1"]


async def test_a_reviewer_who_wants_changes_gets_a_session_for_each_review() -> None:
    """A review outlasts the push that answers it; only a later one asks for more."""
    scene, backend = a_failing_scene()
    first = Complaint(ComplaintKind.REVIEW, "kim", "use a set", at=NOW + timedelta(seconds=70))
    scene.pulls.complaints = (first,)

    async with daemon(scene):
        ends(scene)
        await anyio.sleep(60)
        opened(scene, OLD, Checks.PASSING, wants_changes=True)
        await anyio.sleep(300)
        once = len(scene.executor.launched)
        opened(scene, NEW, Checks.PASSING, wants_changes=True)
        ends(scene)
        await anyio.sleep(3600)
        still, asked = len(scene.executor.launched), len(scene.pulls.explained)
        again = Complaint(ComplaintKind.REVIEW, "kim", "and sort it", at=scene.world.clock.now())
        scene.pulls.complaints = (first, again)
        await anyio.sleep(600)

        assert (once, still, len(scene.executor.launched)) == (2, 2, 3)
        assert asked <= 3 + 3600 // 300
        assert "changes asked for by kim:\nuse a set" in backend.resumed[0][1]
        assert "and sort it" in backend.resumed[1][1]


async def test_what_a_stranger_asks_for_starts_nothing_and_reaches_no_agent() -> None:
    scene, backend = a_failing_scene()
    stranger = Complaint(ComplaintKind.REVIEW, "mallory", is_withheld=True)
    scene.pulls.complaints = (stranger,)

    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.PASSING, wants_changes=True)
        await anyio.sleep(1800)
        before = len(scene.executor.launched)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(180)

        assert before == 1
        assert "1 remark is left out, by mallory" in backend.resumed[0][1]


async def test_a_forge_that_cannot_explain_keeps_no_session_waiting() -> None:
    scene, backend = a_failing_scene()

    async def silent(*_: object) -> tuple[Complaint, ...]:
        await anyio.sleep(3600)
        return (LOG,)

    scene.pulls.explain = silent  # type: ignore[assignment, method-assign]
    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(300)

        assert scene.executor.launched == ["A-1", "A-1"]
        assert "pull request 412 has failing checks" in backend.resumed[0][1]


async def test_while_paused_no_session_is_started_and_nothing_is_settled() -> None:
    scene, _ = a_failing_scene()

    async with daemon(scene) as running:
        await Operator(running).pause("lunch")
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(600)
        before = [(r.state, r.outcome) for r in await rows(scene)]
        await Operator(running).resume()
        await anyio.sleep(60)

        assert before == [(DispatchState.EXITED, None)]
        assert scene.executor.launched == ["A-1", "A-1"]


async def test_a_restart_between_the_two_dispatches_loses_neither() -> None:
    """The end of the one and the wish for the other are written in one step."""
    scene, _ = a_failing_scene()
    tidied, keep = anyio.Event(), scene.worktrees.keep

    async def never(*_: object) -> object:
        tidied.set()
        await anyio.sleep(10**6)
        return None

    scene.worktrees.keep = never  # type: ignore[assignment, method-assign]
    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await tidied.wait()
    between = [(r.state.is_active, r.outcome and str(r.outcome.kind)) for r in await rows(scene)]
    scene.worktrees.keep = keep  # type: ignore[method-assign]
    async with daemon(scene):
        await anyio.sleep(60)

        assert between == [(False, "ci_failed")]
        assert scene.executor.launched == ["A-1", "A-1"]
        assert await scene.ledger.requested() == ()


async def test_a_single_run_waits_for_the_session_and_its_end() -> None:
    """Behaviour C8, also where it waits for no request."""
    scene, _ = a_failing_scene()
    orchestrator = Orchestrator(
        scene.world, scene.source, Assignment(once=True, pull_wait=timedelta(minutes=2))
    )

    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(60)
        opened(scene, NEW, Checks.PASSING)
        ends(scene)
        scene.merge("A-1", 412)

    assert orchestrator.scheduler.last["A-1"].kind is OutcomeKind.SHIPPED


async def test_sessions_that_follow_are_no_failures_in_a_row() -> None:
    """Behaviour X5: what is being put right has not failed yet."""
    scene, _ = a_failing_scene()

    async with daemon(scene):
        ends(scene)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(180)

        assert (await scene.ledger.fuse()).failures == ()


async def test_the_wish_for_a_session_is_granted_however_many_requests_are_open() -> None:
    """Nobody looks at its request meanwhile."""
    scene, _ = a_failing_scene("B-1", "C-1", max_parallel=3)
    scene.pulls.states |= {f"claude/{one}-1": (PullState.OPEN, 7) for one in ("b", "c")}

    async with daemon(scene) as running:
        for gap in ("A-1", "B-1", "C-1"):
            scene.executor.agents[gap].ends(0)
        await anyio.sleep(60)
        running.world.policies = replace(running.world.policies, max_open_pulls=1)
        opened(scene, OLD, Checks.FAILING)
        await anyio.sleep(300)

        assert scene.executor.launched[3:] == ["A-1"]
