"""What grows with the number of dispatches: the short form of `make soak`, without its faults.

The second half is compared with the first, when all is warm.
"""

from __future__ import annotations

import time
from statistics import median

import psutil

from tests.benchmarks.measuring import Room, Row, Target
from tests.benchmarks.yard import PUSH, Yard, working

SLOTS = 8
LOOK_S = 0.5
WARM = 0.2
"""The share of dispatches in which everything warms up."""


def rows(room: Room) -> list[Row]:
    count = room.rounds(240, quick=40, long=2000)
    ids = [f"SCALE-{number}" for number in range(count)]
    yard = Yard.lay_out(room.folder("scale"), ids, PUSH, slots=SLOTS, prepared=8, merges=True)
    memory: list[float] = []
    descriptors: list[float] = []
    lags: list[float] = []
    with working(yard) as daemon:
        yard.await_events("dispatch.settled", max(int(count * WARM), 1))
        while (settled := len(yard.told("dispatch.settled"))) < count and not yard.has_ended():
            yard.keep_origin()
            lags.append(yard.lag_p99_ms(2.0))
            try:
                memory.append(daemon.memory_info().rss / 1e6)
                descriptors.append(float(daemon.num_fds()))
            except psutil.Error:
                break
            time.sleep(LOOK_S)
        if settled < count and yard.has_ended():
            raise AssertionError("the daemon has ended early")

    def halves(values: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        middle = max(len(values) // 2, 1)
        return (median(values[middle:] or values),), (median(values[:middle]),)

    told = []
    for name, what, unit, values, limit in (
        ("memory", "daemon resident", "MB", memory, 1.1),
        ("descriptors", "its descriptors", "", descriptors, 1.25),
        ("lag", "its loop late, p99", "ms", lags, 1.5),
    ):
        second, first = halves(values)
        told.append(
            Row(
                f"scale.{name}",
                f"{count} dispatches through {SLOTS} slots: {what}, second half",
                unit,
                second,
                Target(limit, of="ratio"),
                "first half",
                first,
            )
        )
    return told
