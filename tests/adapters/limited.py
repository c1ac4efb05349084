"""Agents that use too much, or hide, for tests of what holds them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from chump_orchestrator.core.dispatch import Command
from tests.adapters.launches import python
from tests.service import user_manager

MIB = 2**20
LIMIT = 96 * MIB

GREEDY = f"bytearray(b'x' * {4 * LIMIT})\n"
"""Uses up much more memory than it may."""

GREEDY_CHILD = f"""\
import os, time
if os.fork() == 0:
    {GREEDY}
time.sleep(600)
"""
"""A patient agent whose compiler, say, uses up too much."""

BOMB = """\
import os, signal
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            signal.pause()
        made += 1
except BlockingIOError:
    print("no more than", made, flush=True)
os.killpg(0, signal.SIGKILL)
"""


ESCAPE = (
    "import os, sys, time\n"
    "if os.fork() == 0:\n"
    " os.setsid()\n"
    " if os.fork() == 0:\n"
    "  os.execve(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)'], {})\n"
    " os._exit(0)\n"
    "os.wait()\n"
    "time.sleep(600)\n"
)
"""Leaves a grandchild in a session of its own, without the marker in its environment."""


def greedy() -> Command:
    """The command of an agent that needs more memory than it may have."""
    return python(GREEDY)


def sleeper() -> Command:
    """The command of an agent that waits to be stopped."""
    return python("import time; time.sleep(600)")


def skip_without(*controllers: str) -> None:
    """Skip where control groups of version 2 do not limit this, by its name."""
    top = user_manager.hierarchy()
    has = (top / "cgroup.controllers").read_text().split() if top is not None else []
    for name in controllers:
        if name not in has:
            pytest.skip(f"control groups of version 2 have no controller for {name} here")


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def escaped(agent: int, shim: int) -> list[int]:
    """What `ESCAPE` has left below a shim."""
    children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if int(pid) != agent and Path(f"/proc/{pid}/environ").read_bytes() == b""
    ]
