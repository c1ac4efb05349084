"""What every executor promises (`core.ports.Executor` and `core.ports.Agent`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.adapters.local import LocalExecutor
from chump_orchestrator.core.agent import Agent
from chump_orchestrator.core.dispatch import Command, Deadlines, Workspace
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import StopReason
from chump_orchestrator.core.ports import Executor
from tests.builders import a_dispatch

QUICK = Command(("sh",), ("-c", "cat; echo; echo said; echo ERROR no >&2; exit 7"))
LASTING = Command(("sh",), ("-c", "echo ready; exec sleep 600"))


class RealClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Place:
    """Where agents run in these tests, and an executor that runs them there."""

    executor: Executor
    workspace: Workspace

    async def launch(self, command: Command, dispatch_id: str = "one") -> Agent:
        """Launch an agent with the brief `do it`."""
        deadlines = Deadlines(soft=timedelta(minutes=1), grace=timedelta(seconds=5))
        dispatch = a_dispatch(dispatch_id, deadlines=deadlines)
        return await self.executor.launch(dispatch, self.workspace, command, "do it")


@pytest.fixture(params=["local"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Hand out an executor of the kind that the test is run against; ends its agents."""
    executor = LocalExecutor(
        state=tmp_path / "state",
        environment=lambda _patterns: {"PATH": os.environ["PATH"]},
        secrets=lambda _environment: (),
        overlay={},
        clock=RealClock(),
        python=sys.executable,
    )
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    yield Place(executor, Workspace(str(worktree), "claude/infra-1", "0" * 40))
    for dispatch_id in await executor.known():
        agent = await executor.attach(dispatch_id)
        if agent is not None and agent.exit is None:
            await agent.stop(StopReason.TEARDOWN, now=True)
            await agent.follow(lambda _line: None)


async def test_an_agent_works_in_its_worktree_on_its_brief(place: Place) -> None:
    lines: list[str] = []

    agent = await place.launch(Command(("sh",), ("-c", "cat; echo; pwd")))
    ended = await agent.follow(lines.append)

    assert ended.code == 0
    assert lines == ["do it", place.workspace.path]


async def test_a_dispatch_that_was_expected_is_launched_like_any_other(place: Place) -> None:
    async with place.executor.expecting("one"):
        agent = await place.launch(QUICK)

    assert (await agent.follow(lambda _line: None)).code == 7


async def test_of_one_that_was_expected_and_not_launched_nothing_is_known(place: Place) -> None:
    async with place.executor.expecting("one"):
        pass

    assert await place.executor.known() == ()
    assert await place.executor.attach("one") is None


async def test_an_end_is_told_whole(place: Place) -> None:
    before = datetime.now(UTC)
    agent = await place.launch(QUICK)
    assert agent.exit is None or agent.exit.code == 7

    ended = await agent.follow(lambda _line: None)

    assert (ended.code, ended.signal, ended.stopped_by) == (7, None, "")
    assert (ended.spawn_error, ended.lost, ended.clean) == ("", "", True)
    assert agent.exit == ended
    assert agent.active() == ended.active
    assert agent.ended_at is not None
    # Records may have no more than milliseconds.
    assert before - timedelta(seconds=1) <= agent.ended_at <= datetime.now(UTC)
    assert agent.tail() == ("ERROR no",)
    assert "said" in agent.last_words()
    assert "ERROR no" in agent.last_words()


async def test_an_agent_that_has_ended_may_be_followed_again(place: Place) -> None:
    agent = await place.launch(QUICK)

    first = await agent.follow(lambda _line: None)
    second = await agent.follow(lambda _line: None)

    assert first == second
    assert agent.tail() == ("ERROR no",)


async def test_letting_go_of_an_agent_leaves_it_running(place: Place) -> None:
    agent = await place.launch(LASTING)

    with anyio.move_on_after(0.2):
        await agent.follow(lambda _line: None)
    again = await place.executor.attach("one")

    assert agent.exit is None
    assert again is not None
    assert (again.pid, again.exit, again.ended_at) == (agent.pid, None, None)
    assert again.active() > timedelta(0)


async def test_stopping_is_safe_at_any_time(place: Place) -> None:
    agent = await place.launch(LASTING)

    await agent.stop(StopReason.OPERATOR)
    await agent.stop(StopReason.TEARDOWN, now=True)
    ended = await agent.follow(lambda _line: None)
    await agent.stop(StopReason.TEARDOWN)
    await agent.extend(timedelta(hours=1))

    assert ended.stopped_by == "operator"
    assert ended.signal is not None


async def test_an_agent_is_stopped_at_the_deadline_that_was_told(place: Place) -> None:
    agent = await place.launch(LASTING)

    await agent.extend(timedelta(0))

    assert (await agent.follow(lambda _line: None)).stopped_by == "deadline"


async def test_an_agent_without_a_program_is_refused(place: Place) -> None:
    with pytest.raises(Refused, match="no-such-program"):
        await place.launch(Command(("no-such-program",)))

    assert await place.executor.attach("one") is None


async def test_what_was_never_launched_is_not_taken_up(place: Place) -> None:
    assert await place.executor.attach("never") is None
    await place.executor.discard("never")


async def test_dispatches_are_known_until_they_are_discarded(place: Place) -> None:
    for dispatch_id in ("two", "one"):
        agent = await place.launch(QUICK, dispatch_id)
        await agent.follow(lambda _line: None)
    assert sorted(await place.executor.known()) == ["one", "two"]

    await place.executor.discard("two")
    await place.executor.discard("two")

    assert await place.executor.known() == ("one",)
    assert await place.executor.attach("two") is None


async def test_an_agent_taken_up_after_its_end_tells_the_same(place: Place) -> None:
    agent = await place.launch(QUICK)
    ended = await agent.follow(lambda _line: None)
    lines: list[str] = []

    again = await place.executor.attach("one")

    assert again is not None
    assert (again.exit, again.ended_at) == (ended, agent.ended_at)
    assert (again.tail(), again.last_words()) == (agent.tail(), agent.last_words())
    assert await again.follow(lines.append) == ended
    assert lines == ["do it", "said"]
