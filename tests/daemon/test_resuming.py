"""Going on where an agent stopped: who may, in whose worktree, and what follows (behaviour X6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import OutcomeKind, PullState
from chump_orchestrator.core.records import Denied, Record
from chump_orchestrator.core.resuming import taking_over
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import PlainBackend, ResumingBackend, Scene, a_scene

pytestmark = pytest.mark.looptime


@asynccontextmanager
async def daemon(scene: Scene) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


def a_resuming_scene(**policies: object) -> tuple[Scene, ResumingBackend]:
    scene = a_scene(a_backlog(a_gap("A-1")), **policies)
    backend = ResumingBackend()
    scene.world.backend = lambda _name: backend
    return scene, backend


async def rows(scene: Scene) -> list[Record]:
    """Return all dispatches, oldest first."""
    return list(reversed(await scene.ledger.latest(100)))


async def test_a_stopped_session_is_gone_on_with_in_the_same_worktree() -> None:
    scene, backend = a_resuming_scene()

    async with daemon(scene) as running:
        operator = Operator(running)
        await operator.stop("A-1", False)
        await anyio.sleep(120)
        why = await operator.why("A-1")
        (first,) = await rows(scene)
        kept = scene.worktrees.holders["/w/a-1"]
        said = await operator.retry("A-1", resume=True)
        await anyio.sleep(60)
        _, second = await rows(scene)
        told = (await operator.status())["dispatches"]
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)
        _, shipped = await rows(scene)

    assert why == "parked: stopped by an operator; `retry A-1 --resume` goes on with it"
    assert (kept, scene.worktrees.kept) == (first.dispatch.id, [first.dispatch.id])
    assert said == f"A-1 is gone on with next, in the session of {first.dispatch.id}"
    resumed = second.dispatch.resumed
    assert resumed is not None
    assert (resumed.dispatch, resumed.session) == (first.dispatch.id, first.dispatch.session)
    assert resumed.since == first.launched_at
    assert (second.dispatch.attempt, second.workspace) == (2, first.workspace)
    assert isinstance(told, list)
    assert told[0]["resumed_from"] == first.dispatch.id
    ((session, brief),) = backend.resumed
    assert session == first.dispatch.session
    assert "an operator stopped you" in brief
    assert "working on gap A-1" in brief
    assert shipped.outcome is not None
    assert shipped.outcome.kind is OutcomeKind.SHIPPED
    assert first.outcome is not None
    assert first.outcome.kind is OutcomeKind.CANCELLED
    assert (scene.worktrees.there, scene.leases.ours) == (set(), {})
    assert [one.outcome for one in scene.journal.reflections] == ["cancelled", "shipped"]


async def test_one_stopped_at_its_deadline_says_how_it_is_gone_on_with() -> None:
    scene, backend = a_resuming_scene()

    async with daemon(scene) as running:
        await anyio.sleep(45 * 60)
        why = await Operator(running).why("A-1")
        await Operator(running).retry("A-1", resume=True)
        await anyio.sleep(10)

    assert "`retry A-1 --resume` goes on with it" in why
    assert "stopped at the deadline" in backend.resumed[0][1]
    assert scene.executor.launched == ["A-1", "A-1"]


async def test_a_request_of_the_earlier_attempt_is_still_its_own() -> None:
    """Behaviour P6: asked about since the first launch, and by its number."""
    scene, _ = a_resuming_scene()
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 412)

    async with daemon(scene) as running:
        await anyio.sleep(60)
        await Operator(running).stop("A-1", False)
        await anyio.sleep(30)
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
        (first,) = await rows(scene)
        await Operator(running).retry("A-1", resume=True)
        await anyio.sleep(60)

    watch = scene.pulls.asked[-1][0]
    assert first.outcome is not None
    assert first.outcome.kind is OutcomeKind.CANCELLED
    assert (watch.since, watch.accepted) == (first.launched_at, 412)
    assert watch.dispatch != first.dispatch.id


@pytest.mark.parametrize("trouble", ["lease", "program", "worktree"])
async def test_a_launch_that_fails_gives_the_worktree_back(trouble: str) -> None:
    scene, _ = a_resuming_scene()

    def stumble(*_: object) -> None:
        raise Refused("no program to run the agent with")

    async with daemon(scene) as running:
        operator = Operator(running)
        await operator.stop("A-1", False)
        await anyio.sleep(60)
        (first,) = await rows(scene)
        before = scene.executor.on_launch
        match trouble:
            case "lease":
                scene.leases.denied = Denied("held by somebody", NOW + timedelta(hours=9))
            case "program":
                scene.executor.on_launch = stumble
            case _:
                scene.worktrees.failing = "the lock is held"
        await operator.retry("A-1", resume=True)
        await anyio.sleep(3600)
        launched = list(scene.executor.launched)
        why = await operator.why("A-1")
        holder = scene.worktrees.holders["/w/a-1"]
        scene.leases.denied, scene.executor.on_launch = None, before
        scene.worktrees.failing = ""
        await operator.resume()
        await operator.retry("A-1", resume=True)
        await anyio.sleep(60)

        assert launched == ["A-1"]
        assert holder == first.dispatch.id
        assert why.startswith("parked: ")
        assert "`retry A-1 --resume` goes on with it" in why
        assert scene.executor.launched == ["A-1", "A-1"]
        assert scene.worktrees.there == {"a-1"}


async def test_a_session_that_fails_again_is_not_begun_anew_by_itself() -> None:
    """An exit code would be tried again; but in a new worktree, without what was done in this."""
    scene, _ = a_resuming_scene()

    async with daemon(scene) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
        await Operator(running).retry("A-1", resume=True)
        await anyio.sleep(10)
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(3600)

        assert scene.executor.launched == ["A-1", "A-1"]
        assert "`retry A-1 --resume` goes on with it" in await Operator(running).why("A-1")
        assert scene.worktrees.there == {"a-1"}


async def test_a_session_that_is_not_there_parks_its_gap_and_keeps_the_worktree() -> None:
    scene, _ = a_resuming_scene()

    async with daemon(scene) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
        await Operator(running).retry("A-1", resume=True)
        await anyio.sleep(10)
        scene.executor.agents["A-1"].said = ("Error: No conversation found with session ID: 1",)
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(60)
        last = (await rows(scene))[-1]

        assert last.outcome is not None
        assert last.outcome.cause == "session"
        why = await Operator(running).why("A-1")
        assert "its session cannot be used; `retry A-1` begins anew, the worktree is kept" in why
        assert scene.worktrees.there == {"a-1"}


async def test_why_a_session_cannot_be_gone_on_with() -> None:
    scene, backend = a_resuming_scene()

    async def refused(operator: Operator) -> str:
        with pytest.raises(Refused) as refusal:
            await operator.retry("A-1", resume=True)
        return str(refusal.value)

    async with daemon(scene) as running:
        operator = Operator(running)
        said = [await refused(operator)]
        await operator.stop("A-1", False)
        await anyio.sleep(60)
        scene.world.backend = lambda _name: PlainBackend()
        said.append(await refused(operator))
        scene.world.backend = lambda _name: backend
        scene.worktrees.holders["/w/a-1"] = "another"
        said.append(await refused(operator))
        del scene.worktrees.holders["/w/a-1"]
        said.append(await refused(operator))

    assert [
        text
        for text, part in zip(
            said,
            ("has a dispatch under way", "cannot go on with a session", "is gone", "is gone"),
            strict=True,
        )
        if part not in text
    ] == []


async def test_a_shipped_gap_and_one_that_never_ran_are_refused() -> None:
    scene, _ = a_resuming_scene()
    scene.executor.on_launch = lambda _d, agent: agent.ends(0)
    scene.merge("A-1")

    async with daemon(scene) as running:
        await anyio.sleep(60)
        with pytest.raises(Refused, match="A-1 was shipped; `retry A-1` begins anew"):
            await Operator(running).retry("A-1", resume=True)
        scene.source.replace(a_backlog(a_gap("A-1"), a_gap("B-1", depends_on=("A-9",))))
        await anyio.sleep(60)
        with pytest.raises(Refused, match="B-1 has had no agent yet"):
            await Operator(running).retry("B-1", resume=True)


async def test_a_wish_to_go_on_outlasts_a_restart() -> None:
    """Behaviour C7: without a daemon it is written to the ledger."""
    scene, backend = a_resuming_scene()
    async with daemon(scene) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
    await scene.ledger.request_dispatch("A-1", resume=0)

    async with daemon(scene):
        await anyio.sleep(10)
        found = await rows(scene)

    assert len(backend.resumed) == 1
    assert found[-1].dispatch.resumed is not None
    assert await scene.ledger.requested() == ()


async def test_a_wish_that_cannot_be_fulfilled_is_dropped_and_the_gap_stays_parked() -> None:
    scene, _ = a_resuming_scene()
    async with daemon(scene) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
    await scene.ledger.request_dispatch("A-1", resume=0)
    scene.worktrees.holders.clear()

    async with daemon(scene) as running:
        await anyio.sleep(60)
        why = await Operator(running).why("A-1")

    assert ("request.dropped", "A-1") in [(name, told.get("gap")) for name, told in scene.events]
    assert why.startswith("parked: stopped by an operator")
    assert scene.executor.launched == ["A-1"]


async def test_recovery_gives_back_what_was_taken_over_for_an_agent_that_never_ran() -> None:
    scene, _ = a_resuming_scene()
    async with daemon(scene) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(60)
    (first,) = await rows(scene)
    resumed = replace(
        first.dispatch, id="a-1-later", attempt=2, resumed=taking_over(first), created_at=NOW
    )
    await scene.ledger.add(resumed)
    scene.worktrees.holders["/w/a-1"] = "a-1-later"

    async with daemon(scene) as running:
        await anyio.sleep(60)
        await Operator(running).retry("A-1", resume=True)
        await anyio.sleep(10)

        assert scene.worktrees.there == {"a-1"}
        assert scene.executor.launched == ["A-1", "A-1"]
        assert (await rows(scene))[1].state == "aborted"
