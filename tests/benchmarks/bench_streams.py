"""Sixteen agents that write to standard error as fast as they can, through their shims.

Beside asyncio's `readline` on as many pipes, which is what a daemon without shims would do; and
beside a process that does nothing but look how late its loop is, at the same time on the same
machine: nobody's loop is earlier than that.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from chump_orchestrator.adapters.local import ShimAgent
from chump_orchestrator.adapters.process import children_watched_by_loop
from chump_orchestrator.core.dispatch import Command
from tests.adapters.launches import Bench, ignore
from tests.benchmarks.measuring import Lag, Room, Row, Target

AGENTS = 16
LINE = b"12:00:00 INFO compiling chump_orchestrator v0.1.0 (src/module/of/some/length.rs)\n"
CHUNK = 1 << 20


def rows(room: Room) -> list[Row]:
    folder = room.folder("streams")
    text = folder / "output.txt"
    text.write_bytes((LINE * (CHUNK // len(LINE))) * (4 if room.quick else 24))
    rates, lags, idle, shares, plain, plain_lags = [], [], [], [], [], []
    for number in range(room.rounds(3, quick=1)):
        told = json.loads(_elsewhere("shims", text, folder / f"bench-{number}"))
        rates.append(told["mb_a_second"])
        lags.append(told["lag_p99_ms"])
        idle.append(told["idle_p99_ms"])
        shares.append(told["cpu_share"])
        told = json.loads(_elsewhere("readline", text, folder))
        plain.append(told["mb_a_second"])
        plain_lags.append(told["lag_p99_ms"])
    return [
        Row(
            "streams.rate",
            f"standard error of {AGENTS} agents through their shims, together",
            "MB/s",
            tuple(rates),
            Target(200, at_least=True),
            "readline",
            tuple(plain),
        ),
        Row(
            "streams.lag",
            "daemon's loop meanwhile: late, p99",
            "ms",
            tuple(lags),
            Target(15),
            "readline",
            tuple(plain_lags),
        ),
        Row(
            "streams.lag.idle",
            "the loop of an idle process at the same time: late, p99",
            "ms",
            tuple(idle),
        ),
        Row(
            "streams.lag.ratio",
            "daemon's loop meanwhile, beside that",
            "ms",
            tuple(lags),
            None,
            "idle",
            tuple(idle),
        ),
        Row("streams.cpu", "daemon's CPU of one core meanwhile", "%", tuple(shares)),
    ]


def _elsewhere(how: str, text: Path, folder: Path) -> str:
    """Measure in a process of its own, which nothing else keeps busy."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, how, str(text), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr[-3000:])
    return done.stdout.splitlines()[-1]


async def _shims(text: Path, folder: Path) -> dict[str, float]:
    """Launch them, let them write at once, and follow them to their ends, as the daemon does."""
    bench, go = Bench(folder), folder / "go"
    script = f'while [ ! -e "{go}" ]; do sleep 0.02; done; exec cat "{text}" >&2'
    command = Command(("/bin/sh",), ("-c", script))
    lag, ends = Lag(), []
    with children_watched_by_loop():
        executor = bench.executor()
        agents = [(await bench.launch(command, executor=executor))[0] for _ in range(AGENTS)]

        async def follow(agent: ShimAgent) -> None:
            ends.append(await agent.follow(ignore))

        async with _idle_beside() as idle:
            async with anyio.create_task_group() as watching:
                watching.start_soon(lag.run)
                async with anyio.create_task_group() as group:
                    for agent in agents:
                        group.start_soon(follow, agent)
                    await anyio.sleep(0.5)
                    await idle.stdin.send(b"begin\n")
                    del lag.found[:]
                    began, used = time.perf_counter(), time.process_time()
                    go.touch()
                took_s, used_s = time.perf_counter() - began, time.process_time() - used
                watching.cancel_scope.cancel()
            await idle.stdin.aclose()
            idle_ms = float(b"".join([piece async for piece in idle.stdout]))
    sent = AGENTS * text.stat().st_size
    return {
        "mb_a_second": sent / took_s / 1e6,
        "lag_p99_ms": lag.p99(),
        "idle_p99_ms": idle_ms,
        "cpu_share": used_s / took_s * 100,
    }


@asynccontextmanager
async def _idle_beside() -> AsyncIterator[Any]:
    """Have a process look how late its loop is, from the first line that it is sent on."""
    argv = [sys.executable, "-m", "tests.benchmarks.bench_streams", "idle", "", ""]
    async with await anyio.open_process(argv, stderr=None) as idle:
        assert idle.stdout is not None
        await idle.stdout.receive()
        yield idle


async def _idle(_text: Path, _folder: Path) -> float:
    lag = Lag()
    async with anyio.create_task_group() as group:
        group.start_soon(lag.run)
        os.write(1, b"ready\n")
        while await _is_asked():
            del lag.found[:]
        group.cancel_scope.cancel()
    return lag.p99()


async def _is_asked() -> bool:
    await anyio.wait_readable(0)
    return bool(os.read(0, 4096))


async def _readline(text: Path, _folder: Path) -> dict[str, float]:
    lag = Lag()
    sent = 0

    async def follow() -> None:
        nonlocal sent
        process = await asyncio.create_subprocess_exec(
            "cat", str(text), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        while line := await process.stdout.readline():
            sent += len(line)
        await process.wait()

    async with anyio.create_task_group() as watching:
        watching.start_soon(lag.run)
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(AGENTS):
                group.start_soon(follow)
        took_s = time.perf_counter() - began
        watching.cancel_scope.cancel()
    return {"mb_a_second": sent / took_s / 1e6, "lag_p99_ms": lag.p99()}


if __name__ == "__main__":
    way: Any = {"shims": _shims, "idle": _idle, "readline": _readline}[sys.argv[1]]
    print(json.dumps(anyio.run(way, Path(sys.argv[2]), Path(sys.argv[3]))))
