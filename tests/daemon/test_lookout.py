"""How often the forge is asked, and what of its answers is told (behaviour P5, P8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from chump_orchestrator.core.errors import RateLimited
from chump_orchestrator.core.outcome import Checks, PullRequest, PullState
from chump_orchestrator.core.pull import Review
from chump_orchestrator.core.records import ForgeBudget, Watch
from chump_orchestrator.daemon.lookout import Lookout
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import LoopClock, Scene, ScriptedPulls, a_scene
from tests.daemon.watched import NOBODY

pytestmark = pytest.mark.looptime

INTERVAL = timedelta(seconds=30)


@asynccontextmanager
async def daemon(scene: Scene) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


class Timed(ScriptedPulls):
    """Keeps the seconds at which it was looked at; calls `trouble` before it answers."""

    def __init__(self) -> None:
        super().__init__(LoopClock())
        self.at_s: list[float] = []
        self.trouble: Callable[[], None] = lambda: None

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        self.at_s.append(self.clock.monotonic())
        self.trouble()
        return await super().look(watches)

    @property
    def apart(self) -> list[int]:
        """Whole seconds from each look to the next."""
        return [
            round(after - before)
            for before, after in zip(self.at_s[:-1], self.at_s[1:], strict=True)
        ]


@asynccontextmanager
async def a_lookout(forge: Timed) -> AsyncIterator[Lookout]:
    lookout = Lookout(forge, forge.clock, INTERVAL, lambda *_a, **_k: None, NOBODY)
    lookout.watch(Watch("d", "b", "0" * 40, NOW), lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(lookout.run)
        yield lookout
        group.cancel_scope.cancel()


async def test_while_nothing_changes_the_looks_grow_rarer_up_to_four_intervals() -> None:
    forge = Timed()
    async with a_lookout(forge):
        await anyio.sleep(900)

    assert forge.apart[:7] == [30, 45, 68, 101, 120, 120, 120]


async def test_a_change_and_a_question_bring_them_back() -> None:
    forge = Timed()
    async with a_lookout(forge) as lookout:
        await anyio.sleep(600)
        forge.states["b"] = (PullState.OPEN, 7)
        await anyio.sleep(200)
        changed = forge.apart[-4:]
        await anyio.sleep(600)
        lookout.ask()
        await anyio.sleep(1)
        forge.at_s = forge.at_s[-1:]
        await anyio.sleep(130)

    assert changed[-3:] in ([120, 30, 45], [30, 45, 68])
    assert forge.apart == [30, 45]


async def test_while_the_forge_is_to_be_left_alone_nobody_asks_more_than_once_an_interval() -> None:
    """However often somebody wants to know."""
    forge = Timed()

    def refuse() -> None:
        raise RateLimited("left alone")

    async with a_lookout(forge) as lookout:
        await anyio.sleep(1)
        forge.trouble = refuse
        for _ in range(600):
            lookout.ask()
            await anyio.sleep(1)

    assert len(forge.at_s) <= 600 / 30 + 8


async def test_news_of_a_review_or_a_queue_are_a_change_and_a_merge_state_is_none() -> None:
    request = PullRequest("b", PullState.OPEN, NOW, 7)
    changes: list[dict[str, Any]] = [
        {"review": Review.APPROVED},
        {"is_queued": True},
        {"is_draft": True},
        {"is_armed": True},
        {"failing": ("build",)},
        {"head": "1" * 40},
    ]

    assert all(replace(request, **change).gist != request.gist for change in changes)
    later = replace(request, asked_at=NOW + INTERVAL, url="https://a/b")
    assert later.gist == request.gist


async def test_what_the_forge_was_asked_and_what_a_request_waits_for_is_told() -> None:
    """Behaviour P5, P8, C6."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    budget = ForgeBudget(3, 4, 4996, 5000, NOW + timedelta(hours=1))
    scene.pulls.budget = budget  # type: ignore[attr-defined]
    look = scene.pulls.look

    async def red(watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        answer = await look(watches)
        standing: dict[str, Any] = {
            "checks": Checks.FAILING,
            "failing": ("build",),
            "review": Review.APPROVED,
        }
        return {
            branch: replace(pull, **standing, is_queued=True, url="https://github.com/a/b/pull/7")
            for branch, pull in answer.items()
        }

    scene.pulls.look = red  # type: ignore[method-assign]
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 7)
    async with daemon(scene) as running:
        await anyio.sleep(2)
        told: Any = await Operator(running).status()
        why = await Operator(running).why("A-1")

    (dispatch,) = told["dispatches"]
    assert dispatch["pull"] == {
        "number": 7,
        "state": "open",
        "checks": "failing",
        "failing": ["build"],
        "failing_url": None,
        "review": "approved",
        "merge_state": "unknown",
        "draft": False,
        "queued": True,
        "auto_merge": False,
        "url": "https://github.com/a/b/pull/7",
    }
    assert told["daemon"]["forge"] == {
        "requests": 3,
        "points": 4,
        "points_left": 4996,
        "points_limit": 5000,
        "resets_at": "2026-04-27T13:00:00Z",
    }
    assert why.endswith(
        "; pull request 7 is open, checks failing (build), approved, in the merge queue"
    )


async def test_an_agent_that_prints_numbers_without_end_does_not_use_up_the_budget() -> None:
    """Behaviour P8."""
    scene = a_scene(a_backlog(a_gap("A-1")))
    async with daemon(scene):
        await anyio.sleep(1)
        before = scene.pulls.looks
        for number in range(1, 200):
            scene.executor.agents["A-1"].writes(str(number))
            await anyio.sleep(0.5)

        assert scene.pulls.looks - before <= 10 + 4
