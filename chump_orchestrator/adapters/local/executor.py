"""Launches agents under shims, takes them up again, and clears away what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import structlog

from chump_orchestrator.adapters.local.agent import ShimAgent
from chump_orchestrator.adapters.local.files import (
    TEMPORARY,
    delete,
    locked,
    read_object,
    sync_folder,
)
from chump_orchestrator.adapters.local.launching import Launch, launch
from chump_orchestrator.adapters.local.numbers import LARGEST_PID, seconds, whole
from chump_orchestrator.adapters.local.recalling import recall
from chump_orchestrator.adapters.local.remains import MARKER, Found, Stage, is_alive, look
from chump_orchestrator.adapters.local.shims import kill_shim
from chump_orchestrator.adapters.local.standby import Standby, start
from chump_orchestrator.adapters.local.wire import ask
from chump_orchestrator.core.dispatch import (
    DISPATCH_ID_PATTERN,
    Command,
    Dispatch,
    Limits,
    Workspace,
)
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Recalled
from chump_orchestrator.shim.files import RUNNING

DISPATCHES = "d"
"""Folder of the state that holds one folder for each dispatch."""

STARTING_S = 10.0
"""How long a shim may take to start its agent before it is stopped."""

_LAUNCHES = 8
"""Agents started at once; each of them costs an interpreter's start."""

_STANDBYS = 8
"""Shims that wait for their word at once; a launch beyond that starts its own."""

_TRASH = ".trash-"
_PATIENCE_S = 1.0
"""How long somebody who only looks at a dispatch is waited for, who has its lock meanwhile."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.25

log = structlog.get_logger()

T = TypeVar("T")

Environment = Callable[[tuple[str, ...]], Mapping[str, str]]
"""Gives what an agent may see of the daemon's environment; the patterns name what else it may."""


class LocalExecutor:
    """Runs agents on this machine; see `core.ports.Executor`.

    `state` is the folder that dispatches lie in, `cgroups` the control group below which each may
    have one of its own, `None` where there is none to be had. `managers` gives the sockets of
    service managers that may be asked for a unit of an agent's own, and `limits` what an agent may
    use, both anew for each launch. `secrets` gives the values in an
    environment that must not reach a log, `overlay` is set over what `environment` gives
    (behaviour D5).
    """

    def __init__(
        self,
        *,
        state: Path,
        environment: Environment,
        secrets: Callable[[Mapping[str, str]], tuple[str, ...]],
        overlay: Mapping[str, str],
        clock: Clock,
        python: str = sys.executable,
        cgroups: Path | None = None,
        managers: Callable[[], tuple[str, ...]] = tuple,
        limits: Callable[[], Limits] = Limits,
    ) -> None:
        self._folder = state.absolute() / DISPATCHES
        self._environment = environment
        self._secrets = secrets
        self._overlay = dict(overlay)
        self._clock = clock
        self._python = python
        self._cgroups = cgroups
        self._managers = managers
        self._limits = limits
        self._told: set[tuple[str, ...]] = set()
        self._launches = anyio.CapacityLimiter(_LAUNCHES)
        self._standbys: dict[str, Standby] = {}
        self._has_emptied = False

    async def launch(
        self, dispatch: Dispatch, workspace: Workspace, command: Command, prompt: str
    ) -> ShimAgent:
        directory = self._directory(dispatch.id)
        environment = self._environment_of(dispatch, command)
        order = Launch(
            directory=directory,
            dispatch=dispatch,
            workspace=workspace,
            command=command,
            prompt=prompt,
            environment=environment,
            secrets=self._secrets(environment),
            python=self._python,
            cgroup=None if self._cgroups is None else str(self._cgroups),
            managers=self._managers(),
            limits=self._limits(),
        )
        pid = await _to_its_end(self._launch(order, self._standbys.get(dispatch.id)))
        await anyio.to_thread.run_sync(self._tell_of_containment, directory)
        return ShimAgent(directory, self._clock, pid=pid)

    @contextlib.asynccontextmanager
    async def expecting(self, dispatch_id: str) -> AsyncIterator[None]:
        try:
            if len(self._standbys) < _STANDBYS:
                await _to_its_end(self._stand_by(dispatch_id))
            yield
        finally:
            standby = self._standbys.pop(dispatch_id, None)
            if standby is not None and not standby.is_told:
                await _to_its_end(standby.dismiss())

    async def attach(self, dispatch_id: str) -> ShimAgent | None:
        directory = self._directory(dispatch_id)
        begun = anyio.current_time()
        wait_s = _FIRST_WAIT_S
        while True:
            found = await anyio.to_thread.run_sync(look, directory, dispatch_id, self._clock.now())
            match found.stage:
                case Stage.NEVER:
                    return None
                case Stage.ENDED:
                    agent = self._agent(directory, found)
                    agent.end(found)
                    await agent.rebuild()
                    return agent
                case Stage.ENDING:
                    return self._agent(directory, found)
                case Stage.ADRIFT:
                    return self._agent(directory, found, found.running)
                case Stage.RUNNING:
                    try:
                        status = await ask(directory, {"op": "status"})
                    except Unavailable:
                        # Its socket comes a moment after its record, and goes a moment before.
                        if anyio.current_time() - begun > STARTING_S:
                            raise
                    else:
                        return self._agent(directory, found, status)
                case Stage.STARTING:
                    waited_s = anyio.current_time() - begun
                    if waited_s > STARTING_S:
                        await anyio.to_thread.run_sync(kill_shim, directory)
                    if waited_s > 2 * STARTING_S:
                        raise Unavailable(
                            f"dispatch {dispatch_id}: something holds {directory / 'lock'} and"
                            " starts no agent; see what that is"
                        )
            await anyio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def known(self) -> tuple[str, ...]:
        if not self._has_emptied:
            self._has_emptied = True
            await anyio.to_thread.run_sync(_empty_trash, self._folder)
        return await anyio.to_thread.run_sync(_dispatches_in, self._folder)

    async def recall(self, dispatch_id: str) -> Recalled | None:
        return await anyio.to_thread.run_sync(recall, self._directory(dispatch_id))

    async def discard(self, dispatch_id: str) -> None:
        await anyio.to_thread.run_sync(_discard, self._directory(dispatch_id))

    def _tell_of_containment(self, directory: Path) -> None:
        """Log how an agent is contained, and, once for each kind, which of its limits do not hold.

        A file that cannot be read just now tells nothing; the agent runs all the same.
        """
        with contextlib.suppress(OSError):
            running = read_object(directory, RUNNING) or {}
            log.debug("agent.contained", unit=running.get("unit"), cgroup=running.get("cgroup"))
            unheld = running.get("unheld")
            missing = tuple(map(str, unheld)) if isinstance(unheld, list) else ()
            if missing and missing not in self._told:
                self._told.add(missing)
                log.warning("limits.unheld", limits=missing, why=running.get("why"))

    def _directory(self, dispatch_id: str) -> Path:
        if not DISPATCH_ID_PATTERN.fullmatch(dispatch_id):
            raise Refused(f"{dispatch_id[:80]!r} is no dispatch id; take it from the ledger")
        return self._folder / dispatch_id

    def _environment_of(self, dispatch: Dispatch, command: Command) -> dict[str, str]:
        environment = {
            **self._environment(command.pass_env),
            **self._overlay,
            **command.env,
        }
        wanted = tuple(command.env_from.values())
        sources = self._environment(wanted) if wanted else {}
        for name, source in command.env_from.items():
            environment.pop(name, None)
            if source in sources:
                environment[name] = sources[source]
        return environment | {
            "CHUMP_DISPATCH_DEPTH": "1",
            MARKER: dispatch.id,
            "CHUMP_SESSION_ID": dispatch.id,
            "TMPDIR": str(self._directory(dispatch.id) / TEMPORARY),
        }

    def _agent(
        self, directory: Path, found: Found, status: Mapping[str, object] | None = None
    ) -> ShimAgent:
        told = status or {}
        return ShimAgent(
            directory,
            self._clock,
            pid=whole(found.running.get("pid"), LARGEST_PID) or 0,
            active_s=seconds(told.get("active_s")) or 0.0,
            silent_s=seconds(told.get("silent_s")) or 0.0,
            old=_offsets(told.get("bytes")),
        )

    async def _launch(self, order: Launch, standby: Standby | None) -> int:
        async with self._launches:
            return await launch(order, standby)

    async def _stand_by(self, dispatch_id: str) -> None:
        """Start a shim; without one that has been, a launch starts it, or says why it cannot."""
        with contextlib.suppress(OSError, RuntimeError):
            directory = self._directory(dispatch_id)
            self._standbys[dispatch_id] = await start(self._python, directory)


def _offsets(told: object) -> dict[str, int]:
    found = told if isinstance(told, dict) else {}
    return {name: whole(offset) or 0 for name, offset in found.items()}


async def _to_its_end(launching: Coroutine[Any, Any, T]) -> T:
    """Wait for a launch whatever happens: cancelled in the middle, its shim would be lost."""
    starting = asyncio.ensure_future(launching)  # noqa: TID251 - awaited below, come what may
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not starting.done():
            try:
                await asyncio.wait({starting})  # noqa: TID251 - must not cancel it
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not starting.cancelled():
            starting.exception()  # seen, though there is nobody left to tell
        raise cancelled
    return starting.result()


def _dispatches_in(folder: Path) -> tuple[str, ...]:
    try:
        # Of each of thousands, `Path` would keep the parts of its name in a table of Python's own.
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise Unavailable(f"{folder} cannot be read: {error.strerror}") from error
    return tuple(name for name in names if DISPATCH_ID_PATTERN.fullmatch(name))


def _discard(directory: Path) -> None:
    """Delete the folder of a dispatch."""
    trash = directory.parent / f"{_TRASH}{directory.name}"
    until = time.monotonic() + _PATIENCE_S
    try:
        if trash.exists():  # another deletion of it was cut short
            delete(trash)
        while not _thrown_away(directory, trash):
            if time.monotonic() > until:
                raise Refused(
                    f"dispatch {directory.name} cannot be discarded: its agent runs; stop it first"
                )
            time.sleep(_FIRST_WAIT_S)
        delete(trash)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise Unavailable(f"{directory} cannot be deleted: {error.strerror}") from error


def _thrown_away(directory: Path, trash: Path) -> bool:
    """Whether nobody has the dispatch, so that it could be renamed.

    By one step, so that no half of it is taken for a dispatch, and under its lock, so that
    nobody who takes it up meanwhile settles what they find only partly.
    """
    with locked(directory) as is_ours:
        if not is_ours or is_alive(directory):
            return False
        directory.rename(trash)
        sync_folder(directory.parent)
        return True


def _empty_trash(folder: Path) -> None:
    """Delete what deletions that were cut short have left."""
    for trash in folder.glob(f"{_TRASH}*"):
        with contextlib.suppress(OSError):
            delete(trash)
