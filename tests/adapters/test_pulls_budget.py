"""What asking a GitHub costs, by its own published formula, and how its limits are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import anyio
import looptime
import pytest

from chump_orchestrator.adapters.pulls_wire import LONGEST_RESET, RESERVE_POINTS
from chump_orchestrator.core.errors import RateLimited, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.records import Watch
from chump_orchestrator.daemon.lookout import Lookout, Sighting
from tests.adapters.on_github import MINUTE, World
from tests.daemon.twins import LoopClock
from tests.daemon.watched import NOBODY

HOUR = timedelta(hours=1)
OPEN_BRANCHES = 50


class AtRest:
    """A forge where nothing changes; it keeps the seconds at which it was looked at."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.looked_s: list[float] = []

    async def check(self) -> None:
        """It can always be asked."""

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        self.looked_s.append(self.clock.monotonic())
        now = self.clock.now()
        return {one.branch: PullRequest(one.branch, PullState.OPEN, now, 7) for one in watches}


def looks_of_an_hour(branches: int) -> list[float]:
    """Return when the daemon looks in an hour in which nothing happens, in seconds of it."""
    clock = LoopClock()
    forge = AtRest(clock)

    async def an_hour() -> None:
        lookout = Lookout(forge, clock, timedelta(seconds=30), lambda *_a, **_k: None, NOBODY)
        for n in range(branches):
            lookout.watch(Watch(f"d{n}", f"b{n}", "0" * 40, clock.now()), lambda: None)
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run)
            await anyio.sleep(HOUR.total_seconds())
            group.cancel_scope.cancel()
        assert isinstance(lookout.sighting("b0"), Sighting)

    loop = looptime.new_event_loop()
    try:
        loop.run_until_complete(an_hour())
    finally:
        loop.close()
    return forge.looked_s


@pytest.mark.parametrize("red", [0, OPEN_BRANCHES])
def test_fifty_open_requests_at_rest_cost_less_than_150_points_an_hour(
    tmp_path: Path, red: int
) -> None:
    """Measured: by looks as the daemon makes them, and by a forge that counts as GitHub does."""
    world = World(tmp_path)
    head = world.opened()
    for number in range(OPEN_BRANCHES):
        checks = "FAILURE" if number < red else "SUCCESS"
        world.request(100 + number, head, branch=f"claude/n-{number}", checks=checks)
    watches = [world.repository.watch(f"claude/n-{n}") for n in range(OPEN_BRANCHES)]
    looks = looks_of_an_hour(OPEN_BRANCHES)
    begin = world.repository.clock.seconds

    async def the_hour() -> None:
        for at_s in looks:
            clock = world.repository.clock
            clock.advance(timedelta(seconds=at_s - (clock.seconds - begin)))
            answer = await world.pulls.look(watches)
            assert len(answer) == OPEN_BRANCHES

    asyncio.run(the_hour())

    budget = world.pulls.budget
    print(f"{red} red: {len(looks)} looks, {budget.requests} requests, {budget.points} points")
    assert len(looks) <= 40
    assert world.forge.points == budget.points <= 150
    assert len(world.forge.calls) == budget.requests
    assert budget.requests - len(looks) <= (12 if red else 0), "one request a look"


async def test_what_was_asked_and_what_is_left_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.forge.rate = {"limit": 5000, "remaining": 4900, "resetAt": "2026-04-27T12:30:00Z"}
    world.opened()
    await world.look()
    await world.look()

    budget = world.pulls.budget
    assert (budget.requests, budget.points, budget.left, budget.limit) == (2, 2, 4900, 5000)
    assert budget.resets_at == datetime.fromisoformat("2026-04-27T12:30:00+00:00")


@pytest.mark.parametrize("answer", ["429", "secondary", "403"])
async def test_what_a_refusal_asks_for_is_waited(tmp_path: Path, answer: str) -> None:
    """`Retry-After`, which `gh` shows with `--include`."""
    world = World(tmp_path)
    clock = world.repository.clock
    world.opened()
    world.forge.headers = {"Retry-After": "77"}
    world.forge.answers(answer)
    with pytest.raises(RateLimited):
        await world.look()
    world.forge.answers("ok")
    clock.advance(timedelta(seconds=76))
    with pytest.raises(RateLimited, match="left alone for 1 s more"):
        await world.look()
    clock.advance(timedelta(seconds=1))

    assert (await world.look()).state is PullState.OPEN
    assert len(world.forge.calls) == 2


async def test_a_time_of_day_is_waited_for_and_one_of_next_year_is_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    clock = world.repository.clock
    world.opened()
    world.forge.answers("429")
    for at, longest in ((clock.now() + 3 * MINUTE, 3 * MINUTE), (clock.now() + 9000 * HOUR, None)):
        world.forge.headers = {"Retry-After": format_datetime(at, usegmt=True)}
        world.forge.save()
        with pytest.raises(RateLimited):
            await world.look()
        clock.advance(longest or LONGEST_RESET)
    world.forge.answers("ok")

    assert (await world.look()).state is PullState.OPEN


async def test_a_budget_that_is_used_up_is_left_alone_until_its_reset(tmp_path: Path) -> None:
    """Also by a daemon that has never had an answer, and knows of it by the head alone."""
    world = World(tmp_path)
    clock = world.repository.clock
    reset = int((clock.now() + 20 * MINUTE).timestamp())
    world.opened()
    world.forge.headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}
    world.forge.answers("403")
    with pytest.raises(RateLimited):
        await world.look()
    world.forge.headers = {}
    world.forge.answers("ok")
    clock.advance(19 * MINUTE)
    with pytest.raises(RateLimited):
        await world.look()
    clock.advance(MINUTE)

    assert (await world.look()).state is PullState.OPEN


@pytest.mark.parametrize("text", ["soon", "-5", "", "1e9", "²"])
async def test_a_wait_that_is_none_is_no_wait(tmp_path: Path, text: str) -> None:
    world = World(tmp_path)
    world.opened()
    world.forge.headers = {"Retry-After": text, "X-RateLimit-Remaining": "0"}
    world.forge.answers("502")
    with pytest.raises(Unavailable):
        await world.look()
    world.forge.answers("ok")

    assert (await world.look()).state is PullState.OPEN


async def test_a_fault_that_names_a_wait_is_left_alone_but_not_for_hours(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.opened()
    world.forge.headers = {"Retry-After": "86400"}
    world.forge.answers("502")
    with pytest.raises(Unavailable, match="HTTP 502"):
        await world.look()
    world.forge.answers("ok")
    with pytest.raises(RateLimited):
        await world.look()
    world.repository.clock.advance(15 * MINUTE)

    assert (await world.look()).state is PullState.OPEN


async def test_several_daemons_on_one_account_leave_the_reserve(tmp_path: Path) -> None:
    worlds = [World(tmp_path / str(n)) for n in range(3)]
    first = worlds[0].forge
    clock = worlds[0].repository.clock
    reset = (clock.now() + 40 * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ")
    for world in worlds:
        # One account: every daemon's points count for all of them.
        world.pulls._env["PATH"] = f"{first.folder}:{world.repository.env['PATH']}"
    first.rate = {"limit": 5000, "remaining": RESERVE_POINTS + 12, "resetAt": reset}
    first.is_counting = True
    first.save()
    quiet = 0
    for _ in range(10):
        for world in worlds:
            try:
                await world.look()
            except RateLimited:
                quiet += 1

    assert quiet >= 3 * 5
    assert 12 <= first.points <= 12 + len(worlds)


async def test_of_a_small_budget_a_tenth_is_left(tmp_path: Path) -> None:
    world = World(tmp_path)
    reset = (world.repository.clock.now() + 40 * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.opened()
    world.forge.rate = {"limit": 60, "remaining": 30, "resetAt": reset}
    world.forge.save()
    for _ in range(2):
        await world.look()
    world.forge.rate["remaining"] = 6
    world.forge.save()
    await world.look()

    with pytest.raises(RateLimited, match="6 points are left"):
        await world.look()
