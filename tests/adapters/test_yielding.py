"""Agents and their shims yield to everybody else where processors are busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.core.dispatch import Limits
from chump_orchestrator.shim import order, yielding
from tests.adapters.launches import FOR_A_WHILE, Bench, eventually
from tests.adapters.shims import SHIM, Shim


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


def nice_of(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0)


def nice_of_session(pid: int) -> int | None:
    """None for a session that the kernel does not treat as one, as the one that it began with."""
    told = Path(f"/proc/{pid}/autogroup").read_text()
    return int(told.rpartition(" ")[2]) if told else None


def is_a_new_session_one() -> bool:
    """Whether the kernel divides the processors among the sessions that are begun now."""
    if not Path("/proc/self/autogroup").exists():
        return False
    told = subprocess.run(
        ["cat", "/proc/self/autogroup"], start_new_session=True, capture_output=True, check=True
    )
    return bool(told.stdout)


of_sessions = pytest.mark.skipif(
    not is_a_new_session_one(), reason="the kernel does not divide processors among sessions here"
)


@pytest.mark.parametrize("limits", [Limits(), Limits(nice=0), Limits(nice=7)])
async def test_agent_and_shim_are_as_nice_as_was_set(bench: Bench, limits: Limits) -> None:
    agent, dispatch_id = await bench.launch(FOR_A_WHILE, executor=bench.executor(limits=limits))

    assert nice_of(agent.pid) == nice_of(bench.shim_of(dispatch_id)) == limits.nice


@of_sessions
async def test_so_are_their_sessions(bench: Bench) -> None:
    mine = nice_of_session(os.getpid())
    executor = bench.executor(limits=Limits(nice=7))
    agent, dispatch_id = await bench.launch(FOR_A_WHILE, executor=executor)
    shim = bench.shim_of(dispatch_id)

    await eventually(lambda: nice_of_session(agent.pid) == nice_of_session(shim) == 7)
    assert nice_of_session(os.getpid()) == mine


@of_sessions
def test_a_session_that_is_not_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    mine = nice_of_session(os.getpid())
    shim = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    shim.order([sys.executable, "-c", "import time; time.sleep(60)"], limits={"nice": 9})
    shim.process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(SHIM / "__main__.py"), str(shim.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert shim.process.stdin is not None
        shim.process.stdin.write(json.dumps({"env": {}, "redact": []}).encode())
        shim.process.stdin.close()
        agent = shim.said()["pid"]
        is_nicer = nice_of(agent)
        after = nice_of_session(os.getpid())
    finally:
        shim.clean()

    assert (is_nicer, after) == (9, mine)


def test_a_little_is_the_default_and_an_order_without_a_word_of_it_means_none() -> None:
    assert Limits().nice == 2
    assert order.Limits({"tasks": 3}).nice == 0
    assert order.Limits({"nice": 99}).nice == yielding.MOST


@pytest.mark.parametrize("nonsense", [-1, "2", True, 1.5])
def test_an_order_that_makes_no_sense_is_refused(nonsense: object) -> None:
    with pytest.raises(ValueError, match="nice"):
        order.Limits({"nice": nonsense})


def test_what_the_kernel_does_not_take_just_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(_fd: int, _data: bytes) -> int:
        raise BlockingIOError

    if sys.platform == "linux":
        assert yielding.has_session_yield(2**30, 5)
    written: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: os.dup(1))
        patched.setattr(os, "write", busy)
        told = [yielding.has_session_yield(os.getpid(), 5)]
        patched.setattr(os, "write", lambda _fd, data: written.append(data))
        told += [yielding.has_session_yield(os.getpid(), 5)]

    assert told == [False, True]
    assert written == [b"5"]
