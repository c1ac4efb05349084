"""The turns of a real loop are counted, and nothing else about it changes."""

from __future__ import annotations

import asyncio
import time

import anyio
import anyio.lowlevel

from chump_orchestrator.adapters.turns import turns_counted
from chump_orchestrator.core.turns import LoopTurns, TurnsTaken


def work(seconds: float) -> None:
    """Keep the loop busy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def taken(turns: LoopTurns) -> TurnsTaken:
    found = turns.taken(time.monotonic())
    assert found is not None
    return found


async def test_a_turn_that_takes_long_is_told() -> None:
    turns = LoopTurns()
    with turns_counted(turns.count) as is_counted:
        await anyio.lowlevel.checkpoint()
        work(0.06)
        await anyio.lowlevel.checkpoint()

    assert is_counted
    assert taken(turns).longest_s >= 0.06
    assert taken(turns).slow >= 1


async def test_waiting_is_no_turn_and_a_loop_with_nothing_to_do_is_left_asleep() -> None:
    turns = LoopTurns()
    with turns_counted(turns.count):
        await anyio.lowlevel.checkpoint()
        before = taken(turns)
        await anyio.sleep(0.5)
        after = taken(turns)

    assert sum(after.counts) - sum(before.counts) <= 4
    assert after.total_s - before.total_s < 0.4


async def test_the_loop_is_its_own_again_afterwards() -> None:
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    before = dict(vars(selector))
    turns, others = LoopTurns(), LoopTurns()
    with turns_counted(turns.count):
        with turns_counted(others.count):
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    counts = taken(turns).counts
    await anyio.lowlevel.checkpoint()

    assert 1 <= sum(taken(others).counts) < sum(counts)
    assert taken(turns).counts == counts
    assert vars(selector) == before
