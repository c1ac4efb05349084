"""The command line, in a process that dies or hangs at a named step, or lacks a protection.

Started as a program by the tests (see `rigs`); the program itself knows nothing of it. What it is
to do comes in its environment, which it forgets before the command line begins:
`CHUMP_CRASH_AT=d3-after:2` acts when step d3 has been done for the second time, `CHUMP_CRASH_BY`
says how, `CHUMP_WITHOUT` lists protections to leave out, `CHUMP_GO` is a file to make in passing,
`CHUMP_SHIM` another program to start shims with, `CHUMP_SHIM_FOLDER` another package of theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chump_orchestrator import wiring
from chump_orchestrator.adapters import journal, ledger, ledger_schema
from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.adapters.leases import FileLeases
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.local import LocalExecutor, executor, launching, remains, standby
from chump_orchestrator.adapters.local.files import read_object
from chump_orchestrator.adapters.shipping import GhShipper, GitShipper
from chump_orchestrator.adapters.worktrees import rooms
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.adapters.worktrees.kept import KeptWorktrees
from chump_orchestrator.cli.root import main
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.core.shipping import Stage
from chump_orchestrator.daemon import launching as daemon_launching
from chump_orchestrator.daemon import orchestrator
from chump_orchestrator.shim import linux
from chump_orchestrator.shim.files import EXIT


@dataclass(frozen=True, slots=True)
class Step:
    """A function of the program, and which of its calls is meant."""

    owner: Any
    name: str
    is_meant: Callable[..., bool] = lambda *_args, **_more: True


def _becomes(state: DispatchState) -> Callable[..., bool]:
    def is_meant(_ledger: SqliteLedger, _id: str, record: Record) -> bool:
        # What is seen of its request is written down in the same state.
        return record.state is state and (record.pull is None or record.exit is not None)

    return is_meant


def _reaches(stage: Stage) -> Callable[..., bool]:
    def is_meant(_ledger: SqliteLedger, _id: str, record: Record) -> bool:
        # What is seen of its request is written down in the same stage.
        is_there = record.shipment is not None and record.shipment.stage is stage
        return is_there and record.exit is not None and record.pull is None

    return is_meant


STEPS = {
    "d1-expected": Step(executor, "start"),
    "d1": Step(SqliteLedger, "add"),
    "d2": Step(GitWorktrees, "add"),
    "d2-taken": Step(KeptWorktrees, "hand_over"),
    "d2-lease": Step(FileLeases, "claim"),
    "d3": Step(launching, "_write_order"),
    "d4": Step(SqliteLedger, "update", _becomes(DispatchState.LAUNCHING)),
    "d5": Step(launching, "_hand_over"),
    "d5-told": Step(launching, "_say"),
    "d5-heard": Step(launching, "_hear"),
    "d6": Step(SqliteLedger, "update", _becomes(DispatchState.RUNNING)),
    "d7": Step(SqliteLedger, "update", _becomes(DispatchState.EXITED)),
    "d7-outcome": Step(SqliteLedger, "settle"),
    "d8": Step(SqliteJournal, "record"),
    # Begun once the reflection is on disk; before the routing row is.
    "d8-half": Step(SqliteJournal, "_keep_score"),
    "d9": Step(SqliteLedger, "delivered"),
    "d10-lease": Step(FileLeases, "release"),
    "d10-worktree": Step(GitWorktrees, "remove"),
    "d10-thrown": Step(rooms, "throw_away"),
    "d10": Step(SqliteLedger, "tidied"),
    # Of shipping, between d7 and the outcome.
    "ship-look": Step(GhShipper, "inspect"),
    "ship-sealed": Step(SqliteLedger, "update", _reaches(Stage.SEALED)),
    "ship-push": Step(GitShipper, "push"),
    "ship-pushed": Step(SqliteLedger, "update", _reaches(Stage.PUSHED)),
    "ship-open": Step(GhShipper, "open"),
    "ship-opened": Step(SqliteLedger, "update", _reaches(Stage.OPENED)),
    "ship-finish": Step(GhShipper, "finish"),
    # Of recovery; the steps that undo and settle are those above.
    "heal": Step(GitWorktrees, "heal"),
    "attach": Step(LocalExecutor, "attach"),
    "tombstone": Step(remains, "_forbid"),
    "sweep": Step(remains, "sweep"),
    "burial": Step(remains, "_bury"),
    "abort": Step(SqliteLedger, "abort"),
    "held": Step(FileLeases, "held_by_us"),
}

BLOCKED_S = 17.0
"""Longer than a shim's answer is waited for."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _block() -> None:
    time.sleep(BLOCKED_S)


def _block_soon() -> None:
    """Block the loop while what comes next is waited for."""
    asyncio.get_running_loop().call_later(0.01, time.sleep, BLOCKED_S)


def _go() -> None:
    Path(_GO).touch()
    time.sleep(0.25)


ACTS = {"kill": _kill, "stop": _stop, "block": _block, "block-soon": _block_soon, "go": _go}
_GO = ""


def act_at(where: str, act: Callable[[], None]) -> None:
    """Have `act` called at a step: `d3-before`, or `d3-after:2` for the second time."""
    label, _, number = where.partition(":")
    name, _, when = label.rpartition("-")
    step, left = STEPS[name], [int(number or 1)]
    real = getattr(step.owner, step.name)

    def reached(now: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        if now == when and step.is_meant(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                act()

    if inspect.iscoroutinefunction(real):

        @functools.wraps(real)
        async def wrapped(*args: Any, **more: Any) -> Any:
            reached("before", args, more)
            result = await real(*args, **more)
            reached("after", args, more)
            return result
    else:

        @functools.wraps(real)
        def wrapped(*args: Any, **more: Any) -> Any:
            reached("before", args, more)
            result = real(*args, **more)
            reached("after", args, more)
            return result

    setattr(step.owner, step.name, wrapped)


def _put(owner: Any, name: str, new: Any) -> None:
    setattr(owner, name, new)


def _without_recovery() -> None:
    async def recover(_world: Any) -> tuple[()]:
        return ()

    _put(orchestrator, "recover", recover)


def _without_leases() -> None:
    async def claim(*_: Any) -> None:
        return None

    async def live(_self: Any) -> tuple[()]:
        return ()

    _put(FileLeases, "claim", claim)
    _put(FileLeases, "live", live)


def _without_one_active() -> None:
    """Let the ledger have several active dispatches of one gap."""
    open_it = ledger_schema.for_writing
    add = SqliteLedger.add

    def for_writing(path: Path) -> sqlite3.Connection:
        connection = open_it(path)
        connection.execute("DROP INDEX IF EXISTS one_active_dispatch_per_gap")
        return connection

    async def unasked(self: SqliteLedger, dispatch: Dispatch) -> None:
        """Hide the rival for the time of the question."""

        def hide(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE dispatches SET gap = '-' || gap WHERE active")

        def show(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE dispatches SET gap = substr(gap, 2) WHERE gap LIKE '-%'")

        await self._write(hide)
        await add(self, dispatch)
        await self._write(show)

    _put(ledger, "for_writing", for_writing)
    _put(SqliteLedger, "add", unasked)


def _without_delivered() -> None:
    """Have the journal take each reflection for a new one."""
    _put(journal, "_firsts", lambda _connection, reflections: reflections)


def _without_tombstone() -> None:
    _put(remains, "_forbid", lambda *_: None)


def _without_sweep() -> None:
    _put(remains, "sweep", lambda *_: (0, 0))


def _without_start_time() -> None:
    _put(remains, "_is_that", lambda *_: True)
    _put(remains, "_lives", lambda _: False)


def _without_boot_id() -> None:
    _put(linux, "boot_id", lambda: "another")


def _without_records() -> None:
    """Have the ends that shims have recorded overlooked."""
    _put(
        remains,
        "read_object",
        lambda directory, name: None if name == EXIT else read_object(directory, name),
    )


def _without_giving_back() -> None:
    """Have a launch undone as if it had made the worktree itself."""

    async def give_back(world: Any, dispatch: Dispatch, workspace: Any) -> None:
        await world.worktrees.remove(workspace, dispatch.id)

    _put(daemon_launching, "give_back", give_back)


def _without_daemon_lock() -> None:
    _put(wiring, "daemon_lock", lambda *_: contextlib.nullcontext())


WITHOUT = {
    "recovery": _without_recovery,
    "leases": _without_leases,
    "one-active": _without_one_active,
    "delivered": _without_delivered,
    "tombstone": _without_tombstone,
    "sweep": _without_sweep,
    "start-time": _without_start_time,
    "boot-id": _without_boot_id,
    "records": _without_records,
    "daemon-lock": _without_daemon_lock,
    "giving-back": _without_giving_back,
}


def _shims_by(program: str) -> None:
    """Have shims started by a program that takes what an interpreter would."""
    real = LocalExecutor.__init__

    @functools.wraps(real)
    def init(self: LocalExecutor, **more: Any) -> None:
        real(self, **{**more, "python": program})

    # Plug-ins are given what their signature names, and it names another interpreter's default.
    _put(LocalExecutor, "__init__", init)


def rig() -> None:
    """Arm this process with what its environment says, and forget that."""
    global _GO  # noqa: PLW0603 - the one thing that an act needs to know
    told = {
        name: os.environ.pop(f"CHUMP_{name}", "")
        for name in ("CRASH_AT", "CRASH_BY", "WITHOUT", "GO", "SHIM", "SHIM_FOLDER")
    }
    _GO = told["GO"]
    if told["CRASH_AT"]:
        act_at(told["CRASH_AT"], ACTS[told["CRASH_BY"] or "kill"])
    for name in filter(None, told["WITHOUT"].split(",")):
        WITHOUT[name]()
    if told["SHIM"]:
        _shims_by(told["SHIM"])
    if told["SHIM_FOLDER"]:
        standby._SHIM = told["SHIM_FOLDER"]


if __name__ == "__main__":
    rig()
    sys.exit(main())
