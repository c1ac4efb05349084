"""Two hundred living agents that do nothing: what the daemon and each shim hold and take."""

from __future__ import annotations

import json
import time

import psutil

from tests.benchmarks.measuring import Room, Row, Target
from tests.benchmarks.yard import Yard, cpu_share, working

AGENTS = 200


def rows(room: Room) -> list[Row]:
    count = room.rounds(AGENTS, quick=12)
    ids = [f"CROWD-{number}" for number in range(count)]
    yard = Yard.lay_out(
        room.folder("crowd"), ids, "exec sleep 3600\n", slots=count, interval="30s", prepared=0
    )
    began = time.monotonic()
    with working(yard) as daemon:
        yard.await_events("dispatch.launched", count, patience_s=300)
        launched_s = time.monotonic() - began
        time.sleep(5)
        share = cpu_share(daemon, 5.0 if room.quick else 30.0)
        lag = yard.lag_p99_ms(3.0 if room.quick else 10.0)
        resident = daemon.memory_info().rss / 1e6
        shims = [_private_mb(one) for one in _shims(yard)]
    what = f"{count} living agents"
    return [
        Row("crowd.resident", f"{what}: daemon resident", "MB", (resident,), Target(90)),
        Row("crowd.cpu", f"{what}: daemon's CPU of one core", "%", (share,), Target(1)),
        Row("crowd.lag", f"{what}: daemon's loop late, p99", "ms", (lag,), Target(10)),
        Row("crowd.shim", "a shim's private memory", "MB", tuple(shims), Target(5)),
        Row("crowd.launched", f"{what}: until all of them worked", "s", (launched_s,)),
        Row("crowd.shims", f"{what}: all shims, private", "MB", (sum(shims),)),
    ]


def _shims(yard: Yard) -> list[psutil.Process]:
    told = [json.loads(path.read_text()) for path in yard.state.glob("d/*/running.json")]
    return [psutil.Process(one["shim_pid"]) for one in told]


def _private_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 1e6
