"""How a daemon tells of itself: its readiness, its numbers, and every change of its state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.errors import RateLimited, Unavailable
from chump_orchestrator.core.records import ForgeBudget, Vitals
from chump_orchestrator.core.testimony import Progress, Usage
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap
from tests.daemon.twins import PlainBackend, Scene, a_scene

pytestmark = pytest.mark.looptime

ONE_TRY = RetryPolicy(max_attempts=1)


@asynccontextmanager
async def a_daemon(scene: Scene) -> AsyncIterator[Orchestrator]:
    """A daemon from its first moment on; detached at the end."""
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        yield daemon
        daemon.end(Manner.DETACH)


async def test_it_is_ready_after_recovery_and_until_it_begins_to_end() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    records = scene.ledger.records

    async def slow(**which: bool) -> Any:
        await anyio.sleep(10)
        return await records(**which)

    scene.ledger.records = slow  # type: ignore[method-assign]
    async with a_daemon(scene) as daemon:
        operator = Operator(daemon)
        await anyio.sleep(5)
        during = operator.why_not_ready()
        is_known = daemon.is_ready
        await anyio.sleep(60)
        after = operator.why_not_ready()
        daemon.end(Manner.DRAIN)
        ending = operator.why_not_ready()
        scene.executor.agents["A-1"].ends(1)

    assert during == "starting: what an earlier daemon left is being taken up"
    assert not is_known
    assert after == ""
    assert ending == "draining: nothing is started any more"


async def test_a_pause_leaves_it_ready() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        await anyio.sleep(1)
        operator = Operator(daemon)
        await operator.pause("lunch")

        assert operator.why_not_ready() == ""
        assert (await operator.vitals()).is_paused


async def test_its_numbers_are_those_of_what_it_does() -> None:
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(1, 6))), retry=ONE_TRY)

    async with a_daemon(scene) as daemon:
        operator = Operator(daemon)
        await anyio.sleep(60)
        first = await operator.vitals()
        await anyio.sleep(21 * 60)
        late = await operator.vitals()
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(60)
        last = await operator.vitals()

    assert first == Vitals(
        is_ready=True,
        is_paused=False,
        running=2,
        overdue=0,
        silent=0,
        slots=2,
        ready=3,
        open_pulls=0,
        is_backlog_stale=False,
        looks=first.looks,
        failed_looks={},
        forge_silent_s=0.0,
        unstored=0,
        parked=0,
        outbox=0,
        budget=first.budget,
    )
    assert first.looks > 0
    assert (late.overdue, late.silent, late.ready) == (2, 2, 3)
    assert (last.running, last.ready, last.parked) == (2, 2, 1)


async def test_the_turns_of_its_loop_are_told_where_somebody_counts_them() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))

    async with a_daemon(scene) as daemon:
        operator, clock = Operator(daemon), scene.world.clock
        await anyio.sleep(60)
        uncounted = (await operator.vitals()).turns, (await operator.status())["daemon"]
        for took_s in (0.002, 0.25, 0.001):
            scene.world.turns.count(took_s, clock.monotonic())
        counted = (await operator.vitals()).turns, (await operator.status())["daemon"]
        await anyio.sleep(30 * 60)
        later = (await operator.status())["daemon"]

    assert (uncounted[0], cast("Any", uncounted[1])["loop"]) == (None, None)
    assert counted[0] is not None
    assert counted[0].total_s == pytest.approx(0.253)
    assert cast("Any", counted[1])["loop"] == {
        "turns": 3,
        "slow_turns": 1,
        "longest_turn_ms": 250.0,
    }
    assert cast("Any", later)["loop"]["longest_turn_ms"] == 0.0


async def test_looks_that_fail_are_counted_by_how_they_did() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    look, limited = scene.pulls.look, 2

    async def limiting(watches: Any) -> Any:
        nonlocal limited
        limited -= 1
        if limited >= 0:
            raise RateLimited("too often")
        return await look(watches)

    scene.pulls.look = limiting  # type: ignore[method-assign]
    scene.pulls.is_silent = True
    async with a_daemon(scene) as daemon:
        operator = Operator(daemon)
        await anyio.sleep(60)
        silent = await operator.vitals()
        scene.pulls.is_silent = False
        await anyio.sleep(120)
        heard = await operator.vitals()

    assert silent.failed_looks["rate_limited"] == 2
    assert silent.failed_looks["unavailable"] > 0
    assert 50 < silent.forge_silent_s <= 60
    assert (silent.looks, heard.forge_silent_s) == (0, 0.0)
    assert heard.looks > 0
    assert [e for e, _ in scene.events if e.startswith("pulls.")] == [
        "pulls.unavailable",
        "pulls.recovered",
    ]


async def test_what_the_forge_still_grants_is_told_where_it_says() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.pulls.budget = ForgeBudget(left=4321)  # type: ignore[attr-defined]

    async with a_daemon(scene) as daemon:
        assert (await Operator(daemon).vitals()).forge_budget == ForgeBudget(left=4321)


async def test_a_ledger_that_does_not_answer_delays_nobody_and_what_it_lacks_is_counted() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)

    async def never(*_: object) -> Any:
        await anyio.sleep_forever()

    async def refusing(*_: object) -> None:
        raise Unavailable("locked")

    async with a_daemon(scene) as daemon:
        operator = Operator(daemon)
        await anyio.sleep(30)
        settle = scene.ledger.settle
        scene.ledger.parked = never  # type: ignore[method-assign]
        scene.ledger.settle = refusing  # type: ignore[method-assign,assignment]
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(5)
        with anyio.fail_after(1):
            without = await operator.vitals()
        scene.ledger.settle = settle  # type: ignore[method-assign]
        await anyio.sleep(5)
        with anyio.fail_after(1):
            again = await operator.vitals()

    assert (without.parked, without.outbox, without.unstored) == (None, None, 1)
    assert again.unstored == 0


async def test_e1_every_change_of_state_is_told() -> None:
    """Behaviour E1: from the daemon's start to its end, of dispatches, gaps and brakes."""
    backlog = a_backlog(a_gap("A-1"), a_gap("A-2"))
    scene = a_scene(backlog, retry=ONE_TRY, max_parallel=1)

    async with a_daemon(scene) as daemon:
        operator = Operator(daemon)
        await anyio.sleep(25 * 60)
        await operator.pause("lunch")
        await operator.stop("A-1", now=False)
        await anyio.sleep(60)
        await operator.release("A-1")
        await operator.resume()
        await anyio.sleep(60)
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(120)

    events = [(event, str(fields.get("gap", ""))) for event, fields in scene.events]
    assert [event for event, gap in events if gap == "A-1"] == [
        "dispatch.launched",
        "dispatch.silent",
        "dispatch.overdue",
        "agent.stopping",
        "agent.exited",
        "dispatch.settled",
        "dispatch.tidied",
        "gap.freed",
        "dispatch.launched",
        "agent.exited",
        "pull.changed",
        "dispatch.settled",
        "dispatch.tidied",
    ]
    assert [event for event, gap in events if not gap] == [
        "backlog.loaded",
        "daemon.started",
        "dispatching.paused",
        "dispatching.resumed",
        "daemon.ending",
        "daemon.stopped",
    ]


class Counting(PlainBackend):
    """Tells what was used."""

    def read(self, line: str) -> Usage | Progress | None:
        return Usage(cost_usd=0.5, tokens=1000) if line == "used" else None


async def test_what_a_dispatch_cost_and_who_did_it_is_told_with_its_end() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), retry=ONE_TRY)
    scene.world.backend = lambda _name: Counting()

    async with a_daemon(scene):
        await anyio.sleep(60)
        scene.executor.agents["A-1"].writes("used")
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(60)

    (settled,) = [fields for event, fields in scene.events if event == "dispatch.settled"]
    assert (settled["backend"], settled["cost_usd"], settled["tokens"]) == ("claude", 0.5, 1000)


async def test_a_brake_that_holds_by_itself_is_told() -> None:
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(9))), retry=ONE_TRY)
    scene.executor.on_launch = lambda _d, agent: agent.ends(1)

    async with a_daemon(scene):
        await anyio.sleep(timedelta(minutes=10).total_seconds())

    paused = [fields for event, fields in scene.events if event == "dispatching.paused"]
    assert [(one["by"], one["reason"]) for one in paused] == [("fuse", "exit-code")]


async def test_who_tells_of_it_is_there_from_the_first_moment_to_the_last() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    seen: list[object] = []

    async def beside(daemon: Orchestrator) -> None:
        seen.append(daemon.is_ready)
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(daemon.ending)

    load = scene.source.load

    async def slow() -> Any:
        await anyio.sleep(5)
        return await load()

    scene.source.load = slow  # type: ignore[method-assign]
    daemon = Orchestrator(scene.world, scene.source, Assignment(), beside=[beside])
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(60)
        daemon.end(Manner.DETACH)

    assert seen == [False, Manner.DETACH]
