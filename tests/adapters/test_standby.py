"""Shims that are started before there is an order for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from chump_orchestrator.adapters.local import executor as executors
from chump_orchestrator.adapters.local.standby import see_off, start
from chump_orchestrator.core.errors import Unavailable
from tests.adapters.launches import FOR_A_WHILE, Bench, eventually, ignore, python


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


async def waiting(bench: Bench, dispatch_id: str) -> int:
    """Return the process id of a shim that has detached itself and waits for its word."""

    def detached() -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = bench.shims(dispatch_id)
            if len(found) == 1 and psutil.Process(found[0]).ppid() != os.getpid():
                return found
        return []

    shim: int = (await eventually(detached, "a shim that waits"))[0]
    return shim


async def test_the_shim_that_waits_is_the_one_that_has_the_agent(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        shim = await waiting(bench, dispatch_id)
        is_there_before = bench.folder(dispatch_id).exists()
        agent, _ = await bench.launch(FOR_A_WHILE, dispatch_id=dispatch_id, executor=executor)

    assert not is_there_before
    assert bench.shims(dispatch_id) == [shim]
    assert agent.exit is None


async def test_what_it_has_to_complain_of_is_kept_with_its_dispatch(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        await bench.launch(FOR_A_WHILE, dispatch_id=dispatch_id, executor=executor)

    shim = bench.shim_of(dispatch_id)
    log = bench.folder(dispatch_id) / "shim.log"
    assert log.stat().st_mode & 0o777 == 0o600
    if sys.platform == "linux":
        assert Path(f"/proc/{shim}/fd/2").samefile(log)


async def test_one_that_is_not_needed_leaves_nothing(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        await waiting(bench, dispatch_id)

    assert not bench.shims(dispatch_id)
    assert not bench.folder(dispatch_id).exists()
    assert not psutil.Process().children()


async def test_nor_does_one_that_was_let_go_while_it_started(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        pass

    assert not bench.shims(dispatch_id)
    assert not psutil.Process().children()


async def test_nor_when_all_is_cancelled(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()
    is_waiting = anyio.Event()

    async def expect() -> None:
        async with executor.expecting(dispatch_id):
            is_waiting.set()
            await anyio.sleep_forever()

    expecting = asyncio.create_task(expect())
    await is_waiting.wait()
    expecting.cancel()
    expecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await expecting

    assert not bench.shims(dispatch_id)
    assert not psutil.Process().children()


async def test_one_that_does_not_leave_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chump_orchestrator.adapters.local.standby._REAP_S", 0.3)
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        os.kill(await waiting(bench, dispatch_id), signal.SIGSTOP)

    assert not bench.shims(dispatch_id)


async def test_where_it_has_died_meanwhile_another_is_started(bench: Bench) -> None:
    executor, dispatch_id = bench.executor(), bench.id()

    async with executor.expecting(dispatch_id):
        shim = await waiting(bench, dispatch_id)
        os.kill(shim, signal.SIGKILL)
        await eventually(lambda: not bench.shims(dispatch_id))
        agent, _ = await bench.launch(FOR_A_WHILE, dispatch_id=dispatch_id, executor=executor)

    assert agent.exit is None
    assert bench.shim_of(dispatch_id) != shim


async def test_an_interpreter_that_cannot_be_started_is_told_of_by_the_launch(
    bench: Bench,
) -> None:
    executor, dispatch_id = bench.executor(python="/nowhere/python"), bench.id()

    async with executor.expecting(dispatch_id):
        with pytest.raises(Unavailable, match="No such file"):
            await bench.launch(FOR_A_WHILE, dispatch_id=dispatch_id, executor=executor)


async def test_and_what_one_that_dies_says_last(bench: Bench) -> None:
    broken = bench.worktree / "broken"
    broken.write_text("#!/bin/sh\nread -r word\necho 'first' >&2\necho 'no module named os' >&2\n")
    broken.chmod(0o755)
    executor, dispatch_id = bench.executor(python=str(broken)), bench.id()

    async with executor.expecting(dispatch_id):
        with pytest.raises(Unavailable, match="its shim died: no module named os"):
            await bench.launch(FOR_A_WHILE, dispatch_id=dispatch_id, executor=executor)


async def test_a_crowd_starts_its_shims_as_it_is_launched(bench: Bench) -> None:
    executor = bench.executor()
    ids = [bench.id() for _ in range(executors._STANDBYS + 1)]

    async with contextlib.AsyncExitStack() as stack:
        for dispatch_id in ids:
            await stack.enter_async_context(executor.expecting(dispatch_id))
        await waiting(bench, ids[-2])
        last = bench.shims(ids[-1])
        agent, _ = await bench.launch(python("pass"), dispatch_id=ids[-1], executor=executor)
        await agent.follow(ignore)

    assert last == []


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_one_that_has_lost_its_daemon_is_nobody_s_agent(
    bench: Bench, is_stopped: bool
) -> None:
    """Neither taken up by the next daemon nor left behind."""
    dispatch_id = bench.id()
    standby = await start(sys.executable, bench.folder(dispatch_id))
    shim = await waiting(bench, dispatch_id)
    if is_stopped:
        os.kill(shim, signal.SIGSTOP)
    standby.pipes.close()  # as the kernel does

    found = await bench.executor().attach(dispatch_id)

    assert found is None
    assert not bench.shims(dispatch_id)
    await see_off(standby.process)


def test_a_daemon_that_is_killed_leaves_none_waiting(tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from tests.adapters.launches import FOR_A_WHILE, Bench
async def main():
    async with Bench(Path({str(tmp_path)!r})).executor().expecting("infra-1-killed"):
        print("waits", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    daemon = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    )
    with daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"waits\n"
        daemon.kill()

    async def gone() -> None:
        folder = str(tmp_path / "state" / "d" / "infra-1-killed")
        await eventually(
            lambda: (
                not any(
                    folder in (process.info["cmdline"] or [])
                    for process in psutil.process_iter(["cmdline"])
                )
            ),
            "the end of the shim that waited",
        )

    anyio.run(gone)
    assert not (tmp_path / "state").exists()
