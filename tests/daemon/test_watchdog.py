"""What the daemon tells its service manager, and when, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import anyio
import pytest
from anyio.abc import TaskStatus

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullState
from chump_orchestrator.core.records import Pause
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from chump_orchestrator.daemon.world import World
from chump_orchestrator.testing import MemoryManager
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

MINUTE_S = 60.0

MORE_TIME = "EXTEND_TIMEOUT_USEC=30000000"


class Diary(MemoryManager):
    """A manager that also notes when it was told what."""

    def __init__(self, watchdog: timedelta | None = None) -> None:
        super().__init__(watchdog)
        self.times: list[tuple[float, str]] = []

    def _took(self, news: str) -> bool:
        if taken := super()._took(news):
            self.times.append((asyncio.get_running_loop().time(), news))
        return taken

    @property
    def status_told(self) -> str:
        """What people who ask the manager read."""
        return next(t.removeprefix("STATUS=") for t in reversed(self.told) if t.startswith("STA"))

    @property
    def lines(self) -> list[str]:
        return [t.removeprefix("STATUS=") for t in self.told if t.startswith("STATUS=")]

    @property
    def states(self) -> list[str]:
        """What it was told about the daemon's state."""
        states = ("READY=1", "RELOADING=1", "STOPPING=1")
        return [told for told in self.told if told in states]

    def told_at(self, news: str) -> list[float]:
        return [at for at, told in self.times if told == news]


def a_managed_scene(
    count: int = 1, *, watchdog: timedelta | None = None, **policies: object
) -> tuple[Scene, Diary]:
    scene = a_scene(a_backlog(*(a_gap(f"A-{n}") for n in range(1, count + 1))), **policies)
    scene.world.manager = diary = Diary(watchdog)
    return scene, diary


def apart(times: list[float]) -> list[float]:
    """How far each is from the one before."""
    return [after - before for before, after in pairwise(times)]


Reload = Callable[[World], Awaitable[str]]


@asynccontextmanager
async def a_daemon(scene: Scene, reload: Reload | None = None) -> AsyncIterator[Orchestrator]:
    """A daemon, some seconds after its start; detached at the end."""
    daemon = Orchestrator(scene.world, scene.source, Assignment(), reload=reload)
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(5)
        yield daemon
        daemon.end(Manner.DETACH)


async def test_it_is_ready_once_everything_is_read_and_taken_up() -> None:
    scene, diary = a_managed_scene()
    load, order = scene.source.load, []

    async def slow_load() -> object:
        await anyio.sleep(45)
        order.append(list(diary.states))
        return await load()

    async def control(daemon: Orchestrator, *, task_status: TaskStatus[None]) -> None:
        await anyio.sleep(3)
        order.append(list(diary.states))
        task_status.started()

    scene.source.load = slow_load  # type: ignore[method-assign, assignment]
    daemon = Orchestrator(scene.world, scene.source, Assignment(), control=control)
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(50)
        daemon.end(Manner.DETACH)

    assert order == [[], []]
    assert diary.told_at("READY=1") == [48.0]
    assert diary.lines[0] == "starting"


async def test_more_time_is_asked_for_while_a_start_takes_long_but_not_for_ever() -> None:
    scene, diary = a_managed_scene()

    async def never() -> None:
        await anyio.sleep_forever()

    scene.source.load = never  # type: ignore[method-assign, assignment]
    with anyio.move_on_after(3600):
        await Orchestrator(scene.world, scene.source, Assignment()).run()

    asked = diary.told_at(MORE_TIME)
    assert asked[0] == 0.0
    assert max(apart(asked)) <= 12
    assert 580 <= asked[-1] <= 600
    assert diary.lines == ["starting"]


async def test_what_keeps_it_from_starting_is_told() -> None:
    scene, diary = a_managed_scene()

    async def torn() -> object:
        raise Refused("docs/gaps.yaml:3:1: not a list\nand more")

    scene.source.load = torn  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError):
        await Orchestrator(scene.world, scene.source, Assignment()).run()

    assert diary.states == ["STOPPING=1"]
    assert diary.status_told == "could not start: docs/gaps.yaml:3:1: not a list …"


async def test_it_gives_signs_of_life_at_half_of_what_is_expected() -> None:
    scene, diary = a_managed_scene(watchdog=timedelta(seconds=60))

    async with a_daemon(scene):
        await anyio.sleep(10 * MINUTE_S)
        alive = diary.told_at("WATCHDOG=1")

    assert alive[0] == 0.0
    assert set(apart(alive)) == {30.0}


async def test_nobody_who_expects_no_signs_of_life_gets_any() -> None:
    scene, diary = a_managed_scene()

    async with a_daemon(scene):
        await anyio.sleep(10 * MINUTE_S)

    assert "WATCHDOG=1" not in diary.told


async def test_one_line_tells_what_it_is_at() -> None:
    scene, diary = a_managed_scene(14, max_parallel=2)

    async with a_daemon(scene):
        await anyio.sleep(30)
        before = diary.status_told
        await anyio.sleep(25 * MINUTE_S)

        assert before.startswith("2/2 running, 12 ready, next look ")
        assert diary.status_told.startswith("2/2 running, 12 ready, 2 overdue, next look ")


async def test_the_line_is_told_only_when_it_has_changed() -> None:
    scene, diary = a_managed_scene(1)
    scene.executor.on_launch = lambda _dispatch, agent: agent.ends(1)

    async with a_daemon(scene):
        await anyio.sleep(30 * MINUTE_S)
        told = len(diary.lines)
        await anyio.sleep(300 * MINUTE_S)  # the only gap is parked by now

        assert diary.status_told == "0/2 running, 0 ready"
        assert len(diary.lines) == told
        assert all(a != b for a, b in pairwise(diary.lines))


async def test_there_is_no_next_look_when_there_is_nothing_to_look_at() -> None:
    scene, diary = a_managed_scene(1)

    async with a_daemon(scene):
        await anyio.sleep(5 * MINUTE_S)
        before = diary.status_told
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(10)

        assert before.startswith("1/2 running, 0 ready, next look ")
        assert diary.status_told == "0/2 running, 0 ready"


async def test_a_countdown_alone_is_not_told_every_other_moment() -> None:
    scene, diary = a_managed_scene(1)

    async with a_daemon(scene):
        await anyio.sleep(15 * MINUTE_S)
        at = [when for when, told in diary.times if "next look" in told]

        assert len(at) > 30
        assert min(apart(at[1:])) >= 10


async def test_a_pause_is_told_with_who_and_why() -> None:
    scene, diary = a_managed_scene(3)
    await scene.ledger.set_pause(Pause("operator", "the release", NOW))

    async with a_daemon(scene) as daemon:
        paused = diary.status_told
        await Operator(daemon).resume()
        await anyio.sleep(5)

        assert paused == "paused by operator: the release: 0/2 running, 3 ready"
        assert diary.status_told.startswith("2/2 running, 1 ready")


async def test_a_silent_forge_is_told() -> None:
    scene, diary = a_managed_scene()

    async with a_daemon(scene):
        scene.pulls.is_silent = True
        await anyio.sleep(15 * MINUTE_S)

        assert diary.status_told.startswith("1/2 running, 0 ready, forge silent for 1")
        assert diary.status_told.endswith(" min")


async def test_requests_that_wait_for_their_merge_are_told() -> None:
    scene, diary = a_managed_scene(1)
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 3)

    async with a_daemon(scene):
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(5)

        assert diary.status_told.startswith(
            "0/2 running, 1 waiting for a merge, 0 ready, next look"
        )


async def test_what_keeps_from_dispatching_is_told() -> None:
    scene, diary = a_managed_scene()
    scene.worktrees.short = "less than 2 GiB free"

    async with a_daemon(scene):
        assert diary.status_told == (
            "0/2 running, 1 ready; nothing can be dispatched: less than 2 GiB free"
        )


async def test_a_reload_is_told_from_its_beginning_to_its_end() -> None:
    scene, diary = a_managed_scene()
    during: list[str] = []

    async def reload(world: World) -> str:
        await anyio.sleep(1)
        during.extend(diary.states)
        world.policies = replace(world.policies, max_parallel=4)
        return ""

    async with a_daemon(scene, reload) as daemon:
        await daemon.reload()
        await anyio.sleep(5)

        assert during == ["READY=1", "RELOADING=1"]
        assert diary.states == ["READY=1", "RELOADING=1", "READY=1"]
        assert diary.status_told.startswith("1/4 running")


async def test_two_reloads_at_once_are_one_after_the_other() -> None:
    scene, diary = a_managed_scene()

    async def reload(world: World) -> str:
        await anyio.sleep(1)
        return ""

    async with a_daemon(scene, reload) as daemon:
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.reload)
            group.start_soon(daemon.reload)

        assert diary.states == ["READY=1", *("RELOADING=1", "READY=1") * 2]


async def test_a_reload_that_failed_is_told_until_one_goes_well() -> None:
    scene, diary = a_managed_scene()
    scene.world.hide = lambda text: text.replace("hush", "[redacted]")
    problem: list[Exception] = [ConfigError("orchestrator.toml:3: hush is no key\nand more")]

    async def reload(world: World) -> str:
        if problem:
            raise problem.pop()
        return ""

    async with a_daemon(scene, reload) as daemon:
        answer = await daemon.reload()
        failed = diary.status_told
        await anyio.sleep(MINUTE_S)
        later = diary.status_told
        await daemon.reload()
        await anyio.sleep(5)

        trouble = "; last reload failed: orchestrator.toml:3: [redacted] is no key …"
        assert answer.startswith("kept what was loaded before: orchestrator.toml:3")
        assert failed.endswith(trouble)
        assert later.endswith(trouble)
        assert diary.states[-2:] == ["RELOADING=1", "READY=1"]
        assert "failed" not in diary.status_told


@pytest.mark.parametrize("error", [Unavailable("the disk hangs"), Refused("no table")])
async def test_no_trouble_with_reading_settings_ends_the_daemon(error: Exception) -> None:
    scene, diary = a_managed_scene()

    async def reload(world: World) -> str:
        raise error

    async with a_daemon(scene, reload) as daemon:
        await daemon.reload()
        await anyio.sleep(MINUTE_S)

        assert diary.status_told.endswith(f"last reload failed: {error}")


async def test_a_backlog_that_cannot_be_read_is_told() -> None:
    scene, diary = a_managed_scene()

    async with a_daemon(scene):
        load = scene.source.load

        async def torn() -> object:
            raise Unavailable("docs/gaps.yaml is gone")

        scene.source.version += 1
        scene.source.load = torn  # type: ignore[method-assign, assignment]
        await anyio.sleep(10)
        torn_line = diary.status_told
        scene.source.load = load  # type: ignore[method-assign]
        await anyio.sleep(30)

        assert torn_line.endswith("; backlog kept as last read: docs/gaps.yaml is gone")
        assert "backlog" not in diary.status_told


async def test_a_drain_may_take_as_long_as_its_agents() -> None:
    """An operator can still tear it down: who is told to be stopping is not stopped any more."""
    scene, diary = a_managed_scene(2, max_parallel=1)
    daemon = Orchestrator(scene.world, scene.source, Assignment())

    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await anyio.sleep(5)
        daemon.end(Manner.DRAIN)
        await anyio.sleep(15 * MINUTE_S)
        line, during = diary.status_told, list(diary.states)
        asked = [at for at in diary.told_at(MORE_TIME) if at >= 5]
        scene.executor.agents["A-1"].ends(1)

    assert line.startswith("draining: 1/1 running, next look")
    assert during == ["READY=1"]
    assert diary.states == ["READY=1", "STOPPING=1"]
    assert asked[0] <= 7
    assert asked[-1] >= 15 * MINUTE_S - 10
    assert max(apart(asked)) < 30


async def test_a_teardown_is_told_at_once_and_has_the_time_of_its_grace() -> None:
    scene, diary = a_managed_scene(1)

    async with a_daemon(scene) as daemon:
        scene.executor.agents["A-1"].obeys = False
        daemon.end(Manner.TEARDOWN)
        at_once = list(diary.states)
        await anyio.sleep(20 * MINUTE_S)
        asked = [at for at in diary.told_at(MORE_TIME) if at >= 5]
        daemon.kill()
        await anyio.sleep(MINUTE_S)

    assert at_once == ["READY=1", "STOPPING=1"]
    assert "stopping: 1/2 running" in " ".join(diary.lines)
    assert 5 + 30 <= asked[-1] <= 5 + 30 + 60  # the grace, and what is granted beyond


async def test_what_was_not_taken_is_told_again() -> None:
    scene, diary = a_managed_scene(watchdog=timedelta(seconds=20))
    diary.is_deaf = True

    async with a_daemon(scene):
        assert diary.told == []
        diary.is_deaf = False
        await anyio.sleep(5)

        assert diary.states == ["READY=1"]
        assert diary.told.count("WATCHDOG=1") == 1
        assert diary.status_told.startswith("1/2 running")


async def test_without_a_manager_nothing_is_different() -> None:
    scene, _ = a_managed_scene()
    scene.world.manager = None

    async with a_daemon(scene, None) as daemon:
        await daemon.reload()
        await anyio.sleep(MINUTE_S)

        assert daemon.is_ready


async def test_a_broken_dispatch_is_counted() -> None:
    scene, diary = a_managed_scene(1)

    def stumble(_dispatch: object, _agent: ScriptedAgent) -> None:
        raise RuntimeError("a bug")

    scene.executor.on_launch = stumble
    async with a_daemon(scene):
        assert diary.status_told == "0/2 running, 0 ready, 1 broken"
