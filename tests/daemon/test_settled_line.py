"""The canonical line: one `dispatch.settled` for each attempt, with all there is to say of it."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import anyio
import pytest
from structlog.testing import capture_logs

from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.records import Denied, Record, Settlement
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime


async def said_of(scene: Scene, hours: float = 4) -> list[dict[str, object]]:
    """Run a daemon for so long, a detach and a second daemon after it; return its settled lines."""
    with capture_logs() as said:
        for _ in range(2):
            daemon = Orchestrator(scene.world, scene.source, Assignment())
            async with anyio.create_task_group() as group:
                group.start_soon(daemon.run)
                await anyio.sleep(10)
                if "A-6" in daemon.scheduler.roster:
                    await Operator(daemon).stop("A-6", now=False)
                await anyio.sleep(hours * 3600)
                daemon.end(Manner.DETACH)
    return [dict(line) for line in said if line["event"] == "dispatch.settled"]


def in_every_way(dispatch: Dispatch, agent: ScriptedAgent) -> None:
    match dispatch.gap.id:
        case "A-1" | "A-3":
            agent.ends(0)
        case "A-2":
            agent.ends(7)
        case "A-4":
            raise Unavailable("no more processes")
        case _:
            pass  # A-5 overruns its deadline, A-6 is stopped


async def test_every_attempt_has_one_line_however_it_ended() -> None:
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(1, 7))), max_parallel=6)
    scene.executor.on_launch = in_every_way
    scene.merge("A-1", 41)

    lines = await said_of(scene)

    ended = [r for r in await scene.ledger.records() if r.outcome is not None]
    assert Counter(str(line["dispatch"]) for line in lines) == Counter(r.dispatch.id for r in ended)
    assert sorted(map(gist, lines)) == sorted(map(gist_of, ended))
    assert {line["outcome"] for line in lines} == {
        "shipped",
        "killed",
        "stalled",
        "spawn_failed",
        "cancelled",
    }
    assert max(int(str(line["attempt"])) for line in lines) == 2


def gist(line: dict[str, object]) -> str:
    names = ("gap", "dispatch", "backend", "attempt", "outcome", "cause", "reason")
    return repr([line[name] for name in names])


def gist_of(record: Record) -> str:
    dispatch, outcome = record.dispatch, record.outcome
    assert outcome is not None
    return repr(
        [
            dispatch.gap.id,
            dispatch.id,
            dispatch.route.backend,
            dispatch.attempt,
            str(outcome.kind),
            str(outcome.cause) if outcome.cause else None,
            outcome.reason,
        ]
    )


async def test_a_refused_lease_has_its_line_too() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.leases.denied = Denied("held by somebody", NOW + timedelta(hours=40))

    lines = await said_of(scene)

    assert [(line["gap"], line["outcome"]) for line in lines] == [("A-1", "race_abandoned")]


async def test_the_line_waits_for_the_ledger_and_comes_once() -> None:
    """What is told has been written down."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    scene.executor.on_launch = lambda _dispatch, agent: agent.ends(0)
    scene.merge("A-1")
    settle, refusals = scene.ledger.settle, iter(range(5))

    async def busy(dispatch_id: str, settlement: Settlement) -> None:
        if next(refusals, None) is not None:
            raise Unavailable("the database is locked")
        await settle(dispatch_id, settlement)

    scene.ledger.settle = busy  # type: ignore[method-assign]
    lines = await said_of(scene)

    assert [line["outcome"] for line in lines] == ["shipped"]
