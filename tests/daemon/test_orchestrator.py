"""The whole daemon in virtual time: what it starts, what it waits for, and how it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.outcome import OutcomeKind, PullState, StopReason
from chump_orchestrator.core.records import Denied, DispatchState, Pause
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import MINUTE, Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

ONCE = Assignment(once=True)


@asynccontextmanager
async def daemon(scene: Scene, assignment: Assignment = ONCE) -> AsyncIterator[Orchestrator]:
    """Run a daemon beside the test; torn down by detaching if it still runs at the end."""
    orchestrator = Orchestrator(scene.world, scene.source, assignment)
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


async def run(scene: Scene) -> Orchestrator:
    """Run a daemon to its own end, within a virtual day and a half."""
    orchestrator = Orchestrator(scene.world, scene.source, ONCE)
    with anyio.fail_after(36 * 3600):
        await orchestrator.run()
    return orchestrator


def ships(scene: Scene) -> None:
    """Have every agent end well, its request merged, the moment it is started."""

    def ship(dispatch: Dispatch, agent: ScriptedAgent) -> None:
        agent.ends(0)

    scene.executor.on_launch = ship
    for gap in scene.source.backlog.gaps:
        scene.merge(gap.id)


async def outcomes(scene: Scene) -> dict[str, OutcomeKind]:
    records = reversed(await scene.ledger.latest(1000))
    return {r.dispatch.gap.id: r.outcome.kind for r in records if r.outcome is not None}


async def test_a_backlog_is_drained_in_the_order_of_its_dependencies() -> None:
    first, second = a_gap("A-1"), a_gap("A-2", depends_on=("A-1",))
    scene = a_scene(a_backlog(second, first))
    ships(scene)

    await run(scene)

    assert scene.executor.launched == ["A-1", "A-2"]
    assert set((await outcomes(scene)).values()) == {OutcomeKind.SHIPPED}
    assert await scene.ledger.outbox() == ()
    assert (scene.worktrees.there, scene.leases.ours) == (set(), {})


async def test_each_agent_is_expected_before_anything_is_made_for_it() -> None:
    """By the id that it is launched with: for another one nothing would be ready."""
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")))
    ships(scene)

    await run(scene)

    assert len(scene.executor.orders) == 2
    assert scene.executor.expected == list(scene.executor.orders)


async def test_no_more_agents_run_at_once_than_there_are_slots() -> None:
    """Behaviour K4; and the freed slot is filled at once, not at a tick."""
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(5))))

    async with daemon(scene) as running:
        assert scene.executor.launched == ["A-0", "A-1"]
        assert running.scheduler.running == 2
        scene.executor.agents["A-0"].ends(1)
        await anyio.sleep(0.5)

        assert scene.executor.launched == ["A-0", "A-1", "A-2"]


async def test_one_that_waits_for_its_request_holds_no_slot() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1)
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)

    async with daemon(scene):
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(5)

        assert scene.executor.launched == ["A-1", "A-2"]


async def test_no_agent_is_started_while_too_many_requests_are_open() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1, max_open_pulls=1)
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)

    async with daemon(scene):
        await anyio.sleep(2)
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(300)
        before = list(scene.executor.launched)
        scene.merge("A-1")
        await anyio.sleep(300)

        assert before == ["A-1"]
        assert scene.executor.launched == ["A-1", "A-2"]


async def test_an_agent_without_a_request_is_stopped_at_twice_its_deadline() -> None:
    """Behaviour P2: overdue at 20 minutes, stopped at 40, killed for the books."""
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with daemon(scene, Assignment()):
        agent = scene.executor.agents["A-1"]
        await anyio.sleep(21 * 60)
        overdue = [name for name, _ in scene.events]
        await anyio.sleep(18 * 60)
        before = list(agent.stops)
        await anyio.sleep(3 * 60)

        assert "dispatch.overdue" in overdue
        assert before == []
        assert agent.stops == [(StopReason.DEADLINE, False)]
        assert (await outcomes(scene))["A-1"] is OutcomeKind.KILLED


async def test_a_silent_forge_stops_nobody_before_three_deadlines() -> None:
    """Behaviour P3; the shim is told of it before the second deadline."""
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with daemon(scene, Assignment()):
        agent = scene.executor.agents["A-1"]
        scene.pulls.is_silent = True
        await anyio.sleep(59 * 60)
        before = list(agent.stops)
        await anyio.sleep(3 * 60)

        assert before == []
        assert agent.hard == 60 * MINUTE
        assert agent.stops == [(StopReason.DEADLINE, False)]
        assert await outcomes(scene) == {}


async def test_a_verdict_waits_for_the_forge_and_then_is_given() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with daemon(scene, Assignment()):
        scene.pulls.is_silent = True
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(3600)
        during = await outcomes(scene)
        scene.merge("A-1")
        scene.pulls.is_silent = False
        await anyio.sleep(60)

        assert during == {}
        assert await outcomes(scene) == {"A-1": OutcomeKind.SHIPPED}


async def test_a_failed_gap_is_tried_once_more_and_then_parked() -> None:
    """Behaviour X1: never simply picked again because it is still open."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.executor.on_launch = lambda _d, agent: agent.ends(7)

    orchestrator = await run(scene)

    assert scene.executor.launched == ["A-1", "A-1"]
    assert "attempt 2 of 2 failed" in await Operator(orchestrator).why("A-1")
    assert orchestrator.scheduler.last["A-1"].reason == "exit code 7"


async def test_a_parked_gap_is_freed_by_an_operator_or_by_its_text() -> None:
    """Behaviour X2."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.executor.on_launch = lambda _d, agent: agent.ends(0)

    async with daemon(scene, Assignment()) as running:
        await anyio.sleep(120)
        parked = len(scene.executor.launched)
        await Operator(running).release("A-1")
        await anyio.sleep(120)
        released = len(scene.executor.launched)
        scene.source.replace(a_backlog(a_gap("A-1", title="another title")))
        await anyio.sleep(120)

        assert (parked, released, len(scene.executor.launched)) == (1, 2, 3)


async def test_five_failures_alike_pause_dispatching_and_one_trial_resumes_it() -> None:
    """Behaviour X5."""
    gaps = (a_gap(f"A-{n}") for n in range(9))
    scene = a_scene(a_backlog(*gaps), max_parallel=1, retry=RetryPolicy(max_attempts=1))
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)

    async with daemon(scene, Assignment()):
        await anyio.sleep(600)
        before = len(scene.executor.launched)
        await anyio.sleep(600)
        trial = len(scene.executor.launched)

        assert before in range(5, 8)  # some were under way when the fifth failure was known
        assert trial == before + 1


async def test_agents_that_die_at_once_are_not_followed_by_the_whole_backlog() -> None:
    """The network is gone: agents end in a moment, and the forge cannot say how."""
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(30))))
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)
    scene.pulls.is_silent = True

    async with daemon(scene, Assignment()):
        await anyio.sleep(3600)

        assert len(scene.executor.launched) == 5


async def test_a_refused_lease_abandons_the_race_and_undoes_the_worktree() -> None:
    """Behaviour D2."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.leases.denied = Denied("held by somebody", NOW + timedelta(hours=2))

    async with daemon(scene, Assignment()):
        await anyio.sleep(3600)

        assert await outcomes(scene) == {"A-1": OutcomeKind.RACE_ABANDONED}
        assert scene.worktrees.there == set()
        assert scene.executor.launched == []


async def test_a_failed_launch_is_spawn_failed_and_leaves_nothing() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.worktrees.failing = "no room in the repository"

    orchestrator = await run(scene)

    assert orchestrator.scheduler.last["A-1"].kind is OutcomeKind.SPAWN_FAILED
    assert scene.leases.ours == {}


async def test_a_base_that_cannot_be_had_postpones_and_records_nothing() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.worktrees.base_failing = "the remote does not answer"
    ships(scene)

    async with daemon(scene, Assignment()):
        await anyio.sleep(600)
        before = await scene.ledger.latest(10)
        scene.worktrees.base_failing = ""
        await anyio.sleep(120)

        assert before == ()
        assert scene.executor.launched == ["A-1"]


async def test_a_teardown_stops_all_agents_and_settles_them_as_cancelled() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2"), a_gap("A-3")))

    async with daemon(scene, Assignment()) as running:
        running.end(Manner.TEARDOWN)
        await anyio.sleep(60)

        assert set((await outcomes(scene)).values()) == {OutcomeKind.CANCELLED}
        assert scene.executor.launched == ["A-1", "A-2"]
        assert scene.leases.ours == {}


async def test_a_second_signal_kills_what_does_not_obey() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with daemon(scene, Assignment()) as running:
        agent = scene.executor.agents["A-1"]
        agent.obeys = False
        running.end(Manner.TEARDOWN)
        await anyio.sleep(5)
        running.kill()
        await anyio.sleep(20)

        assert agent.stops == [(StopReason.TEARDOWN, False), (StopReason.TEARDOWN, True)]
        assert await outcomes(scene) == {"A-1": OutcomeKind.CANCELLED}


async def test_a_drain_waits_for_agents_and_leaves_open_requests_on_record() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1)
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)
    orchestrator = Orchestrator(scene.world, scene.source, Assignment())

    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        orchestrator.end(Manner.DRAIN)
        await anyio.sleep(60)
        scene.executor.agents["A-1"].ends(0)

    assert scene.executor.launched == ["A-1"]
    (record,) = await scene.ledger.records(active=True)
    assert record.state is DispatchState.EXITED


@asynccontextmanager
async def with_an_open_request() -> AsyncIterator[tuple[Scene, Orchestrator]]:
    """Have an agent at work for a minute whose request is open; end with the daemon."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)
    orchestrator = Orchestrator(scene.world, scene.source, Assignment())

    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(60)
        yield scene, orchestrator


async def test_a_drain_asks_once_more_for_a_request_that_its_agent_may_have_merged() -> None:
    async with with_an_open_request() as (scene, orchestrator):
        orchestrator.end(Manner.DRAIN)
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)

    assert await outcomes(scene) == {"A-1": OutcomeKind.SHIPPED}


async def test_a_drain_does_not_wait_long_for_a_forge_that_is_silent() -> None:
    async with with_an_open_request() as (scene, orchestrator):
        scene.pulls.is_silent = True
        scene.executor.agents["A-1"].ends(0)
        orchestrator.end(Manner.DRAIN)
        began = scene.world.clock.monotonic()

    assert scene.world.clock.monotonic() - began < 40
    assert await outcomes(scene) == {}


@pytest.mark.parametrize("manner", [Manner.DRAIN, Manner.TEARDOWN])
async def test_an_end_waits_no_longer_than_for_the_answer_of_the_forge(manner: Manner) -> None:
    async with with_an_open_request() as (scene, orchestrator):
        orchestrator.end(manner)
        if manner is Manner.DRAIN:
            scene.executor.agents["A-1"].ends(0)
        began = scene.world.clock.monotonic()

    assert scene.world.clock.monotonic() - began < 2


async def test_a_second_signal_shortens_the_last_looks_of_a_drain() -> None:
    async with with_an_open_request() as (scene, orchestrator):
        scene.pulls.is_silent = True
        scene.executor.agents["A-1"].ends(0)
        orchestrator.end(Manner.DRAIN)
        await anyio.sleep(1)
        began = scene.world.clock.monotonic()
        orchestrator.end(Manner.TEARDOWN)
        orchestrator.kill()

    assert scene.world.clock.monotonic() - began < 2


async def test_after_a_detach_the_next_daemon_goes_on_with_the_same_agents() -> None:
    """Promise I8."""
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")))

    async with daemon(scene, Assignment()):
        pids = {gap: agent.pid for gap, agent in scene.executor.agents.items()}
    between = await outcomes(scene)
    scene.executor.agents["A-2"].ends(3)  # while nobody looks
    async with daemon(scene, Assignment()) as second:
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

        assert between == {}
        assert {gap: agent.pid for gap, agent in scene.executor.agents.items()} != {}
        assert pids["A-1"] == 1000
        assert (await outcomes(scene))["A-1"] is OutcomeKind.SHIPPED
        assert second.scheduler.last["A-2"].reason == "exit code 3"


async def test_paused_means_that_nothing_is_started_and_what_runs_goes_on() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    await scene.ledger.set_pause(Pause("operator", "lunch", NOW))
    ships(scene)

    async with daemon(scene, Assignment()) as running:
        await anyio.sleep(600)
        before = list(scene.executor.launched)
        await Operator(running).resume()
        await anyio.sleep(5)

        assert before == []
        assert scene.executor.launched == ["A-1"]


async def test_an_operator_stops_one_agent_and_its_gap_is_not_started_again() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with daemon(scene, Assignment()) as running:
        await Operator(running).stop("A-1", False)
        await anyio.sleep(600)

        assert scene.executor.launched == ["A-1"]
        assert await Operator(running).why("A-1") == "parked: stopped by an operator"


async def test_a_retry_dispatches_what_was_shipped_once_more() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    ships(scene)

    async with daemon(scene, Assignment()) as running:
        await anyio.sleep(60)
        before = list(scene.executor.launched)
        await Operator(running).retry("A-1")
        await anyio.sleep(60)

        assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])


async def test_a_bug_in_one_dispatch_harms_no_other() -> None:
    """Promise I6."""
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")))
    ships(scene)
    ship = scene.executor.on_launch

    def stumble(dispatch: Dispatch, agent: ScriptedAgent) -> None:
        if "a-1" in agent.id:
            raise RuntimeError("a bug")
        ship(dispatch, agent)

    scene.executor.on_launch = stumble

    await run(scene)

    assert await outcomes(scene) == {"A-2": OutcomeKind.SHIPPED}


async def test_status_tells_what_is_under_way() -> None:
    """Behaviour C6."""
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2"), a_gap("A-3")))

    async with daemon(scene, Assignment()) as running:
        told = await Operator(running).status()

    assert told["slots"] == {"used": 2, "total": 2}
    assert told["ready"] == 1
    dispatches = told["dispatches"]
    assert isinstance(dispatches, list)
    assert [d["gap"] for d in dispatches] == ["A-1", "A-2"]
    assert [d["state"] for d in dispatches] == ["running", "running"]
