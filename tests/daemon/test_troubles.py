"""What may go wrong around dispatches, and must cost nobody an agent, a lease or an outcome.

Each test holds one promise against one trouble: ledger, forge, shim, lease or disk that fails for
a while, operators that change their minds, and limits that hold whatever else happens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from chump_orchestrator.core.backlog import assemble
from chump_orchestrator.core.brakes import Fuse, RetryPolicy
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import Gap, Kind
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState, StopReason
from chump_orchestrator.core.records import Denied, DispatchState, Lease, Record, Settlement
from chump_orchestrator.daemon import housekeeping
from chump_orchestrator.daemon.account import account
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_dispatch, a_gap, a_reflection
from tests.daemon.twins import MINUTE, Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

ONCE = Assignment(once=True)
ONE_TRY = RetryPolicy(max_attempts=1)


@asynccontextmanager
async def a_daemon(
    scene: Scene, assignment: Assignment | None = None
) -> AsyncIterator[Orchestrator]:
    """A daemon, a second after its start; detached at the end."""
    daemon = Orchestrator(scene.world, scene.source, assignment or Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(1)
        yield daemon
        daemon.end(Manner.DETACH)


async def run_once(scene: Scene, patience: timedelta = timedelta(hours=2)) -> Orchestrator:
    daemon = Orchestrator(scene.world, scene.source, ONCE)
    with anyio.fail_after(patience.total_seconds()):
        await daemon.run()
    return daemon


async def outcomes(scene: Scene) -> list[tuple[str, str]]:
    return [
        (one.dispatch.gap.id, str(one.outcome.kind))
        for one in await scene.ledger.records()
        if one.outcome is not None
    ]


def first_times(times: int, trouble: Exception, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work`, failing so many times first."""
    left = times

    async def failing(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise trouble
        return await work(*args, **options)

    return failing


LOCKED = Unavailable("the database is locked")


async def test_an_agent_is_not_given_up_because_its_start_cannot_be_written_down() -> None:
    """Promises I1 and I2."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    real = scene.ledger.update
    refused: list[Record] = []

    async def update(dispatch_id: str, record: Record) -> None:
        if record.state is DispatchState.RUNNING and not refused:
            refused.append(record)
            raise LOCKED
        await real(dispatch_id, record)

    scene.ledger.update = update  # type: ignore[method-assign]
    async with a_daemon(scene):
        await anyio.sleep(600)

        assert refused
        assert scene.executor.launched == ["A-1"]
        assert list(scene.leases.ours.values()) == ["A-1"]
        assert scene.executor.agents["A-1"].stops == []

        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(5)
        assert await outcomes(scene) == [("A-1", "killed")]


async def test_x2_what_was_asked_for_by_name_is_not_picked_a_second_time() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")))
    await scene.ledger.request_dispatch("A-1")

    async with a_daemon(scene) as daemon:
        assert sorted(scene.executor.launched) == ["A-1", "A-2"]
        assert sorted(daemon.scheduler.roster) == ["A-1", "A-2"]


@pytest.mark.parametrize(
    ("assignment", "launched"),
    [
        (Assignment(limit=1), ["B-1"]),
        (Assignment(gaps=frozenset({"A-1"})), ["A-1"]),
        (Assignment(gaps=frozenset({"A-1", "B-1"}), limit=1), ["B-1"]),
    ],
)
async def test_what_was_asked_for_keeps_to_the_limits_of_the_run(
    assignment: Assignment, launched: list[str]
) -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2"), a_gap("B-1", status="done")))
    await scene.ledger.request_dispatch("B-1")

    async with a_daemon(scene, assignment):
        assert scene.executor.launched == launched


async def test_x5_what_was_asked_for_is_the_trial_itself() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("B-1", status="done")))
    await scene.ledger.request_dispatch("B-1")
    await scene.ledger.set_fuse(
        Fuse(cause=Cause.EXIT_CODE, blown_until=NOW - MINUTE, wait=15 * MINUTE)
    )

    async with a_daemon(scene) as daemon:
        await anyio.sleep(60)
        assert scene.executor.launched == ["B-1"]
        assert daemon.scheduler.brakes.fuse.trial == daemon.scheduler.roster["B-1"].dispatch


async def test_x2_what_was_asked_for_is_not_forgotten_while_nothing_can_be_dispatched() -> None:
    scene = a_scene(a_backlog(a_gap("B-1", status="done")))
    scene.worktrees.base_failing = "no network"
    await scene.ledger.request_dispatch("B-1")

    async with a_daemon(scene):
        assert scene.executor.launched == []
        scene.worktrees.base_failing = ""
        await anyio.sleep(60)
        assert scene.executor.launched == ["B-1"]
        assert await scene.ledger.requested() == ()


async def test_i1_an_agent_that_cannot_be_reached_keeps_its_place_until_it_can() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1)
    async with a_daemon(scene):
        pass
    scene.executor.unreachable = "its shim does not answer"

    async with a_daemon(scene) as daemon:
        await anyio.sleep(600)
        assert list(scene.leases.ours.values()) == ["A-1"]
        assert scene.executor.launched == ["A-1"], "its slot is held, and it is not started twice"
        assert daemon.scheduler.brakes.why() == ""

        scene.executor.unreachable = ""
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(120)
        assert await outcomes(scene) == [("A-1", "shipped")]
        assert scene.executor.launched == ["A-1", "A-2"]


@pytest.mark.parametrize(
    "trouble", [ConfigError("there are several remotes"), Refused("no commit")]
)
async def test_c8_a_run_does_not_wait_for_what_waiting_does_not_mend(trouble: Exception) -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")))

    async def refresh(*, at_least: datetime | None = None) -> str:
        raise trouble

    scene.worktrees.refresh = refresh  # type: ignore[method-assign]
    daemon = await run_once(scene, timedelta(seconds=5))

    told = await account(daemon.scheduler, interrupted=False)
    assert told.held_up == str(trouble)
    assert told.has_failed
    assert {one.id: str(trouble) in one.reason for one in told.left} == {"A-1": True, "A-2": True}


async def test_c8_a_run_ends_when_the_disk_stays_full() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.worktrees.short = "the disk is full"

    daemon = await run_once(scene, timedelta(minutes=10))

    assert (await account(daemon.scheduler, interrupted=False)).held_up == "the disk is full"


async def test_c8_a_run_survives_a_ledger_that_does_not_answer_at_its_beginning() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.merge("A-1")
    scene.executor.on_launch = lambda _d, agent: agent.ends(0)
    scene.ledger.requested = first_times(2, LOCKED, scene.ledger.requested)  # type: ignore[method-assign]

    await run_once(scene)

    assert await outcomes(scene) == [("A-1", "shipped")]


async def test_c8_a_run_does_not_wait_for_somebody_else_s_lease() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.leases.denied = Denied("held by somebody", NOW + timedelta(hours=4))

    daemon = await run_once(scene, timedelta(minutes=1))

    told = await account(daemon.scheduler, interrupted=False)
    assert [(one.id, one.reason[:7]) for one in told.left] == [("A-1", "leased:")]
    assert told.has_failed


async def test_a_forge_that_cannot_be_asked_at_all_harms_no_agent() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async def look(watches: object) -> Any:
        raise ConfigError("the remote is not on GitHub")

    scene.pulls.look = look  # type: ignore[method-assign]
    async with a_daemon(scene):
        await anyio.sleep(300)
        assert scene.executor.agents["A-1"].stops == []


async def test_what_cannot_be_asked_at_all_is_said_before_anything_is_dispatched() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async def check() -> None:
        raise ConfigError("the remote is not on GitHub")

    scene.pulls.check = check  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="not on GitHub"):
        await Orchestrator(scene.world, scene.source, Assignment()).run()
    assert scene.executor.launched == []


async def test_a_gap_that_the_backlog_does_not_have_is_no_run() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    with pytest.raises(ConfigError, match="NOPE-1"):
        await Orchestrator(
            scene.world, scene.source, Assignment(gaps=frozenset({"NOPE-1"}), once=True)
        ).run()


async def test_l2_a_lease_that_is_given_back_is_noticed_soon() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.leases.others["x"] = Lease("A-1", "somebody", NOW + timedelta(hours=4))

    async with a_daemon(scene):
        await anyio.sleep(60)
        assert scene.executor.launched == []
        scene.leases.others.clear()
        await anyio.sleep(60)
        assert scene.executor.launched == ["A-1"]


@pytest.mark.parametrize(
    ("merged", "outcome"), [(True, OutcomeKind.SHIPPED), (False, OutcomeKind.CANCELLED)]
)
async def test_p4_what_has_shipped_is_shipped_also_when_it_is_stopped(
    merged: bool,
    outcome: OutcomeKind,
) -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        await anyio.sleep(600)
        if merged:
            scene.merge("A-1")
        await Operator(daemon).stop("A-1", now=False)
        await anyio.sleep(10)
        assert await outcomes(scene) == [("A-1", outcome)]


async def test_p4_a_stop_leaves_an_open_request_its_chance_and_a_second_one_does_not() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)
        await anyio.sleep(120)
        await Operator(daemon).stop("A-1", now=False)
        await anyio.sleep(600)
        assert await outcomes(scene) == []

        await Operator(daemon).stop("A-1", now=False)
        await anyio.sleep(60)
        assert await outcomes(scene) == [("A-1", "cancelled")]
        assert [one.reason for one in await scene.ledger.parked()] == ["stopped by an operator"]


async def test_giving_up_does_not_wait_for_ever_for_a_silent_forge() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        scene.pulls.is_silent = True
        for _ in range(2):
            await Operator(daemon).stop("A-1", now=False)
            await anyio.sleep(45)
        assert await outcomes(scene) == [("A-1", "cancelled")]


@pytest.mark.parametrize("earlier", [False, True])
async def test_c8_a_run_leaves_requests_open_after_its_patience(earlier: bool) -> None:
    """Also those of dispatches that an earlier run began; nobody calls them failed for that."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)
    scene.executor.on_launch = lambda _d, agent: agent.ends(0)
    if earlier:
        async with a_daemon(scene):
            await anyio.sleep(30)
    daemon = Orchestrator(
        scene.world, scene.source, Assignment(once=True, pull_wait=timedelta(minutes=3))
    )
    began = scene.world.clock.monotonic()
    with anyio.fail_after(600):
        await daemon.run()

    assert 150 < scene.world.clock.monotonic() - began < 220
    assert await outcomes(scene) == []
    told = await account(daemon.scheduler, interrupted=False)
    assert [one.id for one in told.left] == ["A-1"]

    scene.merge("A-1", 3)
    await run_once(scene)
    assert await outcomes(scene) == [("A-1", "shipped")]


async def test_a_fuse_that_cannot_be_written_down_harms_no_dispatch() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)
    scene.ledger.set_fuse = first_times(1, LOCKED, scene.ledger.set_fuse)  # type: ignore[method-assign]

    daemon = await run_once(scene)

    assert daemon.scheduler.last["A-1"].kind is OutcomeKind.KILLED
    assert scene.leases.ours == {}
    assert scene.worktrees.there == set()
    assert daemon.scheduler.roster == {}


async def test_an_agent_is_followed_again_when_that_was_not_possible_for_a_while() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    def on_launch(_dispatch: object, agent: ScriptedAgent) -> None:
        agent.follow = first_times(  # type: ignore[method-assign]
            3, Unavailable("too many open files"), agent.follow
        )

    scene.executor.on_launch = on_launch
    async with a_daemon(scene) as daemon:
        await anyio.sleep(60)
        assert daemon.scheduler.running == 1
        assert scene.executor.launched == ["A-1"]
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(10)
        assert await outcomes(scene) == [("A-1", "killed")]


async def test_i3_an_agent_whose_dispatch_met_a_bug_keeps_its_slot_and_can_be_stopped() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async def extend(_hard: timedelta) -> None:
        msg = "a bug"
        raise ZeroDivisionError(msg)

    def on_launch(_dispatch: object, agent: ScriptedAgent) -> None:
        agent.extend = extend  # type: ignore[method-assign,assignment]

    scene.executor.on_launch = on_launch
    scene.pulls.is_silent = True
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        # A silent forge moves the deadline on, which is where the bug waits.
        await anyio.sleep(3600 * 3)
        assert daemon.scheduler.roster["A-1"].broken
        assert daemon.scheduler.running == 1
        assert scene.executor.launched == ["A-1"]
        daemon.end(Manner.TEARDOWN)
    assert scene.executor.agents["A-1"].exit is not None


@pytest.mark.parametrize("trouble", [Unavailable("no answer"), Refused("it would not")])
async def test_a_shim_that_refuses_is_asked_to_stop_again(trouble: Exception) -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    def on_launch(_dispatch: object, agent: ScriptedAgent) -> None:
        agent.stop = first_times(2, trouble, agent.stop)  # type: ignore[method-assign]

    scene.executor.on_launch = on_launch
    async with a_daemon(scene) as daemon:
        await Operator(daemon).stop("A-1", now=False)
        await anyio.sleep(120)
        assert await outcomes(scene) == [("A-1", "cancelled")]


async def test_x5_an_operator_s_word_ends_the_trial() -> None:
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(4))))
    await scene.ledger.set_fuse(
        Fuse(cause=Cause.EXIT_CODE, blown_until=NOW - MINUTE, wait=15 * MINUTE)
    )

    async with a_daemon(scene) as daemon:
        assert len(scene.executor.launched) == 1
        await Operator(daemon).resume()
        await anyio.sleep(5)
        assert len(scene.executor.launched) == 2


@pytest.mark.parametrize("manner", [Manner.DETACH, Manner.TEARDOWN])
async def test_the_daemon_ends_although_the_ledger_takes_no_outcome(manner: Manner) -> None:
    """What is not settled is settled by the next start, from the record."""
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)
    real = scene.ledger.settle

    async def settle(*_: object) -> None:
        raise LOCKED

    daemon = Orchestrator(scene.world, scene.source, Assignment())
    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.run)
            await anyio.sleep(1)
            scene.ledger.settle = settle  # type: ignore[method-assign,assignment]
            scene.executor.agents["A-1"].ends(1)
            await anyio.sleep(30)
            daemon.end(manner)
    assert await outcomes(scene) == []

    scene.ledger.settle = real  # type: ignore[method-assign]
    await run_once(scene)
    assert await outcomes(scene) == [("A-1", "killed")]
    assert len(scene.journal.reflections) == 1


@pytest.mark.parametrize("kills", [False, True])
async def test_nothing_is_started_any_more_once_the_daemon_is_to_end(kills: bool) -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    real = scene.worktrees.add

    async def add(*args: Any) -> Any:
        await anyio.sleep(60)
        return await real(*args)

    scene.worktrees.add = add  # type: ignore[method-assign,assignment]
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(1)
        daemon.end(Manner.TEARDOWN)
        if kills:
            daemon.kill()

    assert scene.executor.launched == []
    assert scene.leases.ours == {}
    assert scene.worktrees.there == set()
    (record,) = await scene.ledger.records()
    assert record.state is DispatchState.ABORTED


async def test_a_second_signal_is_not_taken_back() -> None:
    """By what a teardown does when its turn comes."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.executor.on_launch = lambda _d, agent: setattr(agent, "obeys", False)
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(1)
        daemon.end(Manner.TEARDOWN)
        daemon.kill()

    assert scene.executor.agents["A-1"].stops[-1] == (StopReason.TEARDOWN, True)
    assert daemon.scheduler.roster == {}


async def test_x2_a_stop_during_a_launch_parks_the_gap() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async def refresh(*, at_least: datetime | None = None) -> str:
        await anyio.sleep(20)
        raise Unavailable("no network")

    scene.worktrees.refresh = refresh  # type: ignore[method-assign]
    async with a_daemon(scene) as daemon:
        await Operator(daemon).stop("A-1", now=False)
        await anyio.sleep(60)
        assert [one.gap for one in await scene.ledger.parked()] == ["A-1"]
        assert scene.executor.launched == []


async def test_x2_what_was_left_out_of_the_backlog_cannot_be_asked_for() -> None:
    scene = a_scene(assemble([a_gap("A-1", depends_on=("A-1",))]))

    async with a_daemon(scene) as daemon:
        with pytest.raises(Refused, match="depends on itself"):
            await Operator(daemon).retry("A-1")


@pytest.mark.parametrize("what", ["retry", "release"])
async def test_what_is_under_way_is_neither_asked_for_nor_freed(what: str) -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        with pytest.raises(Refused, match="under way"):
            await getattr(Operator(daemon), what)("A-1")


async def test_r6_lessons_that_cannot_be_read_hold_nothing_up() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async def lessons(_gap: Gap) -> tuple[str, ...]:
        raise Unavailable("the journal is damaged")

    scene.world.lessons = lessons
    async with a_daemon(scene):
        assert scene.executor.launched == ["A-1"]


async def test_r7_a_dispatch_records_the_lessons_it_was_given() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async def lessons(gap: Gap) -> tuple[str, ...]:
        return (f"{gap.id} ended killed once", "mind the tests")

    scene.world.lessons = lessons
    async with a_daemon(scene):
        (record,) = await scene.ledger.records()
        assert record.lessons == ("A-1 ended killed once", "mind the tests")


async def test_r6_a_run_without_reflections_keeps_those_that_are_due() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)
    earlier = a_dispatch()
    await scene.ledger.add(earlier)
    due = Settlement(
        Outcome(OutcomeKind.SHIPPED), NOW, a_reflection(earlier.id), None, progress=True, siblings=0
    )
    await scene.ledger.settle(earlier.id, due)
    scene.world.journal = None
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)

    await run_once(scene)

    assert [one.dispatch for one in await scene.ledger.outbox()] == [earlier.id]
    scene.world.journal = scene.journal
    await run_once(scene)
    assert [one.dispatch for one in scene.journal.reflections] == [earlier.id]


async def test_who_listens_cannot_harm_a_dispatch() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)
    heard = []

    def hear(event: str, _fields: object) -> None:
        heard.append(event)
        raise BrokenPipeError

    scene.world.listeners.append(hear)
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)
    daemon = await run_once(scene)

    assert daemon.scheduler.last["A-1"].kind is OutcomeKind.KILLED
    assert len(heard) == 1
    told = [event for event, _ in scene.events]
    assert told[-3:] == ["dispatch.settled", "dispatch.tidied", "daemon.stopped"]


async def test_i5_a_status_needs_no_ledger() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:

        async def never() -> Any:
            await anyio.sleep_forever()

        scene.ledger.pause = never  # type: ignore[method-assign]
        scene.ledger.fuse = never  # type: ignore[method-assign]
        scene.ledger.parked = never  # type: ignore[method-assign]
        with anyio.fail_after(1):
            assert (await Operator(daemon).status())["slots"] == {"used": 1, "total": 2}


async def test_l1_leases_are_renewed_at_once_after_a_start_and_then_by_their_time() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), renewal=MINUTE)
    renewed: list[float] = []

    async def renew(_dispatch: str) -> None:
        renewed.append(round(scene.world.clock.monotonic() - began))

    async with a_daemon(scene):
        pass
    scene.leases.renew = renew  # type: ignore[method-assign,assignment]
    began = scene.world.clock.monotonic()
    async with a_daemon(scene):
        await anyio.sleep(125)

    assert renewed == [0, 60, 120]


async def test_a_clock_that_is_put_back_holds_nothing_up() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.worktrees.base_failing = "no network"

    class Clock:
        def now(self) -> datetime:
            return NOW - timedelta(days=1) + timedelta(seconds=self.monotonic())

        def monotonic(self) -> float:
            return anyio.current_time()

    async with a_daemon(scene) as daemon:
        scene.worktrees.base_failing = ""
        scene.world.clock = Clock()
        daemon.scheduler.bell.ring()
        await anyio.sleep(120)
        assert scene.executor.launched == ["A-1"]


async def test_r4_siblings_are_those_in_flight_when_the_agent_ended() -> None:
    """Not whoever has taken its slot by the time that the outcome is known."""
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(4))), retry=ONE_TRY)

    async with a_daemon(scene):
        scene.executor.agents["A-0"].ends(1)
        await anyio.sleep(10)
        settled = [one for one in await scene.ledger.records() if one.outcome]
        assert [one.siblings for one in settled] == [1]
        assert len(scene.executor.launched) == 3


async def test_what_could_not_be_tidied_is_tried_again() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.merge("A-1")
    scene.executor.on_launch = lambda _d, agent: agent.ends(0)
    scene.worktrees.remove = first_times(  # type: ignore[method-assign]
        2, Unavailable("git is busy"), scene.worktrees.remove
    )

    await run_once(scene)

    assert scene.worktrees.there == set()
    (record,) = await scene.ledger.records()
    assert record.tidied


async def test_c4_what_was_kept_long_enough_is_deleted() -> None:
    scene = a_scene(
        a_backlog(a_gap("A-1"), a_gap("A-2")), retry=ONE_TRY, keep_logs=timedelta(minutes=5)
    )

    async with a_daemon(scene):
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(90)
        assert scene.worktrees.swept == 1, "soon after the start, then once a day"
        assert scene.executor.discarded == []

        await anyio.sleep(300)
        await housekeeping.clean(scene.world)
        assert scene.executor.discarded == [scene.executor.agents["A-1"].id]


async def test_git_packs_what_gathers_at_first_and_as_dispatches_end() -> None:
    scene = a_scene(a_backlog())
    scene.worktrees.maintaining_fails = "the last time went wrong"

    async with anyio.create_task_group() as group:
        group.start_soon(housekeeping.run, scene.world)
        await anyio.sleep(90)
        for times in (1, 2, 3):
            for _ in range(housekeeping.DISPATCHES):
                assert scene.worktrees.maintained == times
                scene.world.tell("dispatch.launched")
                scene.world.tell("dispatch.settled")
                await anyio.sleep(1)
        assert scene.worktrees.maintained == 4
        group.cancel_scope.cancel()


async def test_b5_a_backlog_from_commits_is_believed_at_once() -> None:
    scene = a_scene(a_backlog(a_gap("A-1"), a_gap("A-2", status="done")))
    daemon = Orchestrator(scene.world, scene.source, Assignment(), trusts_backlog=True)
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(1)
        scene.source.replace(a_backlog(a_gap("B-1")))
        await anyio.sleep(3)
        assert [gap.id for gap in daemon.keeper.backlog.gaps] == ["B-1"]
        assert daemon.keeper.problem == ""
        daemon.end(Manner.DETACH)


async def test_a_drain_ends_as_soon_as_only_requests_are_open() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(200)
        scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)
        scene.executor.agents["A-1"].ends(0)
        daemon.end(Manner.DRAIN)
        began = scene.world.clock.monotonic()
    assert scene.world.clock.monotonic() - began < 10


async def test_a_perpetual_gap_that_was_never_begun_has_not_had_its_run() -> None:
    gap = a_gap("S-1", status="perpetual", kind=Kind.SYSTEM)
    scene = a_scene(
        a_backlog(gap), pick=replace(a_scene(a_backlog()).world.policies.pick, kind=None)
    )
    planned = a_dispatch(gap=gap)
    await scene.ledger.add(planned)
    await scene.ledger.abort(planned.id, "nobody wanted it", NOW)

    async with a_daemon(scene):
        assert scene.executor.launched == ["S-1"]
