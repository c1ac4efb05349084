"""Dispatches that the ledger has lost get their rows back, and each one outcome (promise I2)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch, Workspace
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.records import DispatchState, Recalled
from chump_orchestrator.daemon.recovery import recover
from tests.builders import NOW, a_backlog, a_dispatch, a_gap, a_reflection
from tests.daemon.twins import Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

WORKSPACE = Workspace("/w/infra-1", "claude/infra-1", "b" * 40)


def a_lost_dispatch(scene: Scene, number: int = 1) -> ScriptedAgent:
    """Leave the files of a dispatch without a row; its agent runs."""
    dispatch = dispatch_of(number)
    scene.executor.orders[dispatch.id] = Recalled(dispatch, WORKSPACE, dispatch.created_at)
    agent = ScriptedAgent(dispatch.id, 1000 + number, scene.executor.clock)
    scene.executor.agents[dispatch.id] = agent
    return agent


def dispatch_of(number: int) -> Dispatch:
    created_at = NOW - timedelta(hours=9 - number)
    return a_dispatch(f"infra-1-{number}", attempt=number, created_at=created_at)


def the_scene() -> Scene:
    return a_scene(a_backlog(a_gap("INFRA-1")), retry=RetryPolicy(max_attempts=1))


async def test_a_living_agent_without_a_row_is_taken_up() -> None:
    scene = the_scene()
    a_lost_dispatch(scene)

    (taken,) = await recover(scene.world)

    (record,) = await scene.ledger.records()
    assert record == taken.record
    assert record.state is DispatchState.RUNNING
    assert (record.pid, record.workspace) == (1001, WORKSPACE)
    assert record.dispatch == dispatch_of(1)


async def test_an_agent_that_ended_meanwhile_is_left_to_be_judged() -> None:
    scene = the_scene()
    a_lost_dispatch(scene).ends(7)

    (taken,) = await recover(scene.world)

    assert taken.agent is not None
    assert taken.agent.exit is not None
    assert await scene.ledger.outbox() == ()


async def test_what_has_a_reflection_ends_as_that_tells() -> None:
    scene = the_scene()
    a_lost_dispatch(scene).ends(7)
    told = a_reflection("infra-1-1", outcome=OutcomeKind.SHIPPED, pull_number=412)
    await scene.journal.record(told)

    assert await recover(scene.world) == ()

    (record,) = await scene.ledger.records()
    assert record.outcome is not None
    assert record.outcome.kind is OutcomeKind.SHIPPED
    assert record.pull is not None
    assert record.pull.number == 412
    assert record.ended_at == record.dispatch.created_at + timedelta(minutes=30)
    assert "INFRA-1" in await scene.ledger.shipped()


async def test_a_failure_that_was_reflected_on_parks_its_gap_again() -> None:
    scene = the_scene()
    a_lost_dispatch(scene).ends(7)
    cause = Cause.EXIT_CODE
    await scene.journal.record(a_reflection("infra-1-1", outcome=OutcomeKind.KILLED, cause=cause))

    await recover(scene.world)

    (parked,) = await scene.ledger.parked()
    assert parked.gap == "INFRA-1"


async def test_of_several_dispatches_of_a_gap_the_newest_goes_on() -> None:
    """Behaviour K1: a gap is dispatched again only after its dispatch has ended."""
    scene = the_scene()
    for number in (3, 1, 2):
        a_lost_dispatch(scene, number).ends(number)

    (taken,) = await recover(scene.world)

    records = {record.dispatch.id: record for record in await scene.ledger.records()}
    assert taken.record.dispatch.id == "infra-1-3"
    for number in (1, 2):
        outcome = records[f"infra-1-{number}"].outcome
        assert outcome is not None
        assert (outcome.kind, outcome.reason) == (OutcomeKind.KILLED, f"exit code {number}")
    assert [one.dispatch for one in await scene.ledger.outbox()] == ["infra-1-1", "infra-1-2"]


async def test_an_older_dispatch_that_lives_goes_on_before_a_newer_one_that_has_ended() -> None:
    """Promise I1."""
    scene = the_scene()
    a_lost_dispatch(scene, 1)
    a_lost_dispatch(scene, 2).ends(1)

    (taken,) = await recover(scene.world)

    assert taken.record.dispatch.id == "infra-1-1"


async def test_a_row_of_an_older_copy_of_the_ledger_makes_way_for_a_newer_dispatch() -> None:
    scene = the_scene()
    a_lost_dispatch(scene, 1).ends(1)
    await scene.ledger.add(dispatch_of(1))
    a_lost_dispatch(scene, 2)

    (taken,) = await recover(scene.world)

    assert taken.record.dispatch.id == "infra-1-2"
    (ended,) = [r for r in await scene.ledger.records() if not r.state.is_active]
    assert ended.dispatch.id == "infra-1-1"


async def test_what_never_had_an_agent_is_aborted() -> None:
    scene = the_scene()
    a_lost_dispatch(scene)
    scene.worktrees.there.add("infra-1")

    async def never(_dispatch_id: str) -> ScriptedAgent | None:
        return None

    scene.executor.attach = never  # type: ignore[assignment, method-assign]

    assert await recover(scene.world) == ()

    (record,) = await scene.ledger.records()
    assert record.state is DispatchState.ABORTED
    assert scene.worktrees.there == set()


async def test_what_cannot_be_reached_keeps_its_place() -> None:
    """Promise I1: it may be alive."""
    scene = the_scene()
    a_lost_dispatch(scene)
    scene.executor.unreachable = "no answer"

    (taken,) = await recover(scene.world)

    assert not taken.is_reachable


async def test_a_folder_that_tells_nothing_is_left_alone() -> None:
    scene = the_scene()
    a_lost_dispatch(scene)
    scene.executor.orders.clear()

    assert await recover(scene.world) == ()

    assert await scene.ledger.records() == ()


async def test_rows_are_made_once() -> None:
    scene = the_scene()
    a_lost_dispatch(scene).ends(7)
    await scene.journal.record(a_reflection("infra-1-1", outcome=OutcomeKind.STALLED))
    await recover(scene.world)
    before = await scene.ledger.records()

    await recover(scene.world)

    assert await scene.ledger.records() == before


async def test_a_journal_that_is_silent_leaves_it_to_the_forge() -> None:
    scene = the_scene()
    a_lost_dispatch(scene).ends(7)
    await scene.journal.record(a_reflection("infra-1-1", outcome=OutcomeKind.STALLED))
    scene.journal.trouble = "locked"

    (taken,) = await recover(scene.world)

    assert taken.record.dispatch.id == "infra-1-1"
