"""The machine is kept awake while agents run, in virtual time, by a twin of what does that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio
import pytest

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.daemon import awake
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap
from tests.daemon.twins import Scene, a_scene
from tests.daemon.wakeful import ScriptedWakefulness

pytestmark = pytest.mark.looptime


@asynccontextmanager
async def a_daemon(scene: Scene, wakefulness: ScriptedWakefulness) -> AsyncIterator[Orchestrator]:
    """Run a daemon with the task beside it; detached at the end."""
    orchestrator = Orchestrator(
        scene.world,
        scene.source,
        Assignment(),
        beside=(partial(awake.run, wakefulness=wakefulness),),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


async def test_the_machine_is_kept_awake_from_the_first_agent_to_the_last() -> None:
    scene = a_scene(a_backlog(a_gap("INFRA-1"), a_gap("INFRA-2")))
    wakefulness = ScriptedWakefulness()

    async with a_daemon(scene, wakefulness):
        both = wakefulness.is_held
        first, second = scene.executor.agents.values()
        first.ends(1)
        await anyio.sleep(5)
        one = wakefulness.is_held
        second.ends(1)
        await anyio.sleep(5)
        none = wakefulness.is_held

    assert (both, one, none) == (True, True, False)


async def test_nothing_is_held_while_there_is_nothing_to_do() -> None:
    wakefulness = ScriptedWakefulness()

    async with a_daemon(a_scene(a_backlog()), wakefulness):
        await anyio.sleep(3600)
        asked = list(wakefulness.asked)

    assert asked == []


async def test_a_daemon_that_lets_go_of_its_agents_lets_the_machine_sleep() -> None:
    wakefulness = ScriptedWakefulness()

    async with a_daemon(a_scene(a_backlog(a_gap("INFRA-1"))), wakefulness):
        assert wakefulness.is_held

    assert not wakefulness.is_held


async def test_what_is_held_is_looked_after() -> None:
    """Whoever keeps the machine awake for us may have been ended by others."""
    wakefulness = ScriptedWakefulness()

    async with a_daemon(a_scene(a_backlog(a_gap("INFRA-1"))), wakefulness):
        wakefulness.is_held = False
        await anyio.sleep(2 * awake.LOOK_AGAIN.total_seconds())

        assert wakefulness.is_held


@pytest.mark.parametrize("trouble", [Refused("no"), Unavailable("not now")])
async def test_where_it_cannot_be_had_it_is_tried_once_for_each_time(trouble: Exception) -> None:
    scene = a_scene(a_backlog(a_gap("INFRA-1")))
    wakefulness = ScriptedWakefulness(trouble)

    async with a_daemon(scene, wakefulness):
        await anyio.sleep(600)
        asked_while_one_runs = wakefulness.asked.count("hold")
        (agent,) = scene.executor.agents.values()
        agent.ends(1)
        await anyio.sleep(600)  # the gap is tried again, and so is this

    assert asked_while_one_runs == 1
    assert [name for name, _ in scene.events].count("dispatch.launched") == 2
    assert wakefulness.asked.count("hold") == 2


async def test_settings_say_whether_and_a_reload_changes_it() -> None:
    scene = a_scene(a_backlog(a_gap("INFRA-1")), keep_awake=False)
    wakefulness = ScriptedWakefulness()

    async with a_daemon(scene, wakefulness):
        before = wakefulness.is_held
        scene.world.policies = replace(scene.world.policies, keep_awake=True)
        await anyio.sleep(awake.LOOK_AGAIN.total_seconds() + 1)
        after = wakefulness.is_held
        scene.world.policies = replace(scene.world.policies, keep_awake=False)
        await anyio.sleep(awake.LOOK_AGAIN.total_seconds() + 1)
        at_last = wakefulness.is_held

    assert (before, after, at_last) == (False, True, False)
