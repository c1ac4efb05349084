"""Dispatches a minute: agents that commit and push in a small repository, 8 slots."""

from __future__ import annotations

from tests.benchmarks.measuring import Room, Row, Target
from tests.benchmarks.yard import PUSH, Yard, working

SLOTS = 8


def rows(room: Room) -> list[Row]:
    count = room.rounds(160, quick=24)
    rates = []
    for number in range(room.rounds(2, quick=1)):
        ids = [f"MANY-{each}" for each in range(count)]
        yard = Yard.lay_out(
            room.folder(f"throughput-{number}"), ids, PUSH, slots=SLOTS, prepared=8, merges=True
        )
        with working(yard):
            yard.await_events("dispatch.settled", count)
        outcomes = [one["outcome"] for one in yard.told("dispatch.settled")]
        if outcomes.count("shipped") < count:
            raise AssertionError(f"not all have shipped: {sorted(set(outcomes))}")
        moments = [one["t_ns"] for one in yard.told("dispatch.settled")]
        began = min(one["t_ns"] for one in yard.told("daemon.started"))
        rates.append(count / ((max(moments) - began) / 60e9))
    return [
        Row(
            "throughput.rate",
            f"dispatches that commit, push and are merged, {SLOTS} slots",
            "a minute",
            tuple(rates),
            Target(400, at_least=True),
        )
    ]
