"""The program with one of its mechanisms switched off, or one of its steps spoiled.

A control arm shows that a case fails without what is meant to protect it. The functions here are
called in the altered program itself, before the command line; see `calling`.
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import anyio

from chump_orchestrator.adapters.local import (
    LocalExecutor,
    ShimAgent,
    agent,
    output,
    remains,
    standby,
    wire,
)
from chump_orchestrator.core import tail

SHIM = """\
import os, sys
sys.path.append({root!r})
from chump_orchestrator.shim import owner, turns
{change}
sys.exit(owner.main(sys.argv))
"""
"""An altered shim; it lies in a folder of the same name as the real one, which it is found by."""

NO_SUBREAPER = "owner.adopt_orphans = lambda: None"
COUNTS_STANDSTILL = "turns._SLACK_S = 1e9"
CANNOT_FORK = """\
import resource
def fork(*args, real=owner.fork):
    try:
        open("../full", "x").close()  # once only, as shortages pass
    except FileExistsError:
        return real(*args)
    if os.getuid():
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        return real(*args)
    # No limit holds for root, but that of a group which may have no further process.
    groups, mine = "/sys/fs/cgroup/pids/", str(os.getpid())
    full = groups + "chump-full-" + mine
    os.mkdir(full)
    try:
        for name, value in ((full + "/pids.max", "1"), (full + "/cgroup.procs", mine)):
            with open(name, "w") as file:
                file.write(value)
        return real(*args)
    finally:
        with open(groups + "cgroup.procs", "w") as file:
            file.write(mine)
        os.rmdir(full)
owner.fork = fork
"""


def calling(*calls: str) -> str:
    """Return a script's beginning that makes these calls to functions of this module.

    Or of `stepping`, where that stands before the function.
    """
    here = str(Path(__file__).parents[2])
    begin = f"import sys\nsys.path.insert(0, {here!r})\nfrom tests.faults import stepping\n"
    return f"{begin}from tests.faults.altered import *\n" + "".join(f"{one}\n" for one in calls)


def shims(change: str, folder: Path) -> str:
    """Return the call that has all agents run under an altered shim, which is put into `folder`."""
    package = folder / "altered" / "shim"
    package.mkdir(parents=True)
    root = str(Path(standby._SHIM).parents[2])
    (package / "__main__.py").write_text(SHIM.format(root=root, change=change))
    return f"use_shim({json.dumps(str(package))})"


def use_shim(package: str) -> None:
    """Launch this shim."""
    standby._SHIM = package


def one_by_one() -> None:
    """Stop agents one after another."""
    turn = anyio.Lock()
    stop = ShimAgent.stop

    async def stop_in_turn(self: Any, reason: Any, *, now: bool = False) -> None:
        async with turn:
            await stop(self, reason, now=now)
            while self.exit is None:  # noqa: ASYNC110 - an agent rings no bell of ours
                await anyio.sleep(0.05)

    ShimAgent.stop = stop_in_turn  # type: ignore[method-assign]


def no_recount() -> None:
    """Trust the daemon's own clock for how long an agent has been active."""

    async def recount(self: Any) -> None:
        pass

    ShimAgent.recount = recount  # type: ignore[method-assign]


def no_marker_sweep() -> None:
    """Do not look for what a dead shim's agent has left by the marker in its environment."""
    remains._marked = lambda dispatch: iter(())


def endless_lines() -> None:
    """Keep lines whole, however long, and have shims tell all of them."""

    async def listen(*args: Any) -> Any:
        return await wire.listen(*args[:5])

    agent.listen = listen  # type: ignore[assignment, attr-defined]
    for module in (tail, output):
        module.LINE_BYTES = 1 << 40  # type: ignore[attr-defined]


def no_worktree() -> None:
    """Take the worktree of ANY-1 away just before its agent is started in it."""
    launch = LocalExecutor.launch

    async def launch_nowhere(
        self: Any, dispatch: Any, workspace: Any, command: Any, prompt: Any
    ) -> Any:
        if dispatch.gap.id == "ANY-1":
            shutil.rmtree(workspace.path)
        return await launch(self, dispatch, workspace, command, prompt)

    LocalExecutor.launch = launch_nowhere  # type: ignore[method-assign]


def few_descriptors(spare: int) -> None:
    """Have only so many more open files than a program begins with."""
    most = len([*Path("/proc/self/fd").iterdir()]) + spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
