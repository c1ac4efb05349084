"""Worktrees are made ahead of time while gaps wait, and never in a dispatch's way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from chump_orchestrator.daemon import preparing
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap
from tests.daemon.twins import Scene, a_scene

pytestmark = pytest.mark.looptime


@asynccontextmanager
async def a_daemon(scene: Scene) -> AsyncIterator[Orchestrator]:
    """Run a daemon with the task beside it; detached at the end."""
    orchestrator = Orchestrator(scene.world, scene.source, Assignment(), beside=(preparing.run,))
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


def of_gaps(count: int) -> Scene:
    return a_scene(a_backlog(*(a_gap(f"INFRA-{number}") for number in range(count))))


async def test_as_many_are_prepared_as_settings_say() -> None:
    scene = of_gaps(6)

    async with a_daemon(scene):
        assert set(scene.worktrees.prepared) == {2}

    assert scene.worktrees.prepared[-1] == 0


async def test_no_more_are_prepared_than_gaps_wait() -> None:
    scene = of_gaps(3)

    async with a_daemon(scene):
        assert set(scene.worktrees.prepared) == {1}


async def test_with_nobody_waiting_nothing_is_prepared() -> None:
    scene = of_gaps(2)

    async with a_daemon(scene):
        pass

    assert scene.worktrees.prepared == []


async def test_none_are_prepared_before_the_dispatches_that_could_begin_have_begun() -> None:
    scene = of_gaps(6)
    begun: list[int] = []
    prepare = scene.worktrees.prepare

    async def noted(wanted: int) -> None:
        begun.append(len(scene.executor.agents))
        await prepare(wanted)

    scene.worktrees.prepare = noted  # type: ignore[method-assign]
    async with a_daemon(scene):
        assert begun
        assert min(begun) == 2


async def test_a_failure_harms_no_dispatch() -> None:
    scene = of_gaps(3)
    scene.worktrees.preparing_fails = "git fails"

    async with a_daemon(scene):
        first, second = scene.executor.agents.values()
        first.ends(1)
        second.ends(1)
        await anyio.sleep(60)
        assert len(scene.executor.agents) > 2


async def test_settings_that_want_none_let_go_of_those_there_are() -> None:
    scene = of_gaps(6)

    async with a_daemon(scene) as daemon:
        scene.world.policies = replace(scene.world.policies, prepared=0)
        await daemon.reload()
        scene.world.tell("anything")
        await anyio.sleep(1)
        assert scene.worktrees.prepared[-1] == 0
