"""A daemon that has nothing to do: what it holds, and what it takes."""

from __future__ import annotations

import time

from tests.backlog_fixture import ENTRIES, backlog
from tests.benchmarks.measuring import Room, Row, Target
from tests.benchmarks.yard import Yard, cpu_share, working


def rows(room: Room) -> list[Row]:
    yard = Yard.lay_out(room.folder("idle"), ["IDLE-1"], "")
    # As large as a real one, and nothing in it is open.
    text = backlog(ENTRIES).replace("status: open", "status: deferred")
    yard.root.joinpath("docs", "gaps.yaml").write_text(text)
    with working(yard) as daemon:
        yard.await_events("daemon.started", 1)
        time.sleep(3)
        shares = tuple(cpu_share(daemon, 10.0 if not room.quick else 3.0) for _ in range(2))
        resident = daemon.memory_info().rss / 1e6
    return [
        Row("idle.resident", "idle daemon, 543 entries: resident", "MB", (resident,), Target(60)),
        Row("idle.cpu", "idle daemon: CPU of one core", "%", shares, Target(0.1)),
    ]
